#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The process: background, streams, pid file, sockets, signals, end."""
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import time

from evnbd_test import (EVNBD, HANG, MIB, activated, cases, check, content, ended, equal, free_port,
                        main, need, read_file, refused, refused_command, run, same_bytes, wait_for)
from nbd_raw import CMD_READ, CMD_WRITE, Closed, RawClient, request_bytes

# The leak checker does not work under strace.
TRACED = {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}
STALL = 32 * MIB  # more than socket buffers hold


class Background:
    """An evnbd started with --fork. Its parent's CompletedProcess is in `parent`."""

    def __init__(self, case, image, *options, **popen):
        stem = case.path(f"background{case.number()}")
        self.unix, self.pid_file = stem + ".sock", stem + ".pid"
        self.command = [EVNBD, "--fork", "-k", self.unix, f"--pid-file={self.pid_file}", *options,
                        image]
        # To a file: a pipe that a daemon keeps open would not end.
        with open(stem + ".err", "w+b") as log:
            self.parent = subprocess.run(self.command, stdin=subprocess.DEVNULL, timeout=HANG,
                                         stdout=log, stderr=log, check=False, **popen)
        self.log_file = stem + ".err"
        case.servers.append(self)
        equal(self.parent.returncode, 0, f"exit status of the parent ({self.log})")
        self.pid = int(read_file(self.pid_file))

    @property
    def log(self):
        return read_file(self.log_file).decode()

    def alive(self):
        return not ended(self.pid)

    def client(self):
        return RawClient(self.unix).connect()

    def stop(self):
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
        wait_for(lambda: not self.alive(), "the daemon to end")

    def kill(self):
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)


def raw_disk(t, seed=1, size=MIB):
    return t.file(f"disk{t.number()}", content(seed, size))


def locked_by_another(path):
    """Whether a process has a write lock on the file."""
    with open(path, "rb") as file:
        query = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, query))
    return answer[0] != fcntl.F_UNLCK


# Background.

def test_fork(t):
    daemon = Background(t, raw_disk(t), "-f", "raw", "-t")
    equal(daemon.log, "", "messages")
    with daemon.client() as client:
        same_bytes(client.read_all(), content(1, MIB), "the disk")
    proc = f"/proc/{daemon.pid}"
    equal(os.readlink(f"{proc}/cwd"), "/", "directory")
    equal([os.readlink(f"{proc}/fd/{fd}") for fd in range(3)], ["/dev/null"] * 3, "streams")
    equal(os.getsid(daemon.pid), daemon.pid, "session")
    check(os.path.basename(os.path.realpath(EVNBD)) == os.path.basename(
        os.readlink(f"{proc}/exe")), "the pid is another program's")
    daemon.stop()
    equal([os.path.exists(daemon.unix), os.path.exists(daemon.pid_file)], [False, False],
          "socket and pid file after the end")


def test_fork_verbose_keeps_stderr(t):
    daemon = Background(t, raw_disk(t), "-f", "raw", "-t", "-v")
    equal(os.readlink(f"/proc/{daemon.pid}/fd/2"), daemon.log_file, "standard error")
    check("serving" in daemon.log, daemon.log)


def test_fork_with_a_warning_succeeds(t):
    daemon = Background(t, raw_disk(t), "-t")
    check("WARNING: Image format was not specified" in daemon.log, daemon.log)
    with daemon.client() as client:
        equal(client.export.size, MIB, "size")


def test_fork_serves_before_the_parent_ends(t):
    for _ in range(5):
        daemon = Background(t, raw_disk(t), "-f", "raw")
        daemon.client().disconnect()  # connects at once
        wait_for(lambda d=daemon: not d.alive(), "the daemon to end after its client")


def test_fork_resolves_relative_names_first(t):
    raw_disk(t)
    done = run(os.path.realpath(EVNBD), "--fork", "-k", t.path("sock"), "--pid-file=pid", "-f",
               "raw", "disk1", cwd=t.dir)
    equal(done.stderr, "", "messages")
    pid = int(read_file(t.path("pid")))
    with RawClient(t.path("sock")) as client:
        same_bytes(client.connect().read_all(), content(1, MIB), "the disk")
        client.disconnect()
    wait_for(lambda: not os.path.exists(t.path("pid")), "the pid file to go")
    check(not os.path.exists("/pid"), "a pid file in the root directory")
    wait_for(lambda: ended(pid), "the daemon to end")


