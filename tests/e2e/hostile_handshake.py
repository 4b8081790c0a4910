# SPDX-License-Identifier: BSD-3-Clause
"""Rows A1 to A41 of the table of hostile inputs: connecting and negotiating."""
import os
import re
import socket
import struct
import subprocess
import time

from evnbd_test import HANG, HELPERS, MIB, SANITIZED, check, equal, same_bytes, skip
from hostile import (DATA, HEAD, MODES, SIZE, check_good_client, check_memory, check_text, expect_closed,
                     expect_error, expect_refused, expect_usable, resident_kib, row, send_until_closed)
from nbd_raw import (CMD_BLOCK_STATUS, CMD_DISC, CMD_READ, EINVAL, ERR, IHAVEOPT, INFO_BLOCK_SIZE,
                     OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST,
                     OPT_LIST_META, OPT_SET_META, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK,
                     REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_TLS_REQD,
                     REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_SERVER, Closed,
                     go_data, meta_data, option_bytes, request_bytes)

OPTION_BYTES_MAX = 64 << 10  # more than this is not waited for
BASE = b"base:allocation"

HANDSHAKE = (struct.pack(">I", 3) + option_bytes(OPT_LIST) + option_bytes(OPT_STRUCTURED_REPLY) +
             option_bytes(OPT_SET_META, meta_data(b"", [BASE])) +
             option_bytes(OPT_GO, go_data(b"", (0, 1, 2, 3))))


@row("A1", "connect and send nothing")
def _(stage):
    server = stage.serve("--handshake-limit=1")
    client = stage.client(server)
    client.greeting()
    expect_closed(client)


@row("A2", "connect and close at once, ten thousand times")
def _(stage):
    count = 1000 if SANITIZED else 10000
    server = stage.serve("-v", tcp=True)
    before, start = 0, time.monotonic()
    for number in range(count):
        if number == count // 2:
            before = resident_kib(server)  # what it keeps for reuse it has by now
        client = server.client(connect=False)
        if number % 2:
            client.close()
        else:
            client.reset()
    check_good_client(server, DATA[:HEAD])
    lines = server.log.count("\n")
    # Of each of the few causes ten lines and their sum in a second.
    limit = 40 * (time.monotonic() - start + 2)
    check(lines <= limit, f"{lines} lines were logged")
    if not SANITIZED:
        grown = resident_kib(server) - before
        check(grown <= 2 << 10, f"the server has grown by {grown} KiB")


@row("A4", "a handshake of one byte now and then")
def _(stage):
    server = stage.serve("--handshake-limit=1")
    client = stage.client(server)
    sent = send_until_closed(client, HANDSHAKE * 10, 0.1)
    check(sent < len(HANDSHAKE) * 10, "the whole handshake was taken")


@row("A5", "the end after each byte of a handshake")
def _(stage):
    server = stage.serve(tcp=True)
    session = HANDSHAKE + request_bytes(CMD_READ, 0, 512) + request_bytes(CMD_DISC, 0, 0)
    for length in range(0, len(session) + 1, 5 if SANITIZED else 1):
        client = server.client(connect=False)
        client.send(session[:length])
        if length % 3 == 0:
            client.sock.shutdown(socket.SHUT_WR)
            client.recv_until_closed()
        if length % 3 == 1:
            client.reset()
        client.close()


@row("A6", "client flags that are not known")
def _(stage):
    server = stage.serve()
    for flags in (0xFFFFFFFF, *(1 << bit for bit in range(2, 32)), 3 | 1 << 17):
        client = stage.client(server)
        client.greeting()
        client.client_flags(flags)
        expect_closed(client)


@row("A7", "a client without the fixed newstyle")
def _(stage):
    server = stage.serve()
    client = stage.client(server)
    client.greeting()
    client.client_flags(0)
    client.send(option_bytes(OPT_EXPORT_NAME))
    size, _ = struct.unpack(">QH", client.recv(10))
    equal(size, SIZE, "size")
    equal(client.recv(124), bytes(124), "zeroes")
    same_bytes(client.read(0, 512), DATA[:512], "data")
    client.disconnect()
    client = stage.client(server)
    client.greeting()
    client.client_flags(0)
    client.send(option_bytes(OPT_GO, go_data()))
    expect_closed(client)


@row("A9", "a wrong magic before an option")
def _(stage):
    server = stage.serve()
    for magic in (IHAVEOPT + 1, IHAVEOPT ^ 1 << 63, 0, 0x0003E889045565A9):
        client = stage.haggler(server)
        # Strangers are not waited for: eight bytes are enough.
        client.send(option_bytes(OPT_LIST, magic=magic)[:8])
        expect_closed(client)


