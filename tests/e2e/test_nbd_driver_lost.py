#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Disks of NBD servers that go away, come back, change, or say things that they should not."""
import os
import signal
import socket
import struct
import threading
import time

from evnbd_test import (HELPERS, KIB, MIB, SANITIZED, cases, check, content, equal, main, need, qemu_img,
                        qemu_img_check, read_file, refused, run, same_bytes, skip, wait_for)
from nbd_raw import (CHUNK_DATA, CHUNK_DONE, CHUNK_HOLE, CHUNK_NONE, CHUNK_STATUS, CMD_BLOCK_STATUS, CMD_FLUSH,
                     CMD_READ, CMD_WRITE, EIO, IHAVEOPT, INFO_BLOCK_SIZE, INFO_EXPORT, NBDMAGIC, OPT_GO,
                     OPT_SET_META, OPT_STRUCTURED_REPLY, REP_ACK, REP_INFO, REP_META, SIMPLE_REPLY_MAGIC,
                     STRUCTURED_REPLY_MAGIC)
from nbd_servers import nbdkit, need_driver, qemu_nbd

SIZE = 3 * MIB


def options(server, *more, driver="raw"):
    return ["--image-opts", ",".join([f"driver={driver}", "file.driver=nbd", f"file.path={server.unix}", *more])]


def restart_while(server, running, rounds):
    """Kills the server and starts it again, so often, as long as something runs."""
    for number in range(rounds):
        time.sleep(0.1 + 0.05 * number)  # not waited for: somewhere in the load
        if not running():
            return number
        server.kill()
        time.sleep(0.05 * (number % 3))  # how long it is away: reconnecting sees it at other moments
        server.start()
    return rounds


@cases("raw", "qcow2", "one-connection")
def test_restarts_under_load(t, kind):
    """The server is killed again and again under three clients: no error, and nothing is lost."""
    need_driver(t)
    program = os.path.join(HELPERS, "random_writes")
    if not os.path.exists(program):
        skip("random_writes was not built")
    disk, driver = t.file("disk", content(1, SIZE)), "raw"
    model = t.file("model", read_file(disk))
    if kind == "qcow2":
        driver = "qcow2"
        qemu_img("create", "-q", "-f", "qcow2", disk, str(SIZE))
        os.truncate(disk, 3 * SIZE)
        model = t.file("model", bytes(SIZE))
    server = qemu_nbd(t, disk, "--discard=unmap", clients=1 if kind == "one-connection" else 8)
    front = t.serve(None, "-e", "3", "--discard=unmap", *options(server, "file.reconnect-delay=100", driver=driver))
    failed = []

    def load():
        done = run(program, front.uri, model, 3, 8, 600 if SANITIZED else 2000, 7, status=None)
        if done.returncode != 0:
            failed.append(done.stderr)

    thread = threading.Thread(target=load)
    thread.start()
    restarts = restart_while(server, thread.is_alive, 6)
    thread.join()
    check(not failed, f"a client failed: {failed} {front.log}")
    check(restarts > 0, "the server was never restarted under load")
    with front.client() as client:
        same_bytes(client.read_all(), read_file(model), "the disk")
    front.stop()
    server.stop()
    if kind == "qcow2":
        qemu_img_check(disk)
    else:
        same_bytes(read_file(disk), read_file(model), "the file")


def test_waits_then_fails_then_works(t):
    """Requests wait for reconnect-delay, fail after it, and work when the server is back."""
    need_driver(t)
    disk = t.file("disk", content(2, MIB))
    server = qemu_nbd(t, disk)
    front = t.serve(None, "-e", "2", *options(server, "file.reconnect-delay=1"))
    with front.client() as client:
        client.write(0, b"a" * 512)
        client.flush()
        server.kill()
        equal(client.command(CMD_WRITE, 512, 512, payload=b"b" * 512), EIO, "a write without a server")
        equal(client.command(CMD_FLUSH), EIO, "a flush without a server")
        check("is lost" in front.log and "not back after reconnect-delay=1" in front.log, front.log)
        server.start()
        wait_for(lambda: "again" in front.log.rpartition("requests fail")[2], "the connection")
        client.write(1024, b"c" * 512)
        client.flush()
        same_bytes(client.read(1024, 512), b"c" * 512, "what was written")