@cases("missing", "format", "socket", "pid-file")
def test_fork_failure_is_told(t, what):
    image = raw_disk(t)
    words = {"missing": [t.path("none")], "format": ["-f", "qcow2", image],
             "socket": ["-f", "raw", "-k", t.path("none/sock"), image],
             "pid-file": ["-f", "raw", f"--pid-file={t.path('none/pid')}", image]}[what]
    before = sorted(os.listdir(t.dir))
    message = refused_command([EVNBD, "--fork", "-k", t.path("sock"), *words])
    check(message.startswith(f"{os.path.basename(EVNBD)}: "), message)
    equal(sorted(os.listdir(t.dir)), before, "files")


@cases("pipe2", "clone", "setsid", "chdir", "dup2", "socket", "bind", "listen", "ftruncate",
       "pwritev2")
def test_fork_undoes_what_it_did(t, call):
    """Each call of the start fails in turn: told, exit status 1, and nothing is left behind."""
    need("strace")
    image = raw_disk(t)
    before = sorted(os.listdir(t.dir))
    done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
               f"inject={call}:error=EIO:when=1", EVNBD, "--fork", "-f", "raw", "-k", t.path("sock"),
               f"--pid-file={t.path('pid')}", image, status=1, env=TRACED)
    check("Input/output error" in done.stderr, done.stderr)
    equal(sorted(os.listdir(t.dir)), before, "files")


# Standard streams.

@cases((0,), (1,), (2,), (0, 1, 2))
def test_closed_streams(t, *closed):
    """The image must not become descriptor 2, or messages would be written into it."""
    image = raw_disk(t)
    closing = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
    server = t.serve(None, "-T", "nbd_*", image,
                     prefix=["sh", "-c", f'exec "$@" {closing}', "sh"])
    with server.client() as client:
        client.write(512, b"x" * 512)
    server.stop()
    wanted = content(1, MIB)
    same_bytes(read_file(image), wanted[:512] + b"x" * 512 + wanted[1024:], "the image")


# The pid file.

def test_pid_file(t):
    server = t.serve(raw_disk(t), "-f", "raw")
    equal(read_file(server.pid_file), b"%d\n" % server.process.pid, "pid file")
    equal(stat.S_IMODE(os.stat(server.pid_file).st_mode), 0o600, "mode")
    check(locked_by_another(server.pid_file), "the pid file is not locked")
    server.stop()
    check(not os.path.exists(server.pid_file), "the pid file is left behind")


def test_pid_file_of_a_dead_process_is_taken_over(t):
    image = raw_disk(t)
    pid_file = t.file(f"server{t.numbers + 1}.pid", b"999999999 and more than a number is long")
    server = t.serve(image, "-f", "raw")
    equal(server.pid_file, pid_file, "the pid file's path")
    equal(read_file(pid_file), b"%d\n" % server.process.pid, "pid file")


def test_pid_file_of_a_live_process_is_left_alone(t):
    first = t.serve(raw_disk(t), "-f", "raw")
    refused(t, raw_disk(t), "-f", "raw", f"--pid-file={first.pid_file}", says=["running process"])
    equal(read_file(first.pid_file), b"%d\n" % first.process.pid, "pid file")


def test_pid_file_of_somebody_else_is_not_removed(t):
    server = t.serve(raw_disk(t), "-f", "raw")
    os.unlink(server.pid_file)
    t.file(os.path.basename(server.pid_file), b"other\n")
    server.process.terminate()
    server.wait_end()
    equal(read_file(server.pid_file), b"other\n", "the other's pid file")


# Sockets.

def test_live_socket_is_not_taken(t):
    first = t.serve(raw_disk(t, 1), "-f", "raw")
    before = os.stat(first.unix)
    refused_command([EVNBD, "-f", "raw", "-k", first.unix, raw_disk(t, 2)], [first.unix, "another server"])
    equal(os.stat(first.unix).st_ino, before.st_ino, "the socket")
    with first.client() as client:
        same_bytes(client.read_all(), content(1, MIB), "the first disk")


