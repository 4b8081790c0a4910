#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
kill -9 while four clients write, again and again: nothing that a FLUSH or FUA has covered is lost, and
the image has no errors, leaks at most.

Each client has blocks of its own, which straddle clusters and have other clients' blocks as
neighbors.  Each sector of 512 bytes holds what its block held at the client's last FLUSH, or what
was sent later.
"""
import json
import os
import random
import struct
import threading

from evnbd_test import KIB, MIB, SANITIZED, cases, check, equal, main, qemu_img, run, wait_for
from nbd_raw import (CMD_FLAG_FUA, CMD_FLUSH, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, Closed)
from qcow2_judge import qemu_img_deriving, tool

ROUNDS = 3 if SANITIZED else 6
CLIENTS, DEPTH = 4, 8
BLOCK, START, SECTOR = 6 * KIB, 1536, 512
SIZE = 6 * MIB
ZERO = bytes(SECTOR)
IMAGES = {
    "raw": None,
    "qcow2": "",
    "c512": "cluster_size=512",
    "c2m": "cluster_size=2M",
    "lazy": "lazy_refcounts=on,cluster_size=4k",
    "refcount1": "refcount_bits=1,cluster_size=4k",
    "v2": "compat=0.10",
    "snapshot": "cluster_size=4k",
    "bitmap": "cluster_size=4k",
    "data": "data_file=disk.data",
    "dataraw": "data_file=disk.data,data_file_raw=on,cluster_size=4k",
    "extl2": "extended_l2=on",
    "aes": "encrypt.format=aes,encrypt.key-secret=s,cluster_size=4k",
    "luks": "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
}
SECRET = ("--object", "secret,id=s,data=a word")
BITMAP = "b"


class Sectors:
    """
    What the blocks of one client may hold: for each a list of sets of sectors' contents; the first is
    durable, the others were sent since, in this order.
    """

    def __init__(self, number):
        blocks = range(number, (SIZE - START) // BLOCK, CLIENTS)
        self.offsets = [START + block * BLOCK for block in blocks]
        self.may_be = {offset: [{ZERO}] for offset in self.offsets}
        self.serial = 0

    def new_data(self, number):
        self.serial += 1
        return struct.pack(">QQ", number, self.serial) * (BLOCK // 16)


class Round:
    """One server, four clients, and an end that comes after so many replies."""

    def __init__(self, server, seed, all_sectors):
        self.server, self.seed, self.all_sectors = server, seed, all_sectors
        self.replies_left = random.Random(seed).randrange(50, 1200)
        self.lock = threading.Lock()
        self.problems = []

    def answered(self):
        with self.lock:
            self.replies_left -= 1
            if self.replies_left == 0:
                self.server.kill()

    def run(self):
        threads = [threading.Thread(target=self.client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(not self.problems, f"clients: {self.problems}")

    def client(self, number):
        rng = random.Random(self.seed * CLIENTS + number)
        try:
            with self.server.client() as client:
                while True:
                    self.batch(client, number, rng)
        except Closed:
            return
        except Exception as problem:  # it would be lost in a thread
            self.problems.append(repr(problem))

    def batch(self, client, number, rng):
        """Requests in flight together, to blocks that differ; then, often, a FLUSH."""
        sectors, sent = self.all_sectors[number], {}
        for offset in rng.sample(sectors.offsets, DEPTH):
            command, flags, data = rng.choice((CMD_WRITE,) * 5 + (CMD_WRITE_ZEROES, CMD_TRIM)), 0, b""
            if command == CMD_WRITE:
                data = sectors.new_data(number)
                flags = CMD_FLAG_FUA if rng.randrange(8) == 0 else 0
            value = {data[:SECTOR] or ZERO}
            if command == CMD_TRIM:  # advice
                value |= sectors.may_be[offset][-1]
            sectors.may_be[offset].append(value)
            cookie = client.start(command, offset, len(data) or BLOCK, flags, data)
            sent[cookie] = (offset, command, flags, value)
        for _ in range(len(sent)):
            cookie, error = client.reply_header()
            assert error == 0, f"error {error}"
            offset, command, flags, value = sent[cookie]
            if flags & CMD_FLAG_FUA:
                sectors.may_be[offset] = [value]
            self.answered()
        if rng.randrange(3) == 0:
            assert client.command(CMD_FLUSH) == 0
            sectors.may_be = {offset: values[-1:] for offset, values in sectors.may_be.items()}
            self.answered()


def verify(client, all_sectors):
    """Each sector is one that it may be; what it is becomes the only one."""
    disk = client.read_all()
    for number, sectors in enumerate(all_sectors):
        for offset, values in sectors.may_be.items():
            seen = {disk[at:at + SECTOR] for at in range(offset, offset + BLOCK, SECTOR)}
            allowed = set().union(*values)
            check(seen <= allowed,
                  f"client {number}: the block at {offset} holds {[s[:16].hex() for s in seen]} instead "
                  f"of {[v[:16].hex() for v in allowed]}")
            sectors.may_be[offset] = [seen]


def make_image(t, name):
    """Returns how it is opened: the words that are given to evnbd and to qemu-img."""
    options = IMAGES[name]
    if options is None:
        t.sparse_file("disk.raw", SIZE)
        return ("-f", "raw", "disk.raw")
    qemu_img_deriving("create", "-q", *SECRET, "-f", "qcow2", *(["-o", options] if options else []),
                      "disk.qcow2", SIZE)
    if "encrypt" in options:
        return (*SECRET, "--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=disk.qcow2")
    return ("-f", "qcow2", "disk.qcow2")


def check_image(words):
    """Without errors; leaks, with qemu-img's status 3, are allowed."""
    done = run("qemu-img", "check", "-q", *words, status=None)
    check(done.returncode in (0, 3), f"qemu-img check: {done.stdout}{done.stderr}")


def check_bitmap(image):
    """It was being written when the server died. A new one takes its place."""
    bitmaps = [json.loads(line) for line in tool("bitmap-list", image).stdout.splitlines()]
    if bitmaps:
        equal([bitmap["name"] for bitmap in bitmaps], [BITMAP], "bitmaps")
        check("inconsistent" in (bitmaps[0].get("unusable") or ""), f"the bitmap can be used: {bitmaps[0]}")
        tool("bitmap-remove", image, BITMAP)
    tool("bitmap-add", image, BITMAP, 65536, "enabled")


@cases(*IMAGES)
def test_kill(t, name):
    os.chdir(t.dir)  # the names of data files are relative
    *options, image = make_image(t, name)
    words = (*options, image)
    all_sectors = [Sectors(number) for number in range(CLIENTS)]
    for number in range(ROUNDS):
        if name == "bitmap":
            check_bitmap(image)
        server = t.serve(image, *options, "-e", "0", "--discard=unmap")
        Round(server, number + 1, all_sectors).run()
        t.servers.remove(server)
        # The kernel may need a moment to end what was in flight and to let go of the locks of all files.
        wait_for(lambda: '" lock' not in run("qemu-img", "check", *words, status=None).stderr,
                 "the image being free")
        if name != "raw":
            check_image(words)
        reader = t.serve(image, *options, "-r")
        with reader.client() as client:
            verify(client, all_sectors)
        reader.stop()
        if name == "snapshot" and number < 3:
            qemu_img("snapshot", "-c", f"s{number}", image)
    if name == "bitmap":
        check_bitmap(image)


if __name__ == "__main__":
    main()
