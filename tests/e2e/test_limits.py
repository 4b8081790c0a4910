#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Limits of the daemon: idle clients, clients of one address, descriptors, very many connections."""
import resource
import socket
import struct

from evnbd_test import (KIB, MIB, SANITIZED, cases, check, content, equal, free_port, main, need, run,
                        same_bytes, skip,
                        wait_for)
from nbd_raw import (OPT_GO, OPT_INFO, REP_ACK, REP_ERR_POLICY, RawClient, go_data, option_bytes)

SIZE = MIB
DATA = content(1, SIZE)


def serve(t, *options, **where):
    return t.serve(t.file("disk.raw", DATA), "-f", "raw", *options, **where)


def haggler(server):
    client = server.client(connect=False)
    client.greeting()
    client.client_flags()
    return client


def test_idle_timeout(t):
    """Who asks for nothing is disconnected, and the place is free; who works stays."""
    server = serve(t, "-e", "2", "--idle-timeout=1", "-v")
    idle, busy = server.client(), server.client()
    idle.sock.settimeout(0.05)
    ended = False
    while not ended:
        same_bytes(busy.read(0, 4096), DATA[:4096], "data for a client that works")
        try:
            ended = idle.sock.recv(1) == b""
        except TimeoutError:
            pass
    wait_for(lambda: "was idle for 1 s" in server.log, "the reason to be told")
    with server.client() as other:
        same_bytes(other.read(0, 512), DATA[:512], "data for the next one")
    same_bytes(busy.read(0, 512), DATA[:512], "data for a client that works")


def test_no_idle_timeout_by_default(t):
    server = serve(t)
    client = server.client()
    before = server.log
    client.sock.settimeout(2)
    try:
        check(False, f"{client.sock.recv(1)!r} came to a client that waits")
    except TimeoutError:
        pass
    client.sock.settimeout(60)
    same_bytes(client.read(0, 512), DATA[:512], "data after a pause")
    equal(server.log, before, "log")


def tcp_client(server, address):
    """A client that comes from another address of this machine."""
    client = RawClient.__new__(RawClient)
    client.__dict__.update(export=None, cookie=0, mode="simple")
    client.sock = socket.create_connection((server.host, server.port), timeout=60,
                                           source_address=(address, 0))
    return client


def test_address_limit(t):
    server = serve(t, "-e", "0", "--address-limit=2", host="127.0.0.1", port=free_port())
    first, second = (tcp_client(server, "127.0.0.1").connect() for _ in range(2))
    third = tcp_client(server, "127.0.0.1")
    third.greeting()
    third.client_flags()
    kind, text = third.option(OPT_GO, go_data())[-1]
    equal(kind, REP_ERR_POLICY, "reply to GO of the third one")
    check(b"address" in text, f"its text: {text!r}")
    equal(third.option(OPT_INFO, go_data())[-1][0], REP_ACK, "end of INFO")
    with tcp_client(server, "127.0.0.2").connect() as other:
        same_bytes(other.read(0, 512), DATA[:512], "data for another address")
    first.disconnect()
    third.go()
    same_bytes(third.read(0, 512), DATA[:512], "data for the third one")
    same_bytes(second.read(0, 512), DATA[:512], "data for the second one")


@cases(((), 2), (("-e", "0"), 0), (("-e", "0", "--address-limit=1"), 2), (("-e", "4", "--address-limit=2"), 0))
def test_several_connections_are_offered_where_they_are_let_in(t, options, status):
    """nbdinfo's answer: 0 for yes, 2 for no."""
    need("nbdinfo")
    server = serve(t, *options)
    equal(run("nbdinfo", "--can", "multi-conn", server.uri, status=status).stderr, "", "nbdinfo's messages")


def test_descriptors_are_raised(t):
    """The limit that a process starts with is low; the server takes what it may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    server = serve(t, "-e", "0", prefix=("prlimit", f"--nofile=100:{min(hard, 4096)}"))
    clients = [server.client() for _ in range(300)]
    for client in clients:
        same_bytes(client.read(0, 512), DATA[:512], "data for one of 300")
        client.close()


@cases("silent", "half-way")
def test_flood_of_handshakes(t, kind):
    """Thousands of handshakes that stall come and stay; good clients get in between them."""
    server = serve(t, "-e", "0", "--handshake-limit=0")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stalled = []
    part = struct.pack(">I", 3) + option_bytes(OPT_GO, b"", 100) if kind == "half-way" else b""
    for number in range(500 if SANITIZED else 2000):
        client = server.client(connect=False)
        client.send(part)
        stalled.append(client)
        if number % 50 == 0:
            with server.client() as good:
                same_bytes(good.read(0, 512), DATA[:512], "data for a good client")
    check(server.descriptors() < 400, f"the server has {server.descriptors()} descriptors open")
    for client in stalled:
        client.close()


def test_ten_thousand_idle_connections(t):
    """They are held, cost little, and do not keep a good client out."""
    count = 2000 if SANITIZED else 10000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < count + 200:
        skip(f"{count} connections need more descriptors than the {hard} that this process may have")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = serve(t, "-e", "0")
    with server.client() as client:
        client.read_all()
    base = server.status_field("VmRSS")
    idle = []
    for number in range(count):
        idle.append(server.client(mode=("simple", "structured", "extended")[number % 3]))
    with server.client() as client:
        same_bytes(client.read_all(), DATA, "data for a good client among them")
    grown = server.status_field("VmRSS") - base
    print(f"# {count} idle connections: {grown / count:.2f} KiB each, {server.status_field('VmRSS') // KIB} "
          f"MiB in all", flush=True)
    if not SANITIZED:
        check(grown / count <= 8, f"an idle connection takes {grown / count:.1f} KiB, more than 8")
    # Each of them is there and can be used.
    for client in idle[::97]:
        client.ask(0, 0, 512)
    before = server.descriptors()
    check(before >= count, f"only {before} descriptors are open")
    for client in idle:
        client.close()
    wait_for(lambda: server.descriptors() < 100, "the descriptors of those who left to be closed")
    with server.client() as client:
        same_bytes(client.read_all(), DATA, "data afterwards")


if __name__ == "__main__":
    main()
