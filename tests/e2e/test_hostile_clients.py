#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Clients that stall, flood, leave, reset or lie; afterwards a good client is served as ever."""
import random
import resource
import socket
import struct
import time

from evnbd_test import (KIB, MIB, SANITIZED, cases, check, content, equal, free_port, main, same_bytes,
                        wait_for)
from nbd_raw import (CMD_CACHE, CMD_DISC, CMD_FLAG_FUA, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
                     CMD_WRITE_ZEROES, EINVAL, ENOSPC, EOVERFLOW, OPT_ABORT, OPT_EXPORT_NAME,
                     OPT_GO, OPT_INFO, OPT_LIST, OPT_STARTTLS, REP_ACK,
                     REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO,
                     REP_SERVER, Closed, go_data, option_bytes, request_bytes)

SIZE = 4 * MIB
DATA = content(1, SIZE)


def serve(t, *options, **where):
    return t.serve(t.file("disk.raw", DATA), "-f", "raw", "-e", "0", *options, **where)


def serve_tcp(t, *options):
    return serve(t, *options, host="127.0.0.1", port=free_port())


def check_good_client(server, data=DATA):
    with server.client() as client:
        same_bytes(client.read_all(), data, "the export, for a good client")
        client.disconnect()


def check_descriptors(server, before):
    """What was opened for clients is closed when they are gone."""
    wait_for(lambda: server.descriptors() <= before, f"{server.descriptors()} descriptors to become "
             f"{before}")


def check_memory(server, limit_mib):
    """Limits of the design; sanitizers keep freed memory and shadow, so they are not measured."""
    if not SANITIZED:
        used = server.status_field("VmHWM") // KIB
        check(used <= limit_mib, f"the server took {used} MiB, more than {limit_mib}")


HANDSHAKE = (struct.pack(">I", 3) + option_bytes(OPT_LIST) + option_bytes(OPT_INFO, go_data(b"", (3,))) +
             option_bytes(OPT_GO, go_data(b"", (0, 1, 2, 3))))
# Bytes of its answer: greeting; LIST: the empty name, ACK; INFO, GO: infos, ACK.
HANDSHAKE_ANSWER = 18 + (20 + 4) + 20 + 2 * ((20 + 12) + (20 + 14) + 20) + (20 + 2)
SESSION = HANDSHAKE + (request_bytes(CMD_READ, 0, 512, cookie=1) +
                       request_bytes(CMD_WRITE, 0, 512, cookie=2) + DATA[:512] +
                       request_bytes(CMD_FLUSH, 0, 0, cookie=3) + request_bytes(CMD_DISC, 0, 0, cookie=4))


@cases("close", "half-close", "reset")
def test_end_after_every_byte(t, how):
    """A whole good session, ended after each of its bytes."""
    server = serve_tcp(t)
    check_good_client(server)
    before = server.descriptors()
    for length in range(0, len(SESSION), 3 if SANITIZED else 1):
        client = server.client(connect=False)
        client.send(SESSION[:length])
        if how == "reset":
            client.reset()
        elif how == "half-close":
            client.sock.shutdown(socket.SHUT_WR)
            client.recv_until_closed()
        client.close()
    check_descriptors(server, before)
    check_good_client(server)


def test_byte_by_byte(t):
    """The same session, a byte a segment, is answered like a session in one piece."""
    server = serve(t)
    answers = []
    for pieces in ([SESSION], [SESSION[i:i + 1] for i in range(len(SESSION))],
                   [SESSION[:200], SESSION[200:]]):
        client = server.client(connect=False)
        for piece in pieces:
            client.send(piece)
        answers.append((client.recv(HANDSHAKE_ANSWER), read_replies(client)))
        client.close()
    for handshake, replies in answers:
        same_bytes(handshake, answers[0][0], "answer to a handshake in pieces")
        equal(replies, {1: (0, DATA[:512]), 2: (0, b""), 3: (0, b"")}, "replies to requests in pieces")


def read_replies(client):
    """{cookie: (error, data)} up to the end; only request 1 is a READ, of 512 bytes."""
    replies = {}
    while True:
        try:
            cookie, error = client.reply_header()
        except Closed:
            return replies
        replies[cookie] = error, client.recv(512) if cookie == 1 and not error else b""


