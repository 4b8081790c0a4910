# SPDX-License-Identifier: BSD-3-Clause
"""Rows A89 to A96 of the table of hostile inputs: signals, descriptors, crowds, sockets."""
import os
import re
import resource
import signal
import socket
import stat
import time

from evnbd_test import (EVNBD, KIB, MIB, SANITIZED, activated, check, content, equal, refused,
                        refused_command, same_bytes, skip)
from hostile import (DATA, HEAD, MODES, SIZE, check_good_client, check_memory, row)
from nbd_raw import (CMD_FLAG_PAYLOAD_LEN, CMD_READ, CMD_WRITE, ESHUTDOWN, Closed, RawClient)

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(server):
    with open(f"/proc/{server.pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def check_rests(server):
    """A server that has nothing to do does nothing."""
    time.sleep(0.2)
    before = cpu_seconds(server)
    time.sleep(1)
    used = cpu_seconds(server) - before
    check(used <= 0.05, f"the server used {used:.2f} s of a second although it had nothing to do")


def stop_and_forget(stage, server):
    """The server ends in order; then a new one stands for it."""
    server.stop()
    check(not os.path.exists(server.unix), "the socket is left behind")
    stage.t.servers.remove(server)
    stage.servers = [entry for entry in stage.servers if entry[0] is not server]


@row("A89", "the end, with requests in flight and handshakes that stall")
def _(stage):
    t = stage.t
    for mode in MODES:
        path = t.file(f"stopped-{mode}", DATA)
        server = stage.serve(image=path, head=DATA[:HEAD])
        stalled = [stage.haggler(server) if number % 2 else stage.client(server) for number in range(50)]
        client = stage.client(server, mode)
        block = content(7, 4096)
        flags = CMD_FLAG_PAYLOAD_LEN if mode == "extended" else 0
        for number in range(200):
            client.send(client.request(CMD_WRITE, number * 4096, 4096, flags, number) + block)
        server.process.send_signal(signal.SIGTERM)
        answers = {}
        try:
            for number in range(200):
                answers.update(client.answers({number: None}))
        except Closed:
            pass
        stop_and_forget(stage, server)
        with open(path, "rb") as disk:
            for number, answer in answers.items():
                check(answer.error in (0, ESHUTDOWN), f"error {answer.error} of a WRITE")
                if answer.error == 0:
                    disk.seek(number * 4096)
                    same_bytes(disk.read(4096), block, f"what WRITE {number} was answered for")
        for other in stalled:
            other.recv_until_closed()
    stage.serve()


def storm(server, signals, seconds):
    """Thousands of signals a second. Returns how many were sent until the server was gone."""
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for signum in signals:
            try:
                os.kill(server.pid, signum)
            except (ProcessLookupError, FileNotFoundError, ValueError):
                return sent
            sent += 1
        if sent % 10 == 0:
            time.sleep(0.001)
        if server.process.poll() is not None:
            break
    return sent


@row("A90", "storms of signals")
def _(stage):
    t = stage.t
    server = stage.serve()
    client = stage.client(server, "simple")
    for at in range(0, SIZE, 512 * KIB):
        cookie = client.start(CMD_READ, at, 512 * KIB)
        storm(server, [signal.SIGUSR1], 0.1)
        answer = client.answers({cookie: (at, 512 * KIB)})[cookie]
        same_bytes(answer.content(at, 512 * KIB), DATA[at:at + 512 * KIB], "data in a storm")
    for signals in ([signal.SIGTERM], [signal.SIGHUP], [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]):
        path = t.file(f"storm{t.number()}", DATA)
        server = stage.serve(image=path, head=DATA[:HEAD])
        client = stage.client(server, "simple")
        block = content(8, 4096)
        client.write(0, block)
        for number in range(1, 100):
            client.start(CMD_WRITE, number * 4096, 4096, 0, block)
        pid = server.pid  # the pid file goes away
        server.pid_file = t.file(f"pid{t.number()}", b"%d\n" % pid)
        storm(server, signals, 0.15)
        done = 1
        try:
            while done < 100:
                check(client.reply_header()[1] in (0, ESHUTDOWN), "error of a WRITE")
                done += 1
        except Closed:
            pass
        stop_and_forget(stage, server)
        with open(path, "rb") as disk:
            same_bytes(disk.read(4096), block, "a WRITE that was answered before the storm")


@row("A91", "no descriptors left")
def _(stage):
    server = stage.serve(prefix=("prlimit", "--nofile=40:40"))
    busy = stage.client(server, "simple")
    crowd = [stage.client(server) for _ in range(80)]
    same_bytes(busy.read(0, 4096), DATA[:4096], "data for who was there before")
    # Young handshakes get their time, stalled ones make room; nothing spins.
    before = cpu_seconds(server)
    with server.client() as late:
        same_bytes(late.read(0, 4096), DATA[:4096], "data for the last of the crowd")
    used = cpu_seconds(server) - before
    check(used <= (2 if SANITIZED else 0.5), f"the server used {used:.2f} s to find room")
    # Clients in transmission keep their place, whoever comes.
    held = []
    for client in crowd:
        client.close()
    for _ in range(20):
        held.append(stage.client(server, "simple"))
    for client in held:
        same_bytes(client.read(0, 512), DATA[:512], "data for many")
    check_rests(server)


@row("A92", "ten thousand connections, then a good client")
def _(stage):
    count = 2000 if SANITIZED else 10000
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < count + 100:
        skip(f"{count} connections need more than {limits[1]} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    server = stage.serve("--handshake-limit=0", "-v")
    crowd = []
    for number in range(count):
        client = RawClient(server.unix)
        crowd.append(client)
        if number % 1000 == 0:
            check_good_client(server, DATA[:HEAD])
    check_good_client(server, DATA[:HEAD])
    check_memory(server, 64)
    check(server.log.count("\n") < 1000, "the crowd fills the log")
    for client in crowd:
        client.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@row("A94", "sockets that the parent did not pass, or passed wrong")
def _(stage):
    t = stage.t
    image, path = t.file("disk", DATA), t.path("passed.sock")
    listener, connected = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(path)
    datagram, pipe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), os.pipe()
    unconnected = socket.socket(socket.AF_INET)

    def refuse(passed, *options, count=None, says):
        keywords = activated(passed, count=count)
        refused_command([*keywords.pop("prefix"), EVNBD, "-t", "-f", "raw", *options, image],
                        [re.escape(says)], **keywords)

    refuse([unconnected], says="does not listen")
    listener.listen(8)
    connected.connect(path)
    for count in ("0", "x", "-1", "1x", "", "1025", "99999999999999999999"):
        refuse([listener], count=count, says=f"LISTEN_FDS is '{count}'")
    refuse([listener], count="2", says="fd = 4")
    with open(pipe[0], "rb") as reading, open(pipe[1], "wb"):
        refuse([reading], says="descriptor 3 is not a socket")
        refuse([listener, reading], says="descriptor 4 is not a socket")
    refuse([datagram], says="descriptor 3 is not a stream socket")
    refuse([connected], says="descriptor 3 is a socket that does not listen")
    for option, value in (("--socket", t.path("own.sock")), ("--port", "0"), ("--bind", "::1")):
        refuse([listener], f"{option}={value}", says=f"{option} cannot be used with socket activation")
    check(os.path.exists(path) and not os.path.exists(t.path("own.sock")), "files of sockets")
    for sock in (connected, datagram, unconnected):
        sock.close()
    server = t.serve(image, "-f", "raw", passed=[listener])
    stage.servers.append([server, DATA[:HEAD], server.descriptors()])


def same_file(path, before):
    """It is the one that it was."""
    now = os.lstat(path)
    equal((now.st_ino, now.st_mode, now.st_size), (before.st_ino, before.st_mode, before.st_size), path)


@row("A95", "places where a socket cannot be made")
def _(stage):
    t = stage.t
    image = t.file("disk", DATA)
    long_path = t.path("s" * 100)
    plain, directory, link = t.file("plain", b"precious"), t.path("directory"), t.path("link")
    os.mkdir(directory)
    os.symlink(plain, link)
    dangling = t.path("dangling")
    os.symlink(t.path("nothing"), dangling)
    for path, says in ((long_path, r"too long"), (plain, r"not a socket"), (directory, r"not a socket"),
                       (link, r"not a socket"), (dangling, r"."), (t.path("none/socket"), r"none/socket"),
                       ("/proc/socket", r"/proc/socket"), (plain + "/socket", r".")):
        before = os.lstat(path) if os.path.lexists(path) else None
        text = refused(t, image, "-f", "raw", "-k", path, says=[says])
        check("\n" not in text.strip(), f"more than a line: {text}")
        if before:
            same_file(path, before)
    equal(os.readlink(dangling), t.path("nothing"), "target of a link")
    # A live one stays, a stale one is replaced.
    server = stage.serve()
    before = os.lstat(server.unix)
    refused(t, image, "-f", "raw", "-k", server.unix, says=[r"another server"])
    same_file(server.unix, before)
    stale = t.path("stale")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stale)
    check(stat.S_ISSOCK(os.lstat(stale).st_mode), "the stale socket is none")
    stage.serve(image=image, head=DATA[:HEAD], unix=stale)


