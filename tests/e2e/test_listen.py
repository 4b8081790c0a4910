#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Where the daemon listens: families of addresses, ports that the system chooses, and what it tells."""
import re
import socket

from evnbd_test import MIB, cases, check, content, equal, free_port, have_ipv6, main, same_bytes, skip
from nbd_raw import RawClient

DATA = content(1, MIB)


def serve(t, *options, **where):
    return t.serve(t.file("disk", DATA), "-f", "raw", *options, **where)


def told(server):
    """What the server says it listens on."""
    return re.findall(r"listening on (\S+)$", server.log, re.M)


def read_at(host, port):
    with RawClient((host, port)) as client:
        same_bytes(client.connect().read(0, 4096), DATA[:4096], f"the disk at {host}")


def port_of(address):
    return int(address.rsplit(":", 1)[1])


@cases(("::", True, True), ("", True, True), ("::1", False, True), ("0.0.0.0", True, False),
       ("127.0.0.1", True, False))
def test_families(t, address, ipv4, ipv6):
    if not have_ipv6():
        skip("no IPv6")
    server = serve(t, "-e", "2", f"--bind={address}", port=free_port())
    for host, served in (("127.0.0.1", ipv4), ("::1", ipv6)):
        try:
            read_at(host, server.port)
            check(served, f"-b '{address}' is served at {host}")
        except ConnectionRefusedError:
            check(not served, f"-b '{address}' is not served at {host}")


def test_both_families_have_one_port(t):
    server = serve(t, "-v", "-p", "0", "--bind=", port=1)
    equal(len(told(server)), 1, f"addresses told in {server.log}")
    for host in ["127.0.0.1", "::1"] if have_ipv6() else ["127.0.0.1"]:
        read_at(host, port_of(told(server)[0]))


def test_mapped_clients_are_named_by_their_ipv4_address(t):
    if not have_ipv6():
        skip("no IPv6")
    server = serve(t, "-v", "-b", "::", port=free_port())
    read_at("127.0.0.1", server.port)
    server.stop()
    check(re.search(r"client 127\.0\.0\.1:\d+: connected", server.log), server.log)


@cases("127.0.0.1", "localhost")
def test_a_port_that_the_system_chose_is_told(t, host):
    server = serve(t, "-v", "-p", "0", "-b", host, port=1)
    check(told(server), server.log)
    for address in told(server):
        check(port_of(address) > 0, server.log)
        read_at(address.rsplit(":", 1)[0].strip("[]"), port_of(address))


def test_the_socket_is_told(t):
    server = serve(t, "-v")
    equal(told(server), [server.unix], "where it listens")


def test_passed_sockets_are_told(t):
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix, \
            socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(t.path("passed"))
        abstract.bind(f"\0{t.path('abstract')}")
        for passed in (tcp, unix, abstract):
            passed.listen()
        server = serve(t, "-v", passed=(tcp, unix, abstract))
        equal(re.findall(r"listening on (.*)$", server.log, re.M),
              [f"127.0.0.1:{tcp.getsockname()[1]}", t.path("passed"), "descriptor 5"], "what is told")


def test_silent_by_default(t):
    equal(serve(t).log, "", "log")


if __name__ == "__main__":
    main()
