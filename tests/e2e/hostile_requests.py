# SPDX-License-Identifier: BSD-3-Clause
"""Rows A60 to A87 and A97 to A99 of the table of hostile inputs: requests and their replies."""
import os
import socket
import struct
import time

from evnbd_test import GIB, KIB, MIB, SANITIZED, check, content, equal, need, same_bytes
from hostile import (DATA, HEAD, MODES, SIZE, check_good_client, check_memory, expect_closed, expect_error,
                     row)
from nbd_raw import (CHUNK_DONE, CHUNK_NONE, CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF,
                     CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN,
                     CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL,
                     EIO, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC,
                     Closed, extended_request_bytes, request_bytes)

FAR = 1 << 63
BASE = b"base:allocation"
RANGED = (CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS)
# The leak checker does not work under strace.
TRACED = {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}

# Memory that is not used costs nothing, but for a malloc that fills it.
UNFILLED = {**os.environ, "MALLOC_PERTURB_": "0"}


def all_modes(stage, server):
    """A client in each of the modes, with a context where there can be one."""
    for mode in MODES:
        yield stage.client(server, mode, () if mode == "simple" else (BASE,))


def read(client, offset, length, flags=0):
    answer = client.ask(CMD_READ, offset, length, flags)
    equal(answer.error, 0, f"error of a READ of {length} at {offset}")
    return answer.content(offset, length)


def check_content(client, data=DATA):
    """The export is this, for a client that has not lost its step."""
    for at in range(0, len(data), MIB):
        part = data[at:at + MIB]
        same_bytes(read(client, at, len(part)), part, f"the export from {at} on")


def big_disk(stage, size=5 * GIB):
    """A sparse raw image with some bytes in it."""
    path = stage.t.sparse_file(f"big{stage.t.number()}", size)
    with open(path, "r+b") as file:
        file.write(DATA)
        file.seek(size - SIZE)
        file.write(DATA)
    return path


@row("A60", "wrong magics of requests, and those of the other mode")
def _(stage):
    server = stage.serve()
    for mode, other in zip(MODES, (EXTENDED_REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC)):
        for magic in (REQUEST_MAGIC + 1, 0, 0x67446698, 0xFFFFFFFF, other):
            client = stage.client(server, mode)
            same_bytes(read(client, 0, 512), DATA[:512], "data before it")
            make = extended_request_bytes if mode == "extended" else request_bytes
            client.send(make(CMD_READ, 0, 512, magic=magic))
            expect_closed(client)


@row("A61", "magics of old protocols")
def _(stage):
    server = stage.serve()
    for mode in MODES:
        for magic in (0x12560953, 0x96744668):
            client = stage.client(server, mode)
            make = extended_request_bytes if mode == "extended" else request_bytes
            client.send(make(CMD_READ, 0, 512, magic=magic))
            expect_closed(client)


@row("A62", "commands that are not known")
def _(stage):
    server = stage.serve()
    for client in all_modes(stage, server):
        for command in (8, 9, 10, 255, 256, 0x7FFF, 0x8000, 0xFFFF):
            expect_error(client, [EINVAL], command, 0, 0)
            expect_error(client, [EINVAL], command, 0, 4096)
        check_content(client)


@row("A64", "FUA on what writes nothing")
def _(stage):
    server = stage.serve()
    for client in all_modes(stage, server):
        same_bytes(read(client, 512, 512, CMD_FLAG_FUA), DATA[512:1024], "READ with FUA")
        expect_error(client, [0], CMD_FLUSH, flags=CMD_FLAG_FUA)
        expect_error(client, [0], CMD_CACHE, 0, 512, CMD_FLAG_FUA)
        if client.mode != "simple":
            expect_error(client, [0], CMD_BLOCK_STATUS, 0, 512, CMD_FLAG_FUA)
        client.start(CMD_DISC, flags=CMD_FLAG_FUA)
        expect_closed(client)


