#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What -v tells of the life of the server and of its clients, and that it is bounded."""
import os
import re
import resource
import signal
import socket

from evnbd_test import EVNBD, MIB, cases, check, content, equal, main, need, qemu_img, run, wait_for
from nbd_raw import (CMD_READ, CMD_TRIM, CMD_WRITE, EINVAL, ENOSPC, EPERM, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO,
                     OPT_LIST, Closed, go_data)

DATA = content(1, MIB)
ME = f"pid {os.getpid()} uid {os.getuid()}"


def serve(t, *options, **where):
    return t.serve(t.file("disk", DATA), "-v", "-f", "raw", *options, **where)


def told(server, pattern, lines=1):
    """Waits for lines of the log that match."""
    def enough():
        return len(re.findall(pattern, server.log, re.M)) >= lines
    wait_for(enough, f"/{pattern}/ in the log:\n{server.log}")
    return re.findall(pattern, server.log, re.M)


def haggler(server):
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    return client


def test_the_export_is_told(t):
    server = serve(t, export="a disk")
    told(server, r"serving '.*/disk' \(raw, 1048576 bytes\) as export 'a disk'$")


def test_local_clients_are_named_by_process_and_user(t):
    server = serve(t)
    server.client().disconnect()
    told(server, f"client {ME} #1: connected to export ''$")
    server.client().disconnect()
    told(server, f"client {ME} #2: left export ''")


@cases("GO", "EXPORT_NAME")
def test_a_client_that_asks_for_an_unknown_export(t, option):
    server = serve(t, export="disk")
    with haggler(server) as client:
        if option == "GO":
            client.option(OPT_INFO, go_data(b"quiet"))
            client.option(OPT_GO, go_data(b"ot'her\n"))
            client.go(b"disk")
        else:
            try:
                client.option(OPT_EXPORT_NAME, b"ot'her\n")
            except Closed:
                pass
    told(server, f"client {ME} #1: (refused|closed in the handshake): "
         r"there is no export 'ot\\'her\\x0a'$")
    check("quiet" not in server.log, server.log)


def test_a_client_of_a_full_address(t):
    server = serve(t, "-e", "0", "--address-limit=1")
    with server.client(), haggler(server) as client:
        client.option(OPT_GO, go_data(b""))
        told(server, "#2: refused: there are as many clients from your address as are allowed$")


def test_refusals_are_bounded(t):
    server = serve(t)
    with haggler(server) as client:
        for number in range(500):
            client.option(OPT_GO, go_data(b"no%d" % number))
    told(server, r"more messages? about clients refused in the handshake")
    check(len(re.findall("refused: there is no", server.log)) < 250, server.log)


def limit_file_size():
    """Writes beyond 512 KiB fail, much as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB // 2, MIB // 2))


def test_failed_requests(t):
    """EFBIG, which is ENOSPC on the wire."""
    qemu_img("create", "-q", "-f", "qcow2", t.path("disk.qcow2"), "8M")
    server = t.serve(t.path("disk.qcow2"), "-v", "-f", "qcow2", preexec_fn=limit_file_size)
    with server.client() as client:
        equal(client.command(CMD_WRITE, MIB, MIB, payload=DATA), ENOSPC, "a WRITE that does not fit")
        client.disconnect()
    told(server, f"client {ME} #1: WRITE of export '' failed at byte {MIB}: File too large$")
    told(server, r"left export '' after 1 request, 1 failed, ")


def test_refused_requests(t):
    server = serve(t, "-r")
    with server.client() as client:
        equal(client.command(CMD_WRITE, 512, 512, payload=bytes(512)), EPERM, "WRITE")
        equal(client.command(CMD_TRIM, 2 * MIB, 512), EPERM, "TRIM")
        client.read(0, 512)
        client.disconnect()
    told(server, r"#1: WRITE of 512 bytes at 512 with flags 0x0 refused: .*\(EPERM\)$")
    told(server, r"left export '' after 3 requests, 2 failed, ")


def test_a_protected_header(t):
    server = t.serve(t.file("disk", DATA), "-v")
    with server.client() as client:
        equal(client.command(CMD_WRITE, 0, 512, payload=b"QFI\xfb\0\0\0\3" + bytes(504)), EPERM, "WRITE")
    told(server, r"#1: export '' was opened without a format: its first bytes must not become")


def test_failures_of_one_kind_do_not_hide_others(t):
    server = serve(t, "-r")
    with server.client() as client:
        for _ in range(300):
            equal(client.command(CMD_READ, 2 * MIB, 512), EINVAL, "READ past the end")
        client.disconnect()
    told(server, r"more messages? about requests that were refused within a second$")
    told(server, r"left export '' after 300 requests, 300 failed, ")
    check(len(re.findall("READ of 512", server.log)) < 150, server.log)


@cases("list", "info", "nothing")
def test_clients_that_only_ask(t, asked):
    server = serve(t)
    with haggler(server) as client:
        if asked == "list":
            client.option(OPT_LIST)
        if asked != "nothing":
            client.option(OPT_INFO, go_data(b""))
        client.option(OPT_ABORT)
    says = {"list": "for the list of exports", "info": "about an export", "nothing": "for nothing"}[asked]
    told(server, f"client {ME} #1: asked {says} and left$")


def test_other_peoples_list(t):
    need("qemu-nbd")
    server = serve(t)
    run("qemu-nbd", "--list", "-k", server.unix)
    run(EVNBD, "--list", "-k", server.unix)
    told(server, "asked for the list of exports and left$", lines=2)


def test_clients_that_connect_and_close(t):
    """Before the greeting could be sent, and with it unread: both are no failure of the server."""
    server = serve(t, "-e", "0")
    os.kill(server.pid, signal.SIGSTOP)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(server.unix)
    os.kill(server.pid, signal.SIGCONT)
    told(server, "closed in the handshake: the client closed the connection$", lines=3)
    with server.client(connect=False) as unread:
        wait_for(lambda: unread.sock.recv(1, socket.MSG_PEEK), "the greeting")
    told(server, "#4: closed in the handshake: the client closed the connection$")
    check("cannot" not in server.log, server.log)


def test_clients_that_break_off(t):
    server = serve(t)
    with server.client() as client:
        client.start(CMD_READ, 0, MIB)
    told(server, r"left export '' after \d+ requests?, .*: the client closed the connection(| without a goodbye)$")
    check("cannot" not in server.log, server.log)


def test_the_end_is_told(t):
    server = serve(t, persistent=False)
    server.client().disconnect()
    server.wait_end()
    told(server, "the last client left: exiting$")


def test_a_handshake_that_takes_too_long(t):
    server = serve(t, "--handshake-limit=1")
    with server.client(connect=False) as client:
        client.greeting()
        client.recv_until_closed()
    told(server, "has not finished its handshake within 1 s$")


if __name__ == "__main__":
    main()