@row("A10", "options that are not known")
def _(stage):
    client = stage.haggler(stage.serve())
    for option in (0, 4, 77, 0xFFFFFFFF):
        for length in (0, 5, 4096):
            expect_refused(client, option, bytes(length), REP_ERR_UNSUP)


@row("A11", "lengths of options that nobody needs, and no data")
def _(stage):
    server = stage.serve()
    for option in (OPT_LIST, OPT_GO, OPT_EXPORT_NAME, OPT_SET_META, 77):
        for length in (0xFFFFFFFF, 1 << 31, OPTION_BYTES_MAX + 1):
            client = stage.haggler(server)
            client.send(option_bytes(option, length=length))
            expect_closed(client, at_most=20 + 512)


@row("A12", "the longest option, in drops")
def _(stage):
    server = stage.serve("--handshake-limit=3")
    patient = stage.haggler(server)
    stalled = [stage.haggler(server) for _ in range(100)]
    for client in stalled:
        client.send(option_bytes(OPT_LIST, bytes(1000), OPTION_BYTES_MAX))
    message = option_bytes(OPT_LIST, bytes(OPTION_BYTES_MAX))
    for at in range(0, len(message), 1000):
        patient.send(message[at:at + 1000])
    option, kind, text = patient.option_reply()
    equal((option, kind), (OPT_LIST, REP_ERR_INVALID), "reply to a long LIST")
    check_text(text)
    expect_usable(patient)
    check_memory(server, 64)
    for client in stalled:
        expect_closed(client)


@row("A14", "ABORT with data, and ABORT without waiting")
def _(stage):
    server = stage.serve()
    client = stage.haggler(server)
    equal([kind for kind, _ in client.option(OPT_ABORT, b"goodbye")], [REP_ACK], "replies to ABORT")
    expect_closed(client)
    for _ in range(100):
        client = stage.haggler(server)
        client.send(option_bytes(OPT_ABORT))
        client.close()


@row("A15", "STRUCTURED_REPLY twice, and with data")
def _(stage):
    client = stage.haggler(stage.serve())
    expect_refused(client, OPT_STRUCTURED_REPLY, b"data", REP_ERR_INVALID)
    client.negotiate("structured")
    replies = client.option(OPT_STRUCTURED_REPLY)
    check(replies[-1][0] in (REP_ACK, REP_ERR_INVALID), f"replies {replies}")
    client.go()
    same_bytes(client.ask(CMD_READ, 0, 4096).content(0, 4096), DATA[:4096], "data")


@row("A16", "EXTENDED_HEADERS twice, and STRUCTURED_REPLY behind it")
def _(stage):
    client = stage.haggler(stage.serve())
    expect_refused(client, OPT_EXTENDED_HEADERS, b"data", REP_ERR_INVALID)
    client.negotiate("extended")
    expect_refused(client, OPT_EXTENDED_HEADERS, b"", REP_ERR_INVALID)
    expect_refused(client, OPT_STRUCTURED_REPLY, b"", REP_ERR_EXT_HEADER_REQD)
    client.go()
    same_bytes(client.ask(CMD_READ, 0, 4096).content(0, 4096), DATA[:4096], "data")


@row("A17", "EXPORT_NAME behind EXTENDED_HEADERS")
def _(stage):
    client = stage.haggler(stage.serve(), "extended")
    client.send(option_bytes(OPT_EXPORT_NAME))
    expect_closed(client)


@row("A19", "GO and INFO that are too short")
def _(stage):
    client = stage.haggler(stage.serve())
    for option in (OPT_GO, OPT_INFO):
        for length in range(6):
            expect_refused(client, option, bytes(length), REP_ERR_INVALID)


@row("A20", "GO with a name that is longer than the data")
def _(stage):
    client = stage.haggler(stage.serve())
    for option in (OPT_GO, OPT_INFO):
        for length, rest in ((1, b"\0\0"[:1]), (3, b"ab\0\0"), (4096, b"x" * 100), (65535, b"x" * 4098)):
            expect_refused(client, option, struct.pack(">I", length) + rest, REP_ERR_INVALID)


@row("A21", "GO with a name whose length wraps around")
def _(stage):
    client = stage.haggler(stage.serve())
    for option in (OPT_GO, OPT_INFO):
        for length in (0xFFFFFFFF, 0xFFFFFFFA, 0xFFFFFFF8, 1 << 31):
            for rest in (b"", b"\0\0", bytes(100)):
                expect_refused(client, option, struct.pack(">I", length) + rest, REP_ERR_INVALID)


@row("A22", "GO with another number of information requests than it says")
def _(stage):
    client = stage.haggler(stage.serve())
    for option in (OPT_GO, OPT_INFO):
        for count, rest in ((65535, b""), (0, b"xx"), (0, b"x"), (1, b""), (1, b"x"), (2, b"\0\1")):
            expect_refused(client, option, struct.pack(">IH", 0, count) + rest, REP_ERR_INVALID)


