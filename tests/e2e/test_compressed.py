#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Compressed clusters that we write: qemu-img reads them, and finds them packed and sound."""
import os
import random

from evnbd_test import KIB, MIB, cases, check, content, equal, main, qemu_img, qemu_io, same_bytes
from qcow2_judge import disk, sound, tool

LAYOUTS = ("cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M",
           "cluster_size=64k,compression_type=zstd", "cluster_size=4k,compression_type=zstd",
           "cluster_size=4k,compat=0.10", "cluster_size=4k,refcount_bits=1",
           "cluster_size=64k,refcount_bits=2", "cluster_size=2M,compression_type=zstd",
           "extended_l2=on,cluster_size=16k", "extended_l2=on,compression_type=zstd")


def text(seed, length):
    """Bytes that get about half as small."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(2, 9)) for _ in range(300)]
    data = b"".join(rng.choice(words) for _ in range(length // 4))
    return data[:length]


def mixed(seed, length):
    """Runs of text, noise and zeroes, of a few hundred KiB and of a few hundred bytes."""
    rng, data = random.Random(seed), bytearray()
    while len(data) < length:
        kind, n = rng.randrange(3), rng.choice((300, 5000, 70000, 300000))
        data += (text(rng.random(), n), rng.randbytes(n), bytes(n))[kind]
    return bytes(data[:length])


@cases(*LAYOUTS)
def test_written(t, layout):
    wanted = mixed(layout, 3 * MIB + 1536)
    source, image = t.file("source.raw", wanted), t.path("a.qcow2")
    theirs = t.path("theirs.qcow2")
    tool("create", image, f"size={len(wanted)},{layout}")
    tool("write-compressed", image, source)
    found = sound(image)
    same_bytes(disk(t, image), wanted, "the disk")
    check(found["compressed-clusters"] > 0, "nothing is compressed")
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", layout, source, theirs)
    sizes = os.stat(image).st_size, os.stat(theirs).st_size
    check(sizes[0] <= sizes[1] * 1.05 + 128 * KIB, f"our file and theirs: {sizes} bytes")


@cases(*LAYOUTS)
def test_overwritten(t, layout):
    """Over a snapshot and a backing file, again and again, compressed and not."""
    base = t.file("base.raw", mixed(1, MIB))
    image, rng = t.path("a.qcow2"), random.Random(layout)
    tool("create", image, f"size={2 * MIB + 512},{layout},backing_file={base},backing_fmt=raw")
    for step in range(3):
        wanted = bytearray(mixed(step, 2 * MIB + 512))
        tool("write-compressed", image, t.file("source.raw", wanted))
        if step == 1 and "refcount_bits" not in layout:
            qemu_img("snapshot", "-c", "s", image)
            kept = bytes(wanted)
        for _ in range(4):
            at, length = rng.randrange(0, 2 * MIB, 512), 512 * rng.randrange(1, 200)
            length = min(length, len(wanted) - at)
            if rng.random() < 0.5:
                tool("write", image, at, length, step + 7)
            else:
                qemu_io(image, f"write -q -P {step + 7} {at} {length}", arguments=("-f", "qcow2"))
            wanted[at:at + length] = bytes([step + 7]) * length
        sound(image)
        same_bytes(disk(t, image), bytes(wanted), f"the disk after step {step}")
    if "refcount_bits" not in layout:
        qemu_img("snapshot", "-a", "s", image)
        same_bytes(disk(t, image), kept, "the snapshot")
        qemu_img("snapshot", "-d", "s", image)
        sound(image)


def test_qemu_packs_on(t):
    """What QEMU adds to an image that we wrote, and we to one that it wrote."""
    wanted = text(3, 2 * MIB)
    source, image = t.file("source.raw", wanted), t.path("a.qcow2")
    tool("create", image, f"size={4 * MIB}")
    tool("write-compressed", image, source)
    qemu_io(image, "write -q -c -P 7 2M 64k", arguments=("-f", "qcow2"))
    sound(image)
    tool("write-compressed", image, t.file("more.raw", text(4, MIB)))
    sound(image)
    same_bytes(disk(t, image), text(4, MIB) + wanted[MIB:] + bytes([7]) * 64 * KIB +
               bytes(2 * MIB - 64 * KIB), "the disk")


def test_zeroes_and_noise(t):
    source, image = t.file("source.raw", bytes(MIB) + content(1, MIB)), t.path("a.qcow2")
    tool("create", image, f"size={2 * MIB}")
    tool("write-compressed", image, source)
    found = sound(image)
    equal((found["allocated-clusters"], found["compressed-clusters"]), (16, 0), "clusters")
    same_bytes(disk(t, image), bytes(MIB) + content(1, MIB), "the disk")


def test_refuses(t):
    image, source = t.path("a.qcow2"), t.file("source.raw", bytes(64 * KIB) + bytes(512))
    tool("create", image, f"size={MIB}")
    check("Invalid argument" in tool("write-compressed", image, source, status=1).stderr, "why")
    tool("create", image, f"size={64 * KIB}")
    check("No space" in tool("write-compressed", image, source, status=1).stderr, "why")
    sound(image)
    tool("create", image, f"size={64 * KIB},data_file={t.path('a.data')}")
    check("not supported" in tool("write-compressed", image, source, status=1).stderr, "why")
    sound(image)


if __name__ == "__main__":
    main()
