#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Check and repair of images made to cost memory or time: 256 MiB of address space, a minute."""
import json
import os
import struct

from evnbd_test import (GIB, HELPERS, MIB, SANITIZED, SANITIZER, cases, check, equal, main, need,
                        run, skip)

TOOL = os.path.join(HELPERS, "..", "tools", "qcow2_tool")
TIB = 1 << 40
COPIED = 1 << 63
SECONDS = 60 if not SANITIZED else 110


def limited(*words):
    """Runs the tool within its limits; it may refuse or find, but must come to an end by itself."""
    need("prlimit")
    limits = ["prlimit", f"--cpu={SECONDS}"] + ([] if SANITIZED else [f"--as={256 * MIB}"])
    done = run(*limits, TOOL, *words, status=None)
    check(not SANITIZER.search(done.stderr), done.stderr[-3000:])
    check(done.returncode in (0, 1, 2, 3), f"{words}: status {done.returncode} {done.stderr[-2000:]}")
    return done


class Sparse:
    """An image written field by field into a sparse file."""

    def __init__(self, path, bits, l1_size, reftable_clusters=1, snapshots=0, version=3):
        self.path, self.bits, self.cluster = path, bits, 1 << bits
        self.l1 = 64 * MIB
        self.reftable = 128 * MIB
        self.block = 192 * MIB
        self.l2 = 193 * MIB + (2 << 21)
        self.snapshot_table = 256 * MIB
        self.end = 512 * MIB
        with open(path, "wb") as file:
            file.truncate(self.end)
        size = min(l1_size << (2 * bits - 3), (1 << 63) - 512)
        self.put(0, struct.pack(">IIQIIQIIQQIIQQQQII", 0x514649FB, version, 0, 0, bits, size, 0, l1_size,
                                self.l1, self.reftable, reftable_clusters, snapshots,
                                self.snapshot_table if snapshots else 0, 0, 0, 0, 4, 104))
        self.put(self.reftable, struct.pack(">Q", self.block))

    def put(self, at, data):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(data)

    def grow(self, size):
        try:
            os.truncate(self.path, size)
        except OSError:
            skip("the file system has no files that large")


def table(values):
    return b"".join(struct.pack(">Q", value) for value in values)


def entries_far_beyond(path):
    """L2 entries up to 64 PB, L1 entries up to 32 PB behind the end of the file."""
    image = Sparse(path, 16, 8192)
    image.put(image.l2, table((1 << 40) * i | COPIED for i in range(1, 8193)))
    image.put(image.l1, table([image.l2 | COPIED] + [(1 << 42) * i | COPIED for i in range(1, 8192)]))


def compressed_far_beyond(path):
    image = Sparse(path, 9, 64)
    image.put(image.l2, table(1 << 62 | 1 << 50 | i << 40 for i in range(64)))
    image.put(image.l1, table([image.l2 | COPIED]))


def one_table_everywhere(path):
    """Four million L1 entries, all of one L2 table, whose entries name one cluster."""
    image = Sparse(path, 16, 4 << 20)
    image.put(image.l2, table([image.l2 + 65536] * 8192))
    image.put(image.l1, table([image.l2]) * (4 << 20))


def table_of_itself(path):
    """The L1 table names itself, and L2 tables name each other."""
    image = Sparse(path, 12, 8192)
    image.put(image.l2, table([image.l1, image.l2, image.l2 + 4096] + [image.reftable] * 509))
    image.put(image.l2 + 4096, table([image.l2] * 512))
    image.put(image.l1, table([image.l1, image.l2, image.l2 + 4096, image.block, image.reftable] * 1638))


def many_snapshots_of_one_table(path):
    image = Sparse(path, 16, 4 << 20, snapshots=65536)
    image.put(image.l2, table([image.l2 + 65536] * 8192))
    image.put(image.l1, table([image.l2]) * (4 << 20))
    entry = struct.pack(">QIHHIIQIIQQ", image.l1, 4 << 20, 0, 0, 0, 0, 0, 0, 16, 0, 1 << 20)
    image.put(image.snapshot_table, entry * 65536)


def snapshots_that_overlap(path):
    image = Sparse(path, 9, 4 << 20, snapshots=65536)
    entries = (struct.pack(">QIHHIIQIIQQ", 300 * MIB + 512 * i, 4 << 20, 0, 0, 0, 0, 0, 0, 16, 0, 1 << 20)
               for i in range(65536))
    image.put(image.snapshot_table, b"".join(entries))


def one_block_everywhere(path):
    image = Sparse(path, 21, 8, reftable_clusters=4)
    image.put(image.reftable, table([image.block]) * (1 << 20))


def blocks_in_holes(path):
    """A quarter of a million refcount blocks, and of L2 tables, all in holes of a huge file."""
    image = Sparse(path, 12, 4 << 20, reftable_clusters=512)
    image.grow(4 * TIB)
    image.put(image.reftable, table(GIB + 4096 * i for i in range(1 << 18)))
    image.put(image.l1, table(8 * GIB + 4096 * i for i in range(1 << 18)))


def clusters_far_apart(path):
    """Every L2 entry needs a place of its own in what is counted."""
    image = Sparse(path, 16, 8192)
    image.grow(15 * TIB)
    image.put(image.l1, table(GIB + 65536 * i | COPIED for i in range(64)))
    for number in range(64):
        image.put(GIB + 65536 * number,
                  table(2 * GIB + (number * 8192 + i << 22) | COPIED for i in range(8192)))


def all_refcounts_set(path):
    """Leaks of everything that the file could hold: all are reported."""
    image = Sparse(path, 16, 8)
    image.put(image.block, b"\xff" * 65536)


CASES = (entries_far_beyond, compressed_far_beyond, one_table_everywhere, table_of_itself,
         many_snapshots_of_one_table, snapshots_that_overlap, one_block_everywhere, blocks_in_holes,
         clusters_far_apart, all_refcounts_set)


@cases(*(case.__name__ for case in CASES))
def test_hostile(t, name):
    path = t.path("hostile.qcow2")
    globals()[name](path)
    size = os.path.getsize(path)
    found = limited("check", path)
    check(found.returncode != 0, f"nothing was found: {found.stdout}")
    check(found.stdout or "memory" in found.stderr, found.stderr[-2000:])
    repaired = limited("repair", path, "all")
    again = limited("check", path)
    if repaired.returncode == 0:
        numbers = json.loads(again.stdout)
        equal((numbers["corruptions"], numbers["leaks"]), (0, 0), "what is left after the repair")
    check(os.path.getsize(path) < size + 256 * MIB, "a repair must not let the file grow so much")


if __name__ == "__main__":
    main()