def test_half_close_is_answered(t):
    """What was asked before the client closed its sending side is answered."""
    server = serve(t)
    client = server.client()
    for number in range(50):
        client.send(request_bytes(CMD_READ, number * 4096, 4096, cookie=number))
    client.sock.shutdown(socket.SHUT_WR)
    seen = {}
    for _ in range(50):
        cookie, error = client.reply_header()
        equal(error, 0, "error of a read")
        seen[cookie] = client.recv(4096)
    equal(client.recv_until_closed(), b"", "what comes after the last reply")
    for number, data in seen.items():
        same_bytes(data, DATA[number * 4096:][:4096], f"reply {number}")
    equal(len(seen), 50, "number of replies")
    check_good_client(server)


def test_stalled_handshakes(t):
    """Hundreds of clients that never finish their handshake keep nobody out."""
    server = serve(t, "--handshake-limit=0")
    before = server.descriptors()
    stalled = []
    for number in range(300):
        client = server.client(connect=False)
        client.send(HANDSHAKE[:number % len(HANDSHAKE)])
        stalled.append(client)
    check_good_client(server)
    check_memory(server, 64)
    for client in stalled:
        client.close()
    check_descriptors(server, before)
    check_good_client(server)


def test_handshake_limit(t):
    """Who does not finish in time is disconnected, also who sends a byte now and then."""
    server = serve(t, "--handshake-limit=1")
    silent, slow = server.client(connect=False), server.client(connect=False)
    served = server.client()
    silent.greeting()
    silent.client_flags()
    slow.greeting()
    closed = False
    for byte in HANDSHAKE * 10:
        try:
            slow.send(bytes([byte]))
        except Closed:
            closed = True
            break
        time.sleep(0.2)  # the point of this client: never silent for long
        if len(slow_input(slow)) == 0:
            closed = True
            break
    check(closed, "a client that sends a byte now and then was let be")
    equal(silent.recv_until_closed(), b"", "what a silent client gets")
    same_bytes(served.read(0, 512), DATA[:512], "what a client in transmission reads after that time")


def slow_input(client):
    """b"" when the connection has ended, else something."""
    client.sock.setblocking(False)
    try:
        return client.sock.recv(4096)
    except BlockingIOError:
        return b"nothing yet"
    except ConnectionResetError:
        return b""
    finally:
        client.sock.settimeout(60)


def test_flood_without_reading(t):
    """Requests are not taken without end from a client that reads no replies."""
    server = serve(t)
    flood = server.client()
    request = request_bytes(CMD_READ, 0, 64 * KIB, cookie=7)
    flood.sock.setblocking(False)
    sent = 0
    quiet = 0
    while quiet < 20:  # until the server has stopped to read for a while
        try:
            sent += flood.sock.send(request * 1000)
            quiet = 0
            check(sent < 256 * MIB, "the server takes requests without end")
        except BlockingIOError:
            quiet += 1
            time.sleep(0.01)
    check_memory(server, 100)
    check_good_client(server)
    flood.sock.settimeout(60)
    whole = sent // len(request)
    check(whole > 100, f"only {whole} requests were taken")
    for _ in range(min(whole, 2000)):
        cookie, error = flood.reply_header()
        equal((cookie, error), (7, 0), "a reply of the flood")
        same_bytes(flood.recv(64 * KIB), DATA[:64 * KIB], "data of the flood")
    flood.close()
    check_good_client(server)


def test_claimed_payloads(t):
    """Writes that announce 32 MiB and send little do not take the memory that they announce."""
    server = serve(t)
    liars = []
    for number in range(40):
        client = server.client()
        client.send(request_bytes(CMD_WRITE, 0, SIZE, cookie=1) + b"x" * number)
        liars.append(client)
    check_good_client(server)
    check_memory(server, 300)
    for client in liars:
        client.close()
    check_good_client(server)


def test_unfinished_write_changes_nothing(t):
    server = serve(t)
    for rest in (1, 511, 100000, MIB - 1):
        client = server.client()
        client.send(request_bytes(CMD_WRITE, MIB, MIB, cookie=1) + b"\xee" * (MIB - rest))
        client.close()
    check_good_client(server)