@row("A96", "urgent data, and a window that stays closed")
def _(stage):
    server = stage.serve(tcp=True)
    client = stage.client(server, "simple")
    for number in range(20):
        request = client.request(CMD_READ, number * 4096, 4096, 0, number)
        client.send(request[:number])
        # The byte is outside of the stream, wherever it comes.
        client.sock.send(b"!", socket.MSG_OOB)
        client.send(request[number:])
        answer = client.answers({number: (number * 4096, 4096)})[number]
        same_bytes(answer.content(number * 4096, 4096), DATA[number * 4096:][:4096], "data")
    deaf = RawClient.__new__(RawClient)
    deaf.__dict__.update(export=None, cookie=0, mode="simple")
    deaf.sock = socket.socket()
    deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    deaf.sock.settimeout(60)
    deaf.sock.connect((server.host, server.port))
    stage.clients.append(deaf)
    deaf.connect()
    for _ in range(100):
        deaf.start(CMD_READ, 0, MIB)
    check_good_client(server, DATA[:HEAD])
    check_rests(server)
    check_memory(server, 160)
    # When the window opens at last, all of it is there.
    for number in range(100):
        cookie, error = deaf.reply_header()
        equal((cookie, error), (number + 1, 0), "a reply")
        same_bytes(deaf.recv(MIB), DATA[:MIB], "its data")
