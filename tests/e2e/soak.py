#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Mixed load and connection churn for SOAK_SECONDS, on servers that run all the time.

Rounds are of random kind, from SOAK_SEED on: random writes against the model with 1 to 8 clients,
clients that come and go, clients that break off in the middle.  Between rounds the servers' memory
and descriptors must stay where they were after the first rounds, and the data must agree.
"""
import os
import random
import time

from evnbd_test import (HELPERS, KIB, MIB, SANITIZED, check, content, digest, main, qemu_img,
                        qemu_img_check, run, skip, wait_for)
from nbd_raw import CMD_READ, CMD_WRITE, Closed, request_bytes

SECONDS = int(os.environ.get("SOAK_SECONDS", "1800"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
SIZE = 24 * MIB
GROWTH = 16 * MIB // KIB  # KiB that the heap may wander
WARM_UP = 8               # rounds


def churn(server, rng):
    for _ in range(rng.randrange(50, 300)):
        client = server.client()
        client.read(rng.randrange(SIZE - 4096), 4096)
        if rng.randrange(2):
            client.disconnect()
        else:
            client.close()


def break_off(server, rng):
    """Reads that nobody waits for, and writes that stop half way."""
    for _ in range(rng.randrange(20, 100)):
        client = server.client(connect=rng.randrange(4) > 0)
        try:
            for _ in range(rng.randrange(8)):
                client.send(request_bytes(CMD_READ, rng.randrange(SIZE - MIB), rng.randrange(MIB)))
            client.send(request_bytes(CMD_WRITE, 0, MIB) + b"x" * rng.randrange(MIB))
        except Closed:
            pass
        client.close()


def random_writes(server, rng, model):
    run(os.path.join(HELPERS, "random_writes"), server.uri, model, rng.randrange(1, 9),
        rng.randrange(1, 33), rng.randrange(100, 3000), rng.randrange(1, 1000000))


class Disk:
    """A served image, its model, and what its server took after warming up."""

    def __init__(self, t, name, image_format, *options):
        self.image, self.model, self.format = t.path(name), t.path(name + ".model"), image_format
        if image_format == "raw":
            t.file(name, content(1, SIZE))
        else:
            t.file("base.raw", content(2, SIZE // 2))
            qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base.raw", "-F", "raw",
                     self.image, SIZE)
        qemu_img("convert", "-f", image_format, "-O", "raw", self.image, self.model)
        self.server = t.serve(self.image, "-f", image_format, "-e", "0", *options)
        self.descriptors = self.memory = None

    def round(self, rng):
        kind = rng.choice(("writes", "writes", "churn", "break-off"))
        if kind == "writes":
            random_writes(self.server, rng, self.model)
        elif kind == "churn":
            churn(self.server, rng)
        else:
            break_off(self.server, rng)

    def check(self, number):
        if number == WARM_UP:
            self.descriptors = self.server.descriptors()
            self.memory = self.server.status_field("VmRSS")
        if number <= WARM_UP:
            return
        wait_for(lambda: self.server.descriptors() <= self.descriptors, "descriptors to be closed")
        grown = self.server.status_field("VmRSS") - self.memory
        check(SANITIZED or grown <= GROWTH, f"the server of {self.image} grew by {grown} KiB")

    def finish(self):
        self.server.stop()
        if self.format == "qcow2":
            qemu_img_check(self.image)
            qemu_img("compare", "-f", self.format, "-F", "raw", self.image, self.model)
        else:
            check(digest(self.image) == digest(self.model), "the raw image differs from its model")


def test_soak(t):
    if not os.path.exists(os.path.join(HELPERS, "random_writes")):
        skip("random_writes was not built")
    rng = random.Random(SEED)
    disks = [Disk(t, "disk.raw", "raw"), Disk(t, "disk.qcow2", "qcow2", "--discard=unmap"),
             Disk(t, "threads.raw", "raw", "--aio=threads")]
    limit = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < limit:
        number += 1
        for disk in disks:
            disk.round(rng)
            disk.check(number)
    print(f"# {number} rounds in {SECONDS} s from seed {SEED}")
    for disk in disks:
        disk.finish()


if __name__ == "__main__":
    main()
