#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Access rules: who is let in by --allow, what the others see, and rules that are refused."""
import os
import sys

from evnbd_test import (MIB, cases, check, content, equal, free_port, have_ipv6, main, qemu_img,
                        refused, run, same_bytes, skip)
from nbd_raw import (OPT_GO, OPT_INFO, OPT_LIST, REP_ACK, REP_ERR_POLICY, REP_SERVER, go_data)

UID, GID = os.getuid(), os.getgid()
DENIED = b"you are not among the clients that may use export ''"


def serve(t, *rules, **where):
    options = [f"--allow={rule}" for rule in rules]
    return t.serve(t.file("disk", content(1, MIB)), "-f", "raw", *options, **where)


def enter(server):
    with server.client() as client:
        same_bytes(client.read(0, 4096), content(1, 4096), "the disk")
    check("may not use" not in server.log, server.log)


def stay_out(server, who):
    """Refused with a sentence at each option, not listed, and told to the operator."""
    with server.client(connect=False) as client:
        client.greeting()
        client.client_flags()
        for option in (OPT_INFO, OPT_GO):
            equal(client.option(option, go_data())[-1], (REP_ERR_POLICY, DENIED), f"option {option}")
        kinds = [kind for kind, _ in client.option(OPT_LIST)]
        check(REP_SERVER not in kinds and kinds[-1] == REP_ACK, f"LIST: {kinds}")
    check(f"may not use export '': no rule allows it ({who}" in server.log, server.log)


@cases(f"uid={UID}", f"gid={GID}", f"uid={UID},gid={GID}", "uid=4294967294|uid=" + str(UID))
def test_user_is_let_in(t, rules):
    enter(serve(t, *rules.split("|")))


@cases(f"uid={UID + 1}", "gid=4294967294", f"uid={UID},gid=4294967294", "address=0.0.0.0/0", "psk=a",
       "dn=CN=a", "san=DNS:a")
def test_user_stays_out(t, rule):
    stay_out(serve(t, rule), f"uid {UID}, gid {GID}, no TLS identity")


@cases("127.0.0.1", "127.0.0.0/8", "::/0")
def test_address_is_let_in(t, address):
    enter(serve(t, f"address={address}", port=free_port()))


@cases("127.0.0.2", "192.0.2.0/24", "::1")
def test_address_stays_out(t, address):
    stay_out(serve(t, f"address={address}", port=free_port()), "address 127.0.0.1,")


def test_ipv6(t):
    if not have_ipv6():
        skip("no IPv6")
    enter(serve(t, "address=::1", host="::1", port=free_port()))
    t.stop_servers()
    stay_out(serve(t, "address=::2", "uid=0", host="::1", port=free_port()), "address ::1,")


def test_another_user(t):
    """Connects as a user of its own, in a group that it has besides its first one."""
    if UID != 0:
        skip("only root can become somebody else")
    script = ("import os, socket, sys\n"
              "os.setgroups([4242]); os.setgid(4243); os.setuid(4244)\n"
              "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(18, 256)\n"
              "s.sendall(bytes.fromhex('00000003 49484156454f5054 00000007 00000006 000000000000'))\n"
              "print(int.from_bytes(s.recv(20, 256)[12:16], 'big'))\n")
    os.chmod(t.dir, 0o755)
    for rule, reply in (("uid=4244", 3), ("gid=4243", 3), ("gid=4242", 3), ("uid=0", 0x80000002),
                        ("gid=0", 0x80000002)):
        server = serve(t, rule)
        os.chmod(server.unix, 0o777)
        done = run(sys.executable, "-c", script, server.unix)
        equal(int(done.stdout), reply, f"reply to GO under the rule {rule}")
        server.stop()


def test_oldstyle(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "--oldstyle", f"--allow=uid={UID + 1}")
    with server.client(connect=False) as client:
        equal(client.recv_until_closed(), b"", "what a stranger is sent")


def test_qemu_img_says_why(t):
    server = serve(t, f"uid={UID + 1}")
    done = qemu_img("info", server.uri, status=1)
    check("not among the clients" in done.stderr, done.stderr)


@cases(("", "no condition"), ("uid=root", "must be a number"), ("user=1", "is unknown"),
       ("address=10.0.0.1/8", "bits behind the prefix"), ("uid=1,address=::1", "no client can meet"))
def test_refused_rules(t, rule, says):
    image = t.file("disk", bytes(MIB))
    refused(t, image, "-f", "raw", f"--allow={rule}",
            says=[f"Invalid access rule '{rule}': ".replace("[", "."), says])


if __name__ == "__main__":
    main()