def test_live_socket_of_a_full_server_is_not_taken(t):
    """One whose backlog is full does not answer, but lives."""
    path = t.path("sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        filling = []
        for _ in range(8):
            filler = socket.socket(socket.AF_UNIX)
            filler.setblocking(False)
            filling.append(filler)
            try:
                filler.connect(path)
            except BlockingIOError:
                break
        refused_command([EVNBD, "-f", "raw", "-k", path, raw_disk(t)], [path, "another server"])
        for filler in filling:
            filler.close()


def test_stale_socket_is_replaced(t):
    first = t.serve(raw_disk(t, 1), "-f", "raw")
    first.kill()
    check(os.path.exists(first.unix), "a killed server has removed its socket")
    second = t.serve(raw_disk(t, 2), "-f", "raw", unix=first.unix)
    with second.client() as client:
        same_bytes(client.read_all(), content(2, MIB), "the second disk")
    t.servers.remove(first)


@cases("file", "directory", "fifo", "link")
def test_what_is_no_socket_is_left_alone(t, kind):
    path = t.path("sock")
    if kind == "file":
        t.file("sock", b"precious")
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.symlink(t.file("target", b"precious"), path)
    before = os.lstat(path)
    refused_command([EVNBD, "-f", "raw", "-k", path, raw_disk(t)], [path])
    equal(os.lstat(path), before, "what was there")


def test_only_the_own_socket_is_unlinked(t):
    first = t.serve(raw_disk(t, 1), "-f", "raw")
    os.unlink(first.unix)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(first.unix)
        inode = os.stat(first.unix).st_ino
        first.stop()
        equal(os.stat(first.unix).st_ino, inode, "the other's socket")


def test_port_in_use(t):
    port = free_port()
    t.serve(raw_disk(t), "-f", "raw", port=port)
    refused_command([EVNBD, "-f", "raw", "-b", "127.0.0.1", "-p", str(port), raw_disk(t)],
                    [str(port), "in use"])


def test_port_is_free_at_once_after_the_end(t):
    port = free_port()
    for _ in range(2):
        server = t.serve(raw_disk(t), "-f", "raw", port=port)
        client = server.client()
        server.process.terminate()
        client.recv_until_closed()
        client.close()
        server.wait_end()


def test_image_in_use(t):
    image = raw_disk(t)
    t.serve(image, "-f", "raw")
    refused(t, image, "-f", "raw", says=[image, "lock"])


def test_image_is_checked_before_the_socket_appears(t):
    """Under strace: no bind() when the image is bad."""
    need("strace")
    done = run("strace", "-f", "-e", "trace=bind,listen", "-o", t.path("calls"), EVNBD, "-k",
               t.path("sock"), t.path("none"), status=None, env=TRACED)
    equal(done.returncode, 1, "exit status")
    check(b"bind(" not in read_file(t.path("calls")), "it was listening")


# The end.

@cases("SIGTERM", "SIGINT", "SIGHUP")
def test_signals_end_in_order(t, name):
    image = raw_disk(t)
    server = t.serve(image, "-f", "raw", "--cache=unsafe")
    client = server.client()
    client.write(0, b"w" * 4096)
    server.stop(getattr(signal, name))
    equal(client.recv_until_closed(), b"", "what an idle client gets")
    equal([os.path.exists(server.unix), os.path.exists(server.pid_file)], [False, False],
          "socket and pid file after the end")
    same_bytes(read_file(image), b"w" * 4096 + content(1, MIB)[4096:], "the image")


def test_signal_without_a_client(t):
    t.serve(raw_disk(t), "-f", "raw", persistent=False).stop()


def test_signal_during_a_handshake(t):
    server = t.serve(raw_disk(t), "-f", "raw")
    with server.client(connect=False) as client:
        client.greeting()
        server.stop()
        client.recv_until_closed()


def test_what_was_asked_before_a_signal_is_answered(t):
    server = t.serve(raw_disk(t, 1, 4 * MIB), "-f", "raw")
    with server.client() as client:
        client.send(b"".join(request_bytes(CMD_READ, i * 65536, 65536, cookie=i)
                             for i in range(32)))
        client.recv(16 + 65536)
        server.process.terminate()
        rest = client.recv_until_closed()
    server.wait_end()
    # Answered in full or refused in an orderly way, but not cut within a reply.
    while rest:
        magic, error, cookie = struct.unpack(">IIQ", rest[:16])
        equal(magic, 0x67446698, "magic of a reply")
        length = 0 if error else 65536
        same_bytes(rest[16:16 + length], content(1, 4 * MIB)[cookie * 65536:][:length], "a reply")
        rest = rest[16 + length:]


def stalled_client(server):
    """A client that has asked for much and does not read the reply."""
    client = server.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.start(CMD_READ, 0, STALL)
    client.start(CMD_READ, 0, STALL)
    client.recv(16)
    return client


def test_stalled_client_does_not_keep_the_server(t):
    server = t.serve(t.sparse_file("disk", STALL), "-f", "raw")
    with stalled_client(server):
        server.stop()


def test_second_signal_ends_at_once(t):
    server = t.serve(t.sparse_file("disk", STALL), "-f", "raw", "-v")
    with stalled_client(server):
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in server.log, "the server to take the signal")
        # What follows at once belongs to the first signal.
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        equal(server.process.poll(), None, "exit status after signals in a row")
        server.process.send_signal(signal.SIGINT)
        server.wait_end(status=1)
    t.servers.remove(server)
    check(not os.path.exists(server.pid_file), "the pid file is left behind")


