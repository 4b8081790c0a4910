#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
A client whose machine is gone without a word is found, and its place goes to the next one.

The client lives in a network namespace of its own, whose address is taken away: what the server
sends is dropped from then on.  That needs root and takes as long as the server's time limits.
"""
import contextlib
import os
import subprocess
import sys

from evnbd_test import HANG, MIB, check, content, free_port, main, need, run, same_bytes, skip, wait_for
from nbd_raw import RawClient

SIZE = 64 * MIB
HEAD = content(1, 4096)
FOUND = 150  # seconds; the limits of the server add up to 70

# Connects, asks, and then does nothing at all.
CLIENT = """
import socket, sys, time
sys.path.insert(0, sys.argv[3])
from nbd_raw import CMD_READ, RawClient
client = RawClient((sys.argv[1], int(sys.argv[2]))).connect()
client.read(0, 4096)
if sys.argv[4] == "reading":
    for _ in range(16):
        client.start(CMD_READ, 0, 32 << 20)
    client.recv(4096)
print("ready", flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def namespace():
    """A network namespace behind a pair of virtual devices: (its name, our address, its device)."""
    name, ours, theirs = f"evnbd-{os.getpid()}", f"evd{os.getpid() % 100000}a", f"evd{os.getpid() % 100000}b"
    subnet = f"198.18.{os.getpid() % 250}"
    if run("ip", "netns", "add", name, status=None).returncode:
        skip("network namespaces cannot be made here")
    try:
        if run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name,
               status=None).returncode:
            skip("virtual network devices cannot be made here")
        run("ip", "addr", "add", f"{subnet}.1/24", "dev", ours)
        run("ip", "link", "set", ours, "up")
        run("ip", "-n", name, "addr", "add", f"{subnet}.2/24", "dev", theirs)
        run("ip", "-n", name, "link", "set", theirs, "up")
        yield name, f"{subnet}.1", theirs
    finally:
        run("ip", "link", "del", ours, status=None)
        run("ip", "netns", "del", name, status=None)


def start_client(name, address, port, what):
    client = subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, "-c", CLIENT, address, str(port),
         os.path.dirname(os.path.abspath(__file__)), what], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        text=True)
    line = client.stdout.readline()
    check(line == "ready\n", f"the client in the namespace said {line!r}")
    return client


def test_dead_clients_lose_their_place(t):
    """One that was idle, and one that had replies under way; each had the only place of its server."""
    need("ip")
    if os.getuid() != 0:
        skip("making a network namespace needs root")
    path = t.sparse_file("disk", SIZE)
    with open(path, "r+b") as file:
        file.write(HEAD)
    processes, waiting = [], []
    with namespace() as (name, address, device):
        try:
            for what in ("idle", "reading"):
                server = t.serve(path, "-r", "-f", "raw", "-e", "1", "-v", host=address, port=free_port())
                processes.append(start_client(name, address, server.port, what))
                waiting.append((server, RawClient((address, server.port))))
            run("ip", "-n", name, "addr", "flush", "dev", device)
            for server, client in waiting:
                client.sock.settimeout(FOUND)
                client.connect()
                same_bytes(client.read(0, 4096), HEAD, "data for the next one")
                client.disconnect()
                wait_for(lambda s=server: "left export" in s.log, "the end of the dead client to be told")
        finally:
            for process in processes:
                process.kill()
                process.communicate(timeout=HANG)


if __name__ == "__main__":
    main()