@row("A65", "READ behind the end")
def _(stage):
    server = stage.serve()
    for client in all_modes(stage, server):
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0), (SIZE + 1, 1), (FAR, 512),
                               (2 * FAR - 512, 1024), (2 * FAR - 512, 512), (2 * FAR - 1, 1),
                               (2 * FAR - 1, 0xFFFFFFFF), (FAR - 1, 1)):
            expect_error(client, [EINVAL], CMD_READ, offset, length)
            expect_error(client, [EINVAL], CMD_CACHE, offset, length)
        check_content(client)


@row("A66", "requests of no length")
def _(stage):
    server = stage.serve()
    for client in all_modes(stage, server):
        for offset in (0, 1, SIZE - 1, SIZE):
            answer = expect_error(client, [0, EINVAL], CMD_READ, offset, 0)
            if client.mode != "simple" and not answer.error:
                equal(answer.types, [CHUNK_NONE], "chunks of an empty READ")
            for command in RANGED[1:]:
                expect_error(client, [0, EINVAL], command, offset, 0)
        check_content(client)


@row("A67", "READs of 32 MiB and more")
def _(stage):
    server = stage.serve(image=big_disk(stage), head=DATA[:HEAD])
    for client in all_modes(stage, server):
        got = read(client, 0, 32 * MIB)
        same_bytes(got[:SIZE], DATA, "the first bytes")
        equal(got.count(0, SIZE), len(got) - SIZE, "zeroes behind them")
        for length in (32 * MIB + 1, 64 * MIB, FAR // GIB % GIB + 2 ** 31, 2 ** 32 - 1):
            expect_error(client, [EINVAL, EOVERFLOW], CMD_READ, 0, length)
        check_content(client)
    for length in (2 ** 32, 5 * GIB):
        expect_error(client, [EINVAL, EOVERFLOW], CMD_READ, 0, length)
    check_content(client)
    check_memory(server, 128)


@row("A69", "WRITE behind the end")
def _(stage):
    server = stage.serve()
    for client in all_modes(stage, server):
        for offset, length in ((SIZE - 1, 2), (SIZE, 1), (SIZE, 4096), (SIZE + 1, 0), (FAR, 512),
                               (2 * FAR - 512, 1024), (SIZE - 4096, MIB)):
            wanted = [ENOSPC] if length else [ENOSPC, EINVAL, 0]
            expect_error(client, wanted, CMD_WRITE, offset, length, 0, b"\xee" * length)
            expect_error(client, wanted, CMD_WRITE_ZEROES, offset, length)
        check_content(client)


@row("A70", "writing to an export that is read-only")
def _(stage):
    server = stage.serve("-r")
    for client in all_modes(stage, server):
        for length in (1, 4096, SIZE):
            expect_error(client, [EPERM], CMD_WRITE, 0, length, 0, b"\xee" * length)
            for command in (CMD_TRIM, CMD_WRITE_ZEROES):
                expect_error(client, [EPERM], command, 0, length)
        check_content(client)


@row("A71", "TRIM and WRITE_ZEROES of 4 GiB, with edges that fit nothing")
def _(stage):
    size = 5 * GIB
    for command in (CMD_TRIM, CMD_WRITE_ZEROES):
        server = stage.serve("--discard=unmap", image=big_disk(stage, size), head=DATA[:HEAD])
        for client in all_modes(stage, server):
            lengths = [2 ** 32 - 1] + ([size - 2 * SIZE + 2000] if client.mode == "extended" else [])
            for length in lengths:
                offset = SIZE - 1001
                expect_error(client, [0, EOVERFLOW], command, offset, length)
                same_bytes(read(client, 0, offset), DATA[:offset], "bytes before it")
                end = offset + length
                if end > size - SIZE:
                    kept = end - (size - SIZE)
                    same_bytes(read(client, end, SIZE - kept), DATA[kept:], "bytes behind it")
        check_content_at_end(stage, server, size)


def check_content_at_end(stage, server, size):
    """All but the first bytes of the second piece of data, which rows may have cut into."""
    client = stage.client(server, "simple")
    same_bytes(client.read(size - SIZE + 4096, SIZE - 4096), DATA[4096:], "the end of the disk")


@row("A72", "NO_HOLE, and FAST_ZERO where it is not fast")
def _(stage):
    t = stage.t
    path = t.file("held", DATA)
    server = stage.serve("--discard=unmap", image=path, head=bytes(HEAD))
    for client in all_modes(stage, server):
        client.ask(CMD_WRITE, 0, SIZE, 0, DATA)
        expect_error(client, [0], CMD_WRITE_ZEROES, 0, SIZE, CMD_FLAG_NO_HOLE)
        expect_error(client, [0], CMD_FLUSH)
        check(os.stat(path).st_blocks * 512 >= SIZE, "zeroes that must not be a hole are one")
        equal(read(client, 0, SIZE).count(0), SIZE, "zeroes")
    need("strace")
    server = stage.serve("--aio=threads", image=t.file("slow", DATA), head=DATA[:HEAD], env=TRACED,
                         prefix=["strace", "-f", "-qq", "-o", t.path("calls"), "-e", "trace=fallocate",
                                 "-e", "inject=fallocate:error=EOPNOTSUPP"])
    for client in all_modes(stage, server):
        for flags in (CMD_FLAG_FAST_ZERO, CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE):
            expect_error(client, [ENOTSUP], CMD_WRITE_ZEROES, 0, SIZE, flags)
        check_content(client)
        # Without the flag it takes its time.
        expect_error(client, [0], CMD_WRITE_ZEROES, SIZE - 4096, 4096)
        client.ask(CMD_WRITE, SIZE - 4096, 4096, 0, DATA[-4096:])


@row("A74", "what was not offered")
def _(stage):
    server = stage.serve("-r")
    for client in all_modes(stage, server):
        for command in (CMD_TRIM, CMD_WRITE_ZEROES):
            for flags in (0, CMD_FLAG_FAST_ZERO, CMD_FLAG_NO_HOLE):
                expect_error(client, [EINVAL, EPERM], command, 0, 4096, flags)
        for flags in (CMD_FLAG_NO_HOLE, CMD_FLAG_REQ_ONE, CMD_FLAG_FAST_ZERO, 1 << 6, 1 << 15):
            expect_error(client, [EINVAL], CMD_READ, 0, 4096, flags)
            expect_error(client, [EINVAL], CMD_FLUSH, 0, 0, flags)
        if client.mode == "simple":
            expect_error(client, [EINVAL], CMD_READ, 0, 4096, CMD_FLAG_DF)
        check_content(client)
    plain = stage.client(server, "structured")
    expect_error(plain, [EINVAL], CMD_BLOCK_STATUS, 0, 4096)
    check_content(plain)


def check_status(client, context, offset, length, whole, flags=0):
    """The rules for extents; `whole` is the size of the export."""
    answer = client.ask(CMD_BLOCK_STATUS, offset, length, flags)
    equal(answer.error, 0, f"error of BLOCK_STATUS of {length} at {offset}")
    equal(list(answer.status), [context], "contexts")
    extents = answer.status[context]
    check(1 <= len(extents) <= 1 << 20, f"{len(extents)} extents")
    check(all(size > 0 for size, _ in extents), "an extent without length")
    check(sum(size for size, _ in extents[:-1]) < length, "the last extents are outside of the request")
    check(offset + sum(size for size, _ in extents) <= whole, "extents reach behind the end")
    if flags & CMD_FLAG_REQ_ONE:
        equal(len(extents), 1, "extents with REQ_ONE")
        check(extents[0][0] <= length, "an extent with REQ_ONE is longer than the request")
    return extents


@row("A75", "BLOCK_STATUS: not negotiated, past the end, empty, and of 4 GiB")
def _(stage):
    server = stage.serve(image=big_disk(stage), head=DATA[:HEAD])
    for mode in MODES:
        expect_error(stage.client(server, mode), [EINVAL], CMD_BLOCK_STATUS, 0, 4096)
    for mode in MODES[1:]:
        client = stage.client(server)
        client.greeting()
        client.client_flags()
        client.negotiate(mode)
        context = client.contexts(b"", [BASE])[BASE]
        client.go()
        for offset, length in ((5 * GIB, 1), (5 * GIB - 1, 2), (0, 0), (5 * GIB, 0), (FAR, 4096),
                               (2 * FAR - 1, 1)):
            expect_error(client, [EINVAL], CMD_BLOCK_STATUS, offset, length)
        for offset, length in ((0, 2 ** 32 - 1), (1, 2 ** 32 - 1), (GIB + 1, 2 ** 32 - 2), (4095, 3),
                               (5 * GIB - 1, 1), (3 * GIB - 1, 2 * GIB + 1)):
            check_status(client, context, offset, length, 5 * GIB)
            check_status(client, context, offset, length, 5 * GIB, CMD_FLAG_REQ_ONE)
        if mode == "extended":
            check_status(client, context, 0, 5 * GIB, 5 * GIB)
        check_content(client)


TIB = 1 << 40


def alternating_image(t):
    """
    A qcow2 image of 1 TiB, in which every second cluster of 4 KiB is a zero cluster and the others
    have the same bytes: there is one L2 table, to which all L1 entries point.
    """
    cluster, l1_size = 4096, TIB // (512 * 4096)
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 12, TIB, 0, l1_size, 5 * cluster,
                         cluster, 1, 0, 0, 0, 0, 0, 4, 104)
    parts = [header, struct.pack(">Q", 2 * cluster), struct.pack(">H", 1) * (5 + l1_size // 512),
             struct.pack(">QQ", 4 * cluster, 1) * 256, content(3, cluster),
             struct.pack(">Q", 3 * cluster) * l1_size]
    return t.file("alternating.qcow2", b"".join(part.ljust(-(-len(part) // cluster) * cluster, b"\0")
                                                for part in parts))


def serve_alternating(stage):
    """Returns the server and, for both modes, clients with the id of the context."""
    head = (content(3, 4096) + bytes(4096)) * (HEAD // 8192)
    server = stage.serve("-r", image=alternating_image(stage.t), image_format="qcow2", head=head)
    clients = []
    for mode in MODES[1:]:
        client = stage.haggler(server, mode)
        context = client.contexts(b"", [BASE])[BASE]
        client.go()
        clients.append((client, context))
    return server, clients


@row("A76", "BLOCK_STATUS with REQ_ONE among millions of extents")
def _(stage):
    _, clients = serve_alternating(stage)
    for client, context in clients:
        for offset in (0, 4096, 12345, TIB // 2, TIB - 8192, TIB - 1):
            extents = check_status(client, context, offset, min(2 ** 32 - 1, TIB - offset), TIB,
                                   CMD_FLAG_REQ_ONE)
            equal(extents[0], (4096 - offset % 4096, 3 if offset // 4096 % 2 else 0), f"status at {offset}")
            check_status(client, context, offset, 1, TIB, CMD_FLAG_REQ_ONE)


@row("A77", "BLOCK_STATUS of millions of extents")
def _(stage):
    server, clients = serve_alternating(stage)
    beside = stage.client(server, "simple")
    for client, context in clients:
        length = TIB if client.mode == "extended" else 2 ** 32 - 1
        cookies = [client.start(CMD_BLOCK_STATUS, 0, length) for _ in range(50)]
        # Nobody waits for that.
        same_bytes(beside.read(0, 4096), content(3, 4096), "data beside it")
        for answer in client.answers(dict.fromkeys(cookies)).values():
            equal(answer.error, 0, "error")
            extents = answer.status[context]
            check(0 < len(extents) <= 1 << 17, f"{len(extents)} extents")
            check(all(extent == (4096, number % 2 * 3) for number, extent in enumerate(extents)),
                  "the extents do not alternate")
    check_memory(server, 128)


@row("A79", "cookies that are the same, zero, all ones")
def _(stage):
    server = stage.serve()
    cookies = (0, 0, 2 * FAR - 1, 2 * FAR - 1, FAR, 7, 7, 7)
    for client in all_modes(stage, server):
        for cookie in cookies:
            client.send(client.request(CMD_FLUSH, 0, 0, 0, cookie))
        got = []
        for _ in cookies:
            if client.mode == "simple":
                cookie, error = client.reply_header()
                equal(error, 0, "error")
            else:
                cookie, flags, kind, _ = client.chunk()
                equal((flags & CHUNK_DONE, kind), (CHUNK_DONE, CHUNK_NONE), "flags and type of a chunk")
            got.append(cookie)
        equal(sorted(got), sorted(cookies), "cookies")
        check_content(client)


def flood(client, request, limit):
    """Sends the request again and again without reading, until nothing more is taken. The bytes."""
    client.sock.setblocking(False)
    sent = quiet = 0
    block = request * 1000
    while quiet < 30 and sent < limit:
        try:
            sent += client.sock.send(block[sent % len(request):])
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.01)
    client.sock.settimeout(60)
    return sent


@row("A80", "a hundred thousand requests, and replies that nobody reads")
def _(stage):
    server = stage.serve()
    for client in all_modes(stage, server):
        requests = [(CMD_READ, 64 * KIB), (CMD_FLUSH, 0)]
        if client.mode != "simple":
            requests.append((CMD_BLOCK_STATUS, SIZE))
        for command, length in requests:
            deaf = stage.client(server, client.mode, () if client.mode == "simple" else (BASE,))
            request = deaf.request(command, 0, length, 0, 7)
            sent = flood(deaf, request, 100000 * len(request))
            check(sent > 100 * len(request), f"only {sent} bytes of requests were taken")
            if command == CMD_READ:
                check(sent < 50000 * len(request), f"{sent} bytes of requests were taken without end")
            check_good_client(server, DATA[:HEAD])
        check_content(client)
    check_memory(server, 160)


@row("A81", "replies that are read byte by byte")
def _(stage):
    server = stage.serve()
    beside = stage.client(server, "simple")
    for mode in MODES:
        slow = stage.client(server, mode)
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(60):
            slow.start(CMD_READ, 0, MIB)
        for at in range(0, SIZE, 256 * KIB):
            slow.recv(1)
            same_bytes(beside.read(at, 256 * KIB), DATA[at:at + 256 * KIB], "data beside a slow reader")
    check_memory(server, 300)


@row("A82", "DISC with requests in flight, with garbage in it, and with bytes behind it")
def _(stage):
    server = stage.serve()
    block = content(9, 4096)
    for mode in MODES:
        client = stage.client(server, mode)
        flags = CMD_FLAG_PAYLOAD_LEN if mode == "extended" else 0
        for number in range(100):
            client.send(client.request(CMD_WRITE, number * 4096, 4096, flags, number) + block)
        client.send(client.request(CMD_DISC, FAR + 123, 456, 0xFFFF & ~CMD_FLAG_PAYLOAD_LEN) +
                    client.request(CMD_WRITE, SIZE - 4096, 4096, flags) + b"\xee" * 4096)
        client.recv_until_closed()
        with server.client() as good:
            same_bytes(good.read(0, 409600), block * 100, "what was in flight")
            same_bytes(good.read(SIZE - 4096, 4096), DATA[-4096:], "what was behind DISC")
            good.write(0, DATA[:409600])


@row("A84", "headers that are cut at every byte")
def _(stage):
    server = stage.serve()
    for client in all_modes(stage, server):
        size = len(client.request(CMD_READ))
        step = 5 if SANITIZED else 1
        for cut in range(1, 2 * size, step):
            requests = (client.request(CMD_READ, cut * 512, 512, 0, 1) +
                        client.request(CMD_READ, cut * 1024, 1024, 0, 2) +
                        client.request(CMD_FLUSH, cookie=3))
            client.send(requests[:cut])
            if cut % 7 == 0:
                time.sleep(0.002)
            client.send(requests[cut:])
            answers = client.answers({1: (cut * 512, 512), 2: (cut * 1024, 1024), 3: None})
            for cookie, offset, length in ((1, cut * 512, 512), (2, cut * 1024, 1024)):
                same_bytes(answers[cookie].content(offset, length), DATA[offset:offset + length], "data")
        check_content(client)


def expect_error_or_close(stage, server, wanted, command, length, flags, payload):
    """With extended headers: an error and then in step, or the end. Returns whether it was an error."""
    client = stage.client(server, "extended", (BASE,))
    cookie = client.start(command, 0, length, flags, payload)
    try:
        answer = client.answers({cookie: None})[cookie]
    except Closed:
        return False
    check(answer.error in wanted, f"error {answer.error} of command {command}, flags {flags:#x}")
    check_content(client)
    return True


@row("A85", "payloads where there must be none, or other ones")
def _(stage):
    server = stage.serve()
    for command in (CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, 77):
        for length in (1, 4096, 100000):
            expect_error_or_close(stage, server, [EINVAL], command, length, CMD_FLAG_PAYLOAD_LEN,
                                  bytes(length))
    # A WRITE without the flag has no payload, so it is not known what follows.
    expect_error_or_close(stage, server, [EINVAL], CMD_WRITE, 4096, 0, b"")
    ids = [struct.pack(">Q", SIZE) + b"".join(struct.pack(">I", n) for n in numbers)
           for numbers in ((), (0, 0), (1,), (0, 1), (63,), (64,), (0xFFFFFFFF,), range(64), range(100))]
    for payload in (*ids, b"", b"\0" * 7, struct.pack(">QI", SIZE, 0) + b"x", bytes(100000),
                    struct.pack(">QI", 0, 0), struct.pack(">QI", SIZE + 1, 0),
                    struct.pack(">QI", 2 * FAR - 1, 0)):
        expect_error_or_close(stage, server, [EINVAL], CMD_BLOCK_STATUS, len(payload),
                              CMD_FLAG_PAYLOAD_LEN, payload)
    good = stage.client(server, "extended", (BASE,))
    payload = struct.pack(">QI", SIZE, 0)
    answer = good.ask(CMD_BLOCK_STATUS, 0, len(payload), CMD_FLAG_PAYLOAD_LEN, payload)
    equal((answer.error, list(answer.status)), (0, [0]), "error and contexts of a good payload")
    # Such a length is not skipped, but nothing is kept of it either.
    client = stage.client(server, "extended")
    client.send(client.request(CMD_WRITE, 0, 2 * FAR - 1, CMD_FLAG_PAYLOAD_LEN, 1) + bytes(100000))
    expect_closed(client, at_most=1000)


def shrunk_disk(stage):
    """A server whose image ends in the middle, after it was opened."""
    path = stage.t.file(f"shrunk{stage.t.number()}", DATA)
    server = stage.serve(image=path, head=DATA[:HEAD])
    os.truncate(path, SIZE // 2)
    return server


@row("A86", "a disk that fails in the middle of a simple READ")
def _(stage):
    server = shrunk_disk(stage)
    for offset, length in ((SIZE // 2, 4096), (SIZE // 2 - 2048, 4096), (SIZE // 2 - 100000, 200000),
                           (0, SIZE), (SIZE - 512, 512)):
        client = stage.client(server, "simple")
        cookie = client.start(CMD_READ, offset, length)
        try:
            answer = client.answers({cookie: (offset, length)})[cookie]
            equal((answer.error, answer.data), (EIO, []), f"READ of {length} at {offset}")
            same_bytes(read(client, 0, 4096), DATA[:4096], "data after the error")
        except Closed:  # the header was out already
            pass


@row("A87", "a disk that fails in the middle of a structured READ")
def _(stage):
    server = shrunk_disk(stage)
    for client in list(all_modes(stage, server))[1:]:
        for offset, length in ((SIZE // 2, 4096), (SIZE // 2 - 2048, 4096), (SIZE // 2 - 100000, 200000),
                               (0, SIZE), (SIZE - 512, 512)):
            answer = client.ask(CMD_READ, offset, length)
            equal(answer.error, EIO, f"error of a READ of {length} at {offset}")
            check(answer.text, "the error has no text")
            if answer.error_offset is not None:
                check(offset <= answer.error_offset < offset + length, f"offset {answer.error_offset}")
                for at, data in answer.data:
                    good = data[:max(0, answer.error_offset - at)]
                    same_bytes(good, DATA[at:at + len(good)], "data before the error")
            same_bytes(read(client, 0, 4096), DATA[:4096], "data after the error")


@row("A97", "what one connection writes, another makes durable and a third one reads")
def _(stage):
    server = stage.serve()
    clients = [stage.client(server, MODES[number % 3]) for number in range(16)]
    for number, writer in enumerate(clients):
        other, reader = clients[(number + 5) % 16], clients[(number + 11) % 16]
        data = content(100 + number, 128 * KIB)
        expect_error(writer, [0], CMD_WRITE, number * 128 * KIB, len(data), 0, data)
        if number % 2:
            expect_error(other, [0], CMD_FLUSH)
        else:
            expect_error(other, [0], CMD_WRITE, SIZE - 512, 512, CMD_FLAG_FUA, bytes(512))
        same_bytes(read(reader, number * 128 * KIB, len(data)), data, "what another one wrote")
    stage.expect_head(server, content(100, HEAD * 2)[:HEAD])


@row("A98", "many WRITEs of 32 MiB of which the headers come, or a part")
def _(stage):
    part = content(200, MIB)
    for sent in (0, 24):
        server = stage.serve(image=big_disk(stage), head=DATA[:HEAD], env=UNFILLED)
        crowd = [stage.client(server, MODES[number % 3]) for number in range(20)]
        for client in crowd:
            flags = CMD_FLAG_PAYLOAD_LEN if client.mode == "extended" else 0
            client.send(client.request(CMD_WRITE, 64 * MIB, 32 * MIB, flags, 7) + sent * part)
        for good in all_modes(stage, server):
            same_bytes(read(good, 0, SIZE), DATA, "4 MiB, for a good client")
            expect_error(good, [0], CMD_WRITE, 16 * MIB, SIZE, 0, DATA)
            same_bytes(read(good, 16 * MIB, SIZE), DATA, "4 MiB that it has written")
        last = crowd[0]
        last.send((32 - sent) * part)
        equal(last.answers({7: None})[7].error, 0, "error of a WRITE whose rest has come")
        same_bytes(read(last, 64 * MIB, 32 * MIB), 32 * part, "what it has written")
        check_memory(server, 420)


@row("A99", "many READs of 32 MiB of which nothing is taken")
def _(stage):
    data = DATA * (32 * MIB // SIZE)
    image = stage.t.file(f"disk{stage.t.number()}", data)
    server = stage.serve("--cache=none", image=image, head=DATA[:HEAD], env=UNFILLED)
    for number in range(60):
        client = stage.client(server, MODES[number % 3])
        flags = CMD_FLAG_DF if number % 2 and client.mode != "simple" else 0
        for cookie in (7, 8):
            client.send(client.request(CMD_READ, 0, 32 * MIB, flags, cookie))
    for good in all_modes(stage, server):
        same_bytes(read(good, 0, SIZE), DATA, "4 MiB, for a good client")
        same_bytes(read(good, 0, len(data)), data, "32 MiB, for a good client")
    check_memory(server, 420)