def test_ends_with_its_last_client(t):
    image = raw_disk(t)
    server = t.serve(image, "-f", "raw", persistent=False)
    with server.client() as client:
        client.write(0, b"w" * 4096)
        client.disconnect()
    server.wait_end()
    check(not os.path.exists(server.unix), "the socket is left behind")
    same_bytes(read_file(image)[:4096], b"w" * 4096, "what was written")


def test_ends_with_the_last_of_many(t):
    server = t.serve(raw_disk(t), "-f", "raw", "-e", "3", persistent=False)
    clients = [server.client() for _ in range(3)]
    clients[1].disconnect()
    clients[0].disconnect()
    clients[2].read(0, 512)
    equal(server.process.poll(), None, "exit status while a client is there")
    clients[2].close()  # without DISC
    server.wait_end()


@cases("connect-and-close", "after-greeting", "garbage", "abort")
def test_a_probe_does_not_end_it(t, kind):
    server = t.serve(raw_disk(t), "-f", "raw", persistent=False)
    with server.client(connect=False) as probe:
        if kind != "connect-and-close":
            probe.greeting()
        if kind == "garbage":
            try:
                probe.send(b"GET / HTTP/1.0\r\n\r\n")
                probe.recv_until_closed()
            except Closed:
                pass
        if kind == "abort":
            probe.client_flags()
            probe.send(struct.pack(">QII", 0x49484156454F5054, 2, 0))
            probe.recv_until_closed()
    with server.client() as client:
        same_bytes(client.read_all(), content(1, MIB), "the disk")
        client.disconnect()
    server.wait_end()


def test_persistent_goes_on(t):
    server = t.serve(raw_disk(t), "-f", "raw")
    for _ in range(3):
        server.client().disconnect()
    equal(server.process.poll(), None, "exit status")


def listening(family, address):
    sock = socket.socket(family)
    sock.bind(address)
    sock.listen(8)
    return sock


def test_passed_sockets_are_served(t):
    """A client that connected before the server was there is served too; the file stays."""
    path = t.path("passed.sock")
    sockets = [listening(socket.AF_UNIX, path), listening(socket.AF_INET, ("127.0.0.1", 0))]
    image = t.file("disk", b"\x5a" * 4096)
    early = socket.socket(socket.AF_UNIX)
    early.connect(path)
    server = t.serve(image, "-f", "raw", "-e", "0", passed=sockets)
    equal(early.recv(8), b"NBDMAGIC", "greeting of the early client")
    early.close()
    for address in (path, sockets[1].getsockname()):
        client = RawClient(address).connect(b"", "simple")
        equal(client.read(0, 4096), b"\x5a" * 4096, f"content over {address}")
        client.disconnect()
    server.stop()
    check(os.path.exists(path), "the socket's file was removed, which is another's")


def test_sockets_of_another_process(t):
    """LISTEN_PID names somebody else: the socket is not ours, and the option is."""
    with listening(socket.AF_UNIX, t.path("passed.sock")) as sock:
        server = t.serve(raw_disk(t), "-f", "raw", **activated([sock], pid_offset=1))
        with server.client() as client:
            equal(len(client.read(0, 512)), 512, "length of a read")


def test_broken_pipe_is_survived(t):
    server = t.serve(t.sparse_file("disk", STALL), "-f", "raw")
    stalled_client(server).close()
    with server.client() as client:
        equal(len(client.read(0, 512)), 512, "length of a read")


def test_disk_that_fails_to_write_back(t):
    """A failed flush at the end is an exit status, not silence."""
    need("strace")
    image = raw_disk(t)
    server = t.serve(image, "-f", "raw", "--aio=threads",
                     prefix=["strace", "-f", "-qq", "-o", t.path("calls"), "-e",
                             "trace=fdatasync", "-e", "inject=fdatasync:error=EIO"], env=TRACED)
    with server.client() as client:
        equal(client.command(CMD_WRITE, 0, 512, payload=bytes(512)), 0, "WRITE")
    os.kill(server.pid, signal.SIGTERM)
    equal(server.process.wait(HANG), 1, f"exit status ({server.log})")
    check(os.strerror(errno.EIO) in server.log and image in server.log, server.log)
    t.servers.remove(server)


if __name__ == "__main__":
    main()