def test_slow_reader_beside_a_good_client(t):
    server = serve(t)
    slow = server.client()
    for number in range(64):
        slow.send(request_bytes(CMD_READ, 0, MIB, cookie=number))
    slow.recv(1)
    for _ in range(3):
        check_good_client(server)
    check_memory(server, 150)
    slow.recv(64 * (MIB + 16) - 1)
    slow.disconnect()


@cases("transmission", "handshake")
def test_resets(t, when):
    server = serve_tcp(t)
    check_good_client(server)
    before = server.descriptors()
    for number in range(100):
        client = server.client(connect=when == "transmission")
        if when == "transmission":
            client.send(request_bytes(CMD_READ, 0, MIB, cookie=1) * 4 +
                        request_bytes(CMD_WRITE, 0, MIB, cookie=2) + DATA[:number * 1000])
        client.reset()
    check_descriptors(server, before)
    check_good_client(server)


# Options.

def test_option_lengths(t):
    """A length that nobody would need ends the connection at once, without waiting for the data."""
    server = serve(t)
    for option in (OPT_LIST, OPT_GO, OPT_EXPORT_NAME, 77):
        for length in (0xFFFFFFFF, 1 << 31, 65537):
            client = server.client(connect=False)
            client.greeting()
            client.client_flags()
            client.send(option_bytes(option, b"", length))
            client.recv_until_closed()
            client.close()
    check_good_client(server)


def test_bad_option_data(t):
    """Each is refused, and the connection can be used."""
    server = serve(t)
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    cases_of_go = [b"", b"\0", b"\0" * 5, struct.pack(">I", 1) + b"\0\0", struct.pack(">IH", 0, 1),
                   struct.pack(">I", 0xFFFFFFFF) + b"\0\0", struct.pack(">I", 0xFFFFFFFA) + b"\0\0",
                   struct.pack(">IH", 0, 0xFFFF), struct.pack(">IH", 0, 0) + b"xx",
                   struct.pack(">IHH", 0, 2, 0)]
    for option in (OPT_GO, OPT_INFO):
        for data in cases_of_go:
            equal(client.option(option, data)[-1][0], REP_ERR_INVALID, f"reply to {data!r}")
    equal(client.option(OPT_LIST, b"x")[-1][0], REP_ERR_INVALID, "reply to LIST with data")
    for option in (0, 4, 77, 0xFFFFFFFF):
        equal(client.option(option, b"")[-1][0], REP_ERR_UNSUP, f"reply to option {option}")
        equal(client.option(option, bytes(4096))[-1][0], REP_ERR_UNSUP, f"reply to option {option}")
    check(client.option(OPT_STARTTLS)[-1][0] in (REP_ERR_UNSUP, REP_ERR_POLICY), "reply to STARTTLS")
    for name in (b"nothing", b"%s%n", b"../../etc/passwd", b"x" * 4096):
        kind, text = client.option(OPT_GO, go_data(name))[-1]
        equal(kind, REP_ERR_UNKNOWN, f"reply to GO for {name[:20]!r}")
        check(len(text) <= 4096, f"{len(text)} bytes of text")
    for name in (b"nul\0", b"\xff\xfe", b"\xc0\x80", b"x" * 4097):
        kind, text = client.option(OPT_GO, go_data(name))[-1]
        check(kind in (REP_ERR_INVALID, REP_ERR_UNKNOWN), f"reply {kind:#x} to GO for {name[:20]!r}")
        text.decode()
    equal([kind for kind, _ in client.option(OPT_LIST)], [REP_SERVER, REP_ACK], "replies to LIST")
    client.go()
    same_bytes(client.read(0, 512), DATA[:512], "data after all that")


def test_info_and_go(t):
    server = serve(t, "-D", "words", export="name")
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    for option in (OPT_INFO, OPT_GO):
        export = client.go(b"name", option=option)
        equal((export.size, export.description), (SIZE, b"words"), "what INFO and GO tell")
        equal(export.block_sizes, (1, 4096, 32 * MIB), "block sizes")
    same_bytes(client.read(0, 512), DATA[:512], "data")
    client.disconnect()