def test_without_delay(t):
    """Without reconnect-delay requests fail at once, until there is a connection again."""
    need_driver(t)
    disk = t.file("disk", content(3, MIB))
    server = qemu_nbd(t, disk)
    front = t.serve(None, *options(server))
    with front.client() as client:
        server.kill()
        equal(client.command(CMD_READ, 0, 512), EIO, "a read without a server")
        server.start()
        wait_for(lambda: client.command(CMD_READ, 0, 0x200) in (0, EIO) and "again" in front.log, "the server")


def restarted_as(t, change, says):
    need_driver(t)
    disk = t.file("disk", content(4, MIB))
    server = qemu_nbd(t, disk)
    front = t.serve(None, *options(server, "file.reconnect-delay=1"))
    with front.client() as client:
        server.kill()
        change(server, disk)
        server.start()
        equal(client.command(CMD_READ, 0, 512), EIO, "a read of another disk")
        wait_for(lambda: says in front.log, f"'{says}' in the log")
    front.stop()


def test_comes_back_smaller(t):
    restarted_as(t, lambda server, disk: os.truncate(disk, MIB // 2),
                 f"has {MIB // 2} bytes now, it had {MIB}")


def test_comes_back_read_only(t):
    restarted_as(t, lambda server, disk: server.words.insert(1, "-r"), "the export has not the abilities")


@cases("away", "stuck", "opening")
def test_stops(t, how):
    """A signal ends evnbd, whatever the server does."""
    need_driver(t)
    server = qemu_nbd(t, t.file("disk", content(5, MIB)), "-r")
    if how == "opening":
        server.pause()
        try:
            refused(t, None, "-r", *options(server, "file.open-timeout=0"), says=["did not finish the handshake"])
        finally:
            server.resume()
        return
    front = t.serve(None, "-r", *options(server, "file.reconnect-delay=1000"))
    client = front.client()
    if how == "away":
        server.kill()
    else:
        server.pause()
    client.start(CMD_READ, 0, 512)
    wait_for(lambda: how == "stuck" or "is lost" in front.log, "the loss")
    began = time.monotonic()
    os.kill(front.pid, signal.SIGTERM)
    front.wait_end(0)
    check(time.monotonic() - began < 60, "it took a minute")
    client.close()
    if how == "stuck":
        server.resume()


def test_open_timeout(t):
    """The first connection may be there only after some time."""
    need_driver(t)
    need("qemu-nbd")
    server = qemu_nbd(t, t.file("disk", content(6, MIB)), "-r")
    server.kill()
    threading.Timer(0.3, server.start).start()
    front = t.serve(None, "-r", *options(server, "file.open-timeout=60"))
    with front.client() as client:
        same_bytes(client.read(0, 512), content(6, MIB)[:512], "the disk")


def test_request_timeout(t):
    """A server that leaves a request unanswered counts as lost."""
    need_driver(t)
    server = nbdkit(t, "--filter=delay", "pattern", "1M", "delay-read=2")
    front = t.serve(None, "-r", *options(server, "file.request-timeout=1", "file.connections=1"))
    with front.client() as client:
        equal(client.command(CMD_READ, 0, 512), EIO, "a read that takes too long")
    check("left a request unanswered" in front.log, front.log)


def test_errors_are_passed_on(t):
    """An error of the server fails the request that met it, and nothing else."""
    need_driver(t)
    trigger = t.path("trigger")
    server = nbdkit(t, "--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=100%",
                    f"error-file={trigger}")
    front = t.serve(server.uri, "-f", "raw")
    with front.client() as client:
        t.file("trigger", b"")
        equal(client.command(CMD_WRITE, 0, 512, payload=bytes(512)), 28, "a write that the server refuses")
        os.unlink(trigger)
        client.write(0, b"x" * 512)
        same_bytes(client.read(0, 512), b"x" * 512, "the disk")


# ---- A server that does what it should not ----

CONTEXT = struct.pack(">I", 7)


class Fake:
    """A server in this process: one function of the connection after the handshake."""

    def __init__(self, t, talk, size=MIB, flags=0x1, blocks=None, info=True, structured=False):
        self.unix = t.path(f"fake{t.number()}.sock")
        self.talk, self.size, self.flags, self.blocks, self.info = talk, size, flags, blocks, info
        self.structured = structured
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.unix)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection = self.listener.accept()[0]
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            with connection:
                self.negotiate(connection)
                if self.talk:
                    self.talk(connection)
        except (OSError, struct.error):
            pass

    def negotiate(self, connection):
        connection.sendall(struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3))
        connection.recv(4, socket.MSG_WAITALL)
        while True:
            _, option, length = struct.unpack(">QII", connection.recv(16, socket.MSG_WAITALL))
            connection.recv(length, socket.MSG_WAITALL)
            if self.structured and option == OPT_SET_META:
                self.reply(connection, option, REP_META, CONTEXT + b"base:allocation")
            if self.structured and option in (OPT_STRUCTURED_REPLY, OPT_SET_META):
                self.reply(connection, option, REP_ACK)
                continue
            if option != OPT_GO:
                self.reply(connection, option, (1 << 31) + 1)
                continue
            if self.info:
                self.reply(connection, option, REP_INFO, struct.pack(">HQH", INFO_EXPORT, self.size, self.flags))
            if self.blocks:
                self.reply(connection, option, REP_INFO, struct.pack(">HIII", INFO_BLOCK_SIZE, *self.blocks))
            self.reply(connection, option, REP_ACK)
            return

    @staticmethod
    def reply(connection, option, kind, data=b""):
        connection.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)