@row("A24", "names that are no text, or more than text")
def _(stage):
    server = stage.serve("-v")
    names = (b"nul\0nul", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\nevnbd: b",
             b"\x1b[2J", b"%s%n%1000000d", b"../../etc/passwd", b"\x7f\x01", b"x" * 4097)
    client = stage.haggler(server)
    for name in names:
        for option in (OPT_GO, OPT_INFO):
            expect_refused(client, option, go_data(name), REP_ERR_INVALID, REP_ERR_UNKNOWN)
    for name in names:
        old = stage.haggler(server)
        old.send(option_bytes(OPT_EXPORT_NAME, name))
        expect_closed(old)
    check(all(32 <= ord(c) < 127 or c == "\n" for c in server.log), f"the log: {server.log!r}")
    check("\nevnbd: b" not in server.log, "a name has made a line of the log")


@row("A25", "an unknown name of the greatest length")
def _(stage):
    client = stage.haggler(stage.serve())
    for option in (OPT_GO, OPT_INFO):
        for byte in (b"x", b"\x01", b"\\", b"%"):
            text = expect_refused(client, option, go_data(byte * 4096), REP_ERR_UNKNOWN)
            check(len(text) < 400, f"the text has {len(text)} bytes")


@row("A26", "guessing names")
def _(stage):
    server = stage.serve("-v")
    client = stage.haggler(server)
    answered = 0
    try:
        for number in range(2000):
            equal(client.option(OPT_GO, go_data(b"name%d" % number))[-1][0], REP_ERR_UNKNOWN, "reply")
            answered += 1
    except Closed:
        pass
    check(100 <= answered < 2000, f"{answered} guesses were answered")
    check(server.log.count("\n") < 100, "the guesses fill the log")


@row("A27", "INFO and failed GO before another GO")
def _(stage):
    server = stage.serve("-D", "text", export="name")
    client = stage.haggler(server)
    equal(client.go(b"name", option=OPT_INFO).size, SIZE, "size")
    expect_refused(client, OPT_GO, go_data(b"other"), REP_ERR_UNKNOWN)
    expect_refused(client, OPT_GO, go_data(b""), REP_ERR_UNKNOWN)
    expect_refused(client, OPT_GO, b"", REP_ERR_INVALID)
    export = client.go(b"name", infos=(INFO_BLOCK_SIZE,))
    equal((export.size, export.name), (SIZE, None), "what GO tells after all that")
    same_bytes(client.read(0, 512), DATA[:512], "data")


@row("A29", "SET_META_CONTEXT before STRUCTURED_REPLY")
def _(stage):
    client = stage.haggler(stage.serve())
    expect_refused(client, OPT_SET_META, meta_data(b"", [BASE]), REP_ERR_INVALID)
    client.go()
    expect_error(client, [EINVAL], CMD_BLOCK_STATUS, 0, 512)


@row("A30", "queries that are longer, or more, than the data")
def _(stage):
    server = stage.serve()
    for mode in MODES[1:]:
        client = stage.haggler(server, mode)
        for option in (OPT_SET_META, OPT_LIST_META):
            for data in (b"", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\1", struct.pack(">II", 0, 0xFFFFFFFF),
                         struct.pack(">II", 0, 1), struct.pack(">III", 0, 1, 0xFFFFFFFF) + b"base:",
                         struct.pack(">III", 0, 1, 6) + b"base:", struct.pack(">II", 0xFFFFFFFC, 0),
                         struct.pack(">II", 5, 0), struct.pack(">III", 0, 2, 5) + b"base:"):
                expect_refused(client, option, data, REP_ERR_INVALID)


@row("A31", "as many empty queries as fit, and more")
def _(stage):
    server = stage.serve()
    fit = (OPTION_BYTES_MAX - 8) // 4
    client = stage.haggler(server, "structured")
    for option in (OPT_SET_META, OPT_LIST_META):
        replies = client.option(option, meta_data(b"", [b""] * fit))
        check(replies[-1][0] in (REP_ACK, REP_ERR_TOO_BIG), f"reply {replies[-1]}")
        check(len(replies) < 100, f"{len(replies)} replies")
        expect_usable(client)
    client.send(option_bytes(OPT_SET_META, length=4 * MIB + 8) + bytes(100000))
    expect_closed(client, at_most=20 + 512)
    check_memory(server, 64)