def test_export_name(t):
    """The oldest way to ask, with and without the zeroes that follow."""
    server = serve(t, export="name")
    for flags, zeroes in ((3, 0), (1, 124), (0, 124)):
        client = server.client(connect=False)
        client.greeting()
        client.client_flags(flags)
        client.send(option_bytes(OPT_EXPORT_NAME, b"name"))
        size, _ = struct.unpack(">QH", client.recv(10))
        equal(size, SIZE, "size")
        equal(client.recv(zeroes), bytes(zeroes), "zeroes")
        same_bytes(client.read(0, 512), DATA[:512], "data")
        client.disconnect()
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    client.send(option_bytes(OPT_EXPORT_NAME, b"other"))
    equal(client.recv_until_closed(), b"", "answer to an unknown name")


@cases(0xFFFFFFFF, 4, 1 << 31, 8 | 3)
def test_unknown_client_flags(t, flags):
    server = serve(t)
    client = server.client(connect=False)
    client.greeting()
    client.client_flags(flags)
    equal(client.recv_until_closed(), b"", "answer to unknown flags")
    check_good_client(server)


def test_bad_option_magic(t):
    server = serve(t)
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    client.send(option_bytes(OPT_LIST, magic=0x49484156454F5055))
    client.recv_until_closed()
    check_good_client(server)


def test_abort(t):
    server = serve(t)
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    equal(client.option(OPT_ABORT), [(REP_ACK, b"")], "replies to ABORT")
    equal(client.recv_until_closed(), b"", "what follows")
    check_good_client(server)


def test_endless_options(t):
    """Options without end are cut off at some number, which leaves room for honest clients."""
    server = serve(t)
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    done = 0
    try:
        while done < 5000:
            client.option(OPT_LIST)
            done += 1
    except Closed:
        pass
    check(100 <= done < 5000, f"{done} options were answered")
    check_good_client(server)


# Requests.

@cases(0x25609514, 0x12560953, 0x67446698, 0, 0x21E41C71)
def test_bad_request_magic(t, magic):
    server = serve(t)
    client = server.client()
    client.send(request_bytes(CMD_READ, 0, 512, magic=magic))
    equal(client.recv_until_closed(), b"", "answer to a bad magic")
    check_good_client(server)


def test_errors_of_requests(t):
    """Each has its error; the connection goes on, in step."""
    server = serve(t)
    client = server.client()
    far = 1 << 63
    for command, offset, length, wanted in (
            (CMD_READ, SIZE, 1, EINVAL), (CMD_READ, SIZE - 1, 2, EINVAL),
            (CMD_READ, far, 512, EINVAL), (CMD_READ, 2 * far - 512, 1024, EINVAL),
            (CMD_WRITE_ZEROES, SIZE, 1, ENOSPC), (CMD_WRITE_ZEROES, 2 * far - 512, 1024, ENOSPC),
            (CMD_TRIM, SIZE, 1, EINVAL), (CMD_CACHE, SIZE, 1, EINVAL),
            (CMD_TRIM, 2 * far - 1, 0xFFFFFFFF, EINVAL),
            (7, 0, 512, EINVAL), (8, 0, 512, EINVAL), (0xFFFF, 0, 0, EINVAL)):
        equal(client.command(command, offset, length), wanted,
              f"error of command {command} at {offset}, {length} bytes")
    for length in (32 * MIB + 1, 0xFFFFFFFF):
        check(client.read_error(0, length)[0] in (EINVAL, EOVERFLOW), f"error of a READ of {length}")
    equal(client.command(CMD_WRITE, SIZE - 4, 8, 0, b"payloads"), ENOSPC, "error of WRITE past the end")
    equal(client.command(CMD_WRITE, far, 8, 0, b"payloads"), ENOSPC, "error of WRITE far past the end")
    for command in (CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE):
        check(client.command(command, 0, 0) in (0, EINVAL), f"error of command {command}, 0 bytes")
        check(client.command(command, 0, 0, CMD_FLAG_FUA) in (0, EINVAL), f"the same with FUA")
    equal(client.command(CMD_READ, 0, 0, 0x8000), EINVAL, "error of an unknown flag")
    equal(client.command(CMD_WRITE, 0, 4, 0x4000, b"data"), EINVAL, "error of WRITE with an unknown flag")
    same_bytes(client.read_all(), DATA, "the export after all that")