def request(connection):
    header = connection.recv(28, socket.MSG_WAITALL)
    return struct.unpack(">IHHQQI", header)


def each_request(answer):
    def talk(connection):
        while True:
            *_, cookie, _, length = request(connection)
            answer(connection, cookie, length)
    return talk


def close_in_reply(connection, cookie, length):
    connection.sendall(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, cookie) + bytes(length // 2))
    connection.close()


HOSTILE = {
    "closes": lambda connection: None,
    "closes-in-reply": each_request(close_in_reply),
    "bad-cookie": each_request(lambda c, cookie, n: c.sendall(
        struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, cookie + 77) + bytes(n))),
    "bad-magic": each_request(lambda c, cookie, n: c.sendall(b"x" * 64)),
    "structured-unasked": each_request(lambda c, cookie, n: c.sendall(
        struct.pack(">IHHQI", 0x668E33EF, 1, 1, cookie, 8 + n) + bytes(8 + n))),
    "odd-error": each_request(lambda c, cookie, n: c.sendall(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0xFFFFFFFF, cookie))),
    "shutdown": each_request(lambda c, cookie, n: c.sendall(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 108, cookie))),
}


@cases(*[(name, delay) for name in HOSTILE for delay in (0, 1)])
def test_hostile(t, name, delay):
    """Whatever the server sends, a read gets an error in the end, and evnbd lives and stops."""
    need_driver(t)
    server = Fake(t, HOSTILE[name])
    front = t.serve(None, "-r", *options(server, f"file.reconnect-delay={delay}"))
    with front.client() as client:
        for _ in range(3):
            equal(client.command(CMD_READ, 0, 4 * KIB), EIO, "a read")
    front.stop()


def chunk(connection, cookie, kind, payload=b"", flags=CHUNK_DONE):
    connection.sendall(struct.pack(">IHHQI", STRUCTURED_REPLY_MAGIC, flags, kind, cookie, len(payload)) + payload)