@row("A32", "SET_META_CONTEXT with trailing bytes")
def _(stage):
    server = stage.serve()
    client = stage.haggler(server, "structured")
    for option in (OPT_SET_META, OPT_LIST_META):
        for rest in (b"\0", bytes(8), struct.pack(">I", 15) + BASE):
            expect_refused(client, option, meta_data(b"", [BASE]) + rest, REP_ERR_INVALID)
            expect_refused(client, option, meta_data(b"", []) + rest, REP_ERR_INVALID)
    client.go()
    expect_error(client, [EINVAL], CMD_BLOCK_STATUS, 0, 512)


def run_dialogues():
    """What needs several exports, which the command line cannot make, is tested in one process."""
    program = os.path.join(HELPERS, "..", "dialogue", "dialogue_test_exports")
    if not os.path.exists(program):
        skip("dialogue_test_exports was not built")
    done = subprocess.run([program], capture_output=True, text=True, timeout=HANG, check=False)
    equal(done.returncode, 0, f"status of the dialogues ({done.stdout[-2000:]}{done.stderr[-2000:]})")


@row("A34", "contexts of one export, and GO to another")
def _(stage):
    run_dialogues()
    stage.serve()


@row("A35", "a good SET_META_CONTEXT and then a bad one")
def _(stage):
    server = stage.serve()
    for mode in MODES[1:]:
        for bad, error in ((meta_data(b"other", [BASE]), REP_ERR_UNKNOWN), (b"", REP_ERR_INVALID),
                           (meta_data(b"", [BASE]) + b"x", REP_ERR_INVALID),
                           (meta_data(b"", [b"x" * 4097]), REP_ERR_INVALID)):
            client = stage.haggler(server, mode)
            equal(list(client.contexts(b"", [BASE])), [BASE], "contexts")
            expect_refused(client, OPT_SET_META, bad, error)
            client.go()
            expect_error(client, [EINVAL], CMD_BLOCK_STATUS, 0, 512)


@row("A36", "LIST_META_CONTEXT of nothing, of everything, and with 10,000 queries")
def _(stage):
    server = stage.serve("-A")
    every = [BASE, b"qemu:allocation-depth"]
    client = stage.haggler(server, "structured")
    expect_refused(client, OPT_LIST_META, meta_data(b"other", []), REP_ERR_UNKNOWN)
    equal(sorted(client.contexts(b"", [], OPT_LIST_META)), every, "all contexts")
    replies = client.option(OPT_LIST_META, meta_data(b"", [b"q:"] * 10000))
    check(replies[-1][0] in (REP_ACK, REP_ERR_TOO_BIG), f"reply {replies[-1]}")
    replies = client.option(OPT_LIST_META, meta_data(b"", [BASE] * 3000))
    check(len(replies) == 2 or replies[-1][0] == REP_ERR_TOO_BIG, f"{len(replies)} replies")
    expect_usable(client)


@row("A37", "options one behind the other, without waiting")
def _(stage):
    server = stage.serve()
    client = stage.haggler(server)
    client.send(b"".join(option_bytes(OPT_INFO, go_data()) + option_bytes(1000 + i) for i in range(400)))
    time.sleep(0.1)
    for number in range(400):
        while True:
            option, kind, _ = client.option_reply()
            equal(option, OPT_INFO, f"option of reply {number}")
            if kind == REP_ACK:
                break
            equal(kind, REP_INFO, "a reply to INFO")
        option, kind, _ = client.option_reply()
        equal((option, kind), (1000 + number, REP_ERR_UNSUP), "reply to an unknown option")
    expect_usable(client)


@row("A39", "LIST of ten thousand exports")
def _(stage):
    run_dialogues()
    stage.serve()


@row("A40", "options without end")
def _(stage):
    server = stage.serve()
    for option, data in ((OPT_LIST, b""), (OPT_INFO, go_data()), (77, b"x"),
                         (OPT_LIST_META, meta_data(b"", []))):
        client = stage.haggler(server)
        answered = 0
        try:
            while answered < 5000:
                client.option(option, data)
                answered += 1
        except Closed:
            pass
        check(100 <= answered < 5000, f"{answered} times option {option} was answered")


@row("A41", "STARTTLS at a server without TLS")
def _(stage):
    client = stage.haggler(stage.serve())
    for data in (b"", b"data"):
        kind, text = client.option(OPT_STARTTLS, data)[-1]
        check(kind & ERR and kind != REP_ERR_TLS_REQD, f"reply {kind:#x}")
        check(kind in (REP_ERR_POLICY, REP_ERR_UNSUP, REP_ERR_INVALID), f"reply {kind:#x}")
        check(re.search(rb"TLS", text), f"the text is {text!r}")
    equal([kind for kind, _ in client.option(OPT_LIST)], [REP_SERVER, REP_ACK], "replies to LIST")
    client.go()
    same_bytes(client.read(0, 512), DATA[:512], "data, in plain text")