def test_write_beyond_the_largest(t):
    """33 MiB in one WRITE: refused, and either skipped or the end of the connection."""
    server = serve(t)
    client = server.client()
    try:
        error = client.command(CMD_WRITE, 0, 33 * MIB, 0, bytes(33 * MIB))
        check(error in (EINVAL, EOVERFLOW, ENOSPC), f"error {error}")
        same_bytes(client.read(0, 512), DATA[:512], "data after that")
    except Closed:
        pass
    check_good_client(server)
    client = server.client()
    client.send(request_bytes(CMD_WRITE, 0, 0xFFFFFFFF, cookie=1))
    check_good_client(server)


def test_cookies(t):
    """Cookies are echoed whatever they are, twice in flight included."""
    server = serve(t)
    client = server.client()
    for cookie in (0, 0, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 63):
        client.send(request_bytes(CMD_READ, 0, 16, cookie=cookie))
    got = []
    for _ in range(5):
        cookie, error = client.reply_header()
        equal(error, 0, "error")
        client.recv(16)
        got.append(cookie)
    equal(sorted(got), [0, 0, 1 << 63, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF], "cookies")


def test_disconnect_finishes_what_is_in_flight(t):
    server = serve(t)
    client = server.client()
    block = content(9, 4096)
    for number in range(100):
        client.send(request_bytes(CMD_WRITE, number * 4096, 4096, cookie=number) + block)
    client.send(request_bytes(CMD_DISC, 123, 456, 0xFF, 0) + b"more bytes that nobody asked for")
    client.recv_until_closed()
    check_good_client(server, block * 100 + DATA[409600:])


def test_random_bytes(t):
    server = serve(t)
    check_good_client(server)
    before = server.descriptors()
    rng = random.Random(3)
    for number in range(60 if SANITIZED else 200):
        client = server.client(connect=number % 2 == 1)
        try:
            client.send(rng.randbytes(rng.randrange(1, 3000)))
        except Closed:
            pass
        client.close()
    check_descriptors(server, before)
    check_good_client(server)


def test_mutated_sessions(t):
    """A good session with one byte changed, for each of its bytes; its writes write what is there."""
    server = serve(t, "-r")
    rng = random.Random(4)
    for at in range(0, len(SESSION), 4 if SANITIZED else 1):
        session = bytearray(SESSION)
        session[at] ^= rng.randrange(1, 256)
        client = server.client(connect=False)
        client.send(bytes(session))
        client.sock.shutdown(socket.SHUT_WR)
        client.recv_until_closed()
        client.close()
    check_good_client(server)


def test_thousand_idle_connections(t):
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    server = serve(t)
    check_good_client(server)
    base = server.status_field("VmRSS")
    idle = [server.client() for _ in range(1000)]
    check_good_client(server)
    if not SANITIZED:
        grown = (server.status_field("VmRSS") - base) / 1000
        check(grown <= 32, f"an idle connection takes {grown} KiB, more than 32")
    for client in idle:
        client.close()
    check_good_client(server)


def test_out_of_descriptors(t):
    """More clients than descriptors: those that stall make room for the last one."""
    server = serve(t, prefix=("prlimit", "--nofile=40:40"))
    crowd = [server.client(connect=False) for _ in range(60)]
    crowd[-1].connect()
    same_bytes(crowd[-1].read(0, 512), DATA[:512], "data in a crowd")
    for client in crowd[:-1]:
        client.close()
    check_good_client(server)


def test_unknown_information(t):
    """Information that nobody knows of may be asked for."""
    server = serve(t)
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    replies = client.option(OPT_GO, go_data(b"", (0xABCD, 3)))
    equal(replies[-1][0], REP_ACK, "end of GO with an unknown information request")
    check(all(kind == REP_INFO for kind, _ in replies[:-1]), "replies to GO")
    client.close()


if __name__ == "__main__":
    main()