def chunk_server(t, read, status):
    """A server of structured replies: what it sends to a READ, and the extents that it tells of a range."""
    def talk(connection):
        while True:
            _, _, command, cookie, offset, length = request(connection)
            if command == CMD_READ:
                for kind, payload in read(offset, length):
                    chunk(connection, cookie, kind, payload, 0)
                chunk(connection, cookie, CHUNK_NONE)
            elif command == CMD_BLOCK_STATUS:
                chunk(connection, cookie, CHUNK_STATUS, CONTEXT + status(offset, length))
            else:
                return
    return Fake(t, talk, structured=True)


def data_chunk(offset, length):
    return CHUNK_DATA, struct.pack(">Q", offset) + b"D" * length


def hole_chunk(offset, length):
    return CHUNK_HOLE, struct.pack(">QI", offset, length)


PARTS = {
    "whole": (lambda at, n: [data_chunk(at, n)], 0),
    "data-and-hole": (lambda at, n: [hole_chunk(at + n // 2, n - n // 2), data_chunk(at, n // 2)], 0),
    "nothing": (lambda at, n: [], EIO),
    "half": (lambda at, n: [data_chunk(at, n // 2)], EIO),
    "half-hole": (lambda at, n: [hole_chunk(at, n // 2)], EIO),
    "all-but-a-byte": (lambda at, n: [data_chunk(at, 1), data_chunk(at + 2, n - 2)], EIO),
    "overlap": (lambda at, n: [data_chunk(at, n), data_chunk(at, 1)], EIO),
}


@cases(*PARTS)
def test_parts_of_a_read(t, name):
    """A read of which the server leaves something out is an error, not zeroes."""
    need_driver(t)
    read, error = PARTS[name]
    server = chunk_server(t, read, lambda offset, length: struct.pack(">II", length, 0))
    front = t.serve(None, "-r", *options(server))
    with front.client() as client:
        equal(client.command(CMD_READ, 4096, 8 * KIB), error, "error of a READ")


@cases(1, 512)
def test_short_extents(t, length):
    """A server that tells next to nothing with each answer is not asked for ever."""
    need_driver(t)
    asked = []

    def status(offset, _):
        asked.append(offset)
        return struct.pack(">II", length, 3)

    server = chunk_server(t, lambda at, n: [hole_chunk(at, n)], status)
    front = t.serve(None, "-r", *options(server))
    with front.client(mode="structured") as client:  # its READ may be told of holes
        answer = client.ask(CMD_READ, 100, 64 * KIB)
    same_bytes(answer.content(100, 64 * KIB), bytes(64 * KIB), "the disk")
    check(0 < len(asked) <= 20, f"{len(asked)} questions, at {asked[:20]}")


BAD_HANDSHAKES = {
    "size": ({"size": (1 << 64) - 1}, ["size|too large|overflow|not tell"]),
    "odd-size": ({"size": MIB + 1, "blocks": (512, 4096, MIB)}, ["no multiple of the smallest block"]),
    "no-info": ({"info": False}, ["info|export|size|protocol"]),
    "flags": ({"flags": 0}, None),
    "minimum": ({"blocks": (3, 4096, MIB)}, None),
    "minimum-huge": ({"blocks": (1 << 31, 1 << 31, 1 << 31)}, None),
    "maximum-zero": ({"blocks": (1, 4096, 0)}, None),
    "maximum-below": ({"blocks": (4096, 4096, 512)}, None),
}


@cases(*BAD_HANDSHAKES)
def test_bad_handshake(t, name):
    """What cannot be is refused with a sentence, or not believed."""
    need_driver(t)
    what, says = BAD_HANDSHAKES[name]
    server = Fake(t, HOSTILE["closes"], **what)
    words = options(server)
    if says:
        refused(t, None, "-r", *words, says=says)
        return
    done = run("timeout", "-k", "2", "3", os.environ.get("EVNBD", "evnbd"), "-r", "-k", t.path("out"), *words,
               status=None)
    check(done.returncode in (0, 1, 124), f"{done.returncode}: {done.stderr}")


if __name__ == "__main__":
    main()
