#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Other sizes: what we resize, qemu-img reads and finds sound, and the other way round."""
import json
import os
import random

from evnbd_test import (KIB, MIB, cases, check, content, equal, main, qemu_img, qemu_io, read_file,
                        same_bytes)
from qcow2_file import Qcow2File
from qcow2_judge import disk, sound, tool

LAYOUTS = ("cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M",
           "cluster_size=4k,compat=0.10", "cluster_size=512,refcount_bits=64",
           "cluster_size=4k,refcount_bits=1", "cluster_size=64k,lazy_refcounts=on",
           "cluster_size=4k,preallocation=metadata", "extended_l2=on,cluster_size=16k",
           "extended_l2=on,cluster_size=64k")
MODES = ("off", "metadata", "falloc", "full")


def resize(who, image, size, mode="off", shrink=False):
    if who == "ours":
        tool("resize", image, "qcow2", size, "shrink" if shrink else mode)
    else:
        qemu_img("resize", "-q", "-f", "qcow2", *(["--shrink"] if shrink else
                                                  [f"--preallocation={mode}"]), image, size)


def write(image, model, offset, length, byte):
    qemu_io(image, f"write -q -P {byte} {offset} {length}", arguments=("-f", "qcow2"))
    model[offset:offset + length] = bytes([byte]) * length


def apply(model, size):
    """The model with another size; what is added is zero."""
    del model[size:]
    model.extend(bytes(size - len(model)))


@cases(*((layout, seed) for layout in LAYOUTS for seed in (1, 2)), sanitized=lambda layout, seed: seed == 1)
def test_both_resize(t, layout, seed):
    rng = random.Random(seed)
    image, model = t.path("a.qcow2"), bytearray(3 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, image, len(model))
    for step in range(12):
        length = rng.randrange(512, min(len(model), MIB), 512)
        write(image, model, rng.randrange(0, len(model) - length + 1, 512), length, step + 1)
        size = max(512 * rng.randrange(4, 12 * MIB // 512), 2 * KIB)
        who = rng.choice(("ours", "ours", "theirs"))
        # QEMU lets show what freed clusters held when it gives them out without filling them.
        mode = rng.choice(MODES if who == "ours" else ("off", "falloc", "full"))
        resize(who, image, size, mode, size < len(model))
        apply(model, size)
        sound(image)
        same_bytes(disk(t, image), bytes(model), f"the disk after step {step}")


@cases(*((layout, mode) for layout in LAYOUTS[:4] for mode in MODES))
def test_backing_is_longer(t, layout, mode):
    base = t.file("base.raw", content(5, 6 * MIB + 512))
    ours, theirs = t.path("ours.qcow2"), t.path("theirs.qcow2")
    for image, who in ((ours, "ours"), (theirs, "theirs")):
        qemu_img("create", "-q", "-f", "qcow2", "-o", layout, "-b", base, "-F", "raw", image,
                 MIB + 512 * 3)
        resize(who, image, 8 * MIB, mode)
        sound(image)
        wanted = content(5, 6 * MIB + 512)[:MIB + 512 * 3]
        same_bytes(disk(t, image), wanted + bytes(8 * MIB - len(wanted)), f"the disk ({who})")
    equal(read_file(base), content(5, 6 * MIB + 512), "the backing file")


@cases(*LAYOUTS)
def test_preallocates_like_qemu_img(t, layout):
    for mode in MODES:
        ours, theirs = t.path("ours.qcow2"), t.path("theirs.qcow2")
        for image, who in ((ours, "ours"), (theirs, "theirs")):
            qemu_img("create", "-q", "-f", "qcow2", "-o", layout, image, MIB)
            resize(who, image, 9 * MIB, mode)
            sound(image)
        told = [json.loads(tool("check", image).stdout)["allocated-clusters"]
                for image in (ours, theirs)]
        equal(*told, f"allocated clusters, {mode}")
        if mode in ("falloc", "full"):
            check(os.stat(ours).st_blocks * 512 >= 8 * MIB, "storage is not reserved")


@cases("cluster_size=64k", "cluster_size=512", "cluster_size=4k,refcount_bits=64",
       "extended_l2=on,cluster_size=64k")
def test_snapshots_keep_their_size(t, layout):
    image, model = t.path("a.qcow2"), bytearray(2 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, image, len(model))
    write(image, model, 0, 2 * MIB, 7)
    qemu_img("snapshot", "-c", "old", image)
    write(image, model, MIB, 64 * KIB, 8)
    for size in (5 * MIB, MIB + 512, 3 * MIB):
        resize("ours", image, size, shrink=size < len(model))
        apply(model, size)
        sound(image)
        same_bytes(disk(t, image), bytes(model), f"the disk of {size} bytes")
        write(image, model, size // 2, 512, 9)
    qemu_img("snapshot", "-a", "old", image)
    same_bytes(disk(t, image), bytes([7]) * (2 * MIB), "the disk of the snapshot")
    qemu_img("snapshot", "-d", "old", image)
    sound(image)


@cases(*MODES)
def test_snapshots_share_the_last_cluster(t, mode):
    """What is added in a cluster that a snapshot has, too, does not lose what was there."""
    image, model = t.path("a.qcow2"), bytearray(40 * KIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", image,
             len(model))
    write(image, model, 0, 40 * KIB, 7)
    tool("snapshot-create", image, "old")
    resize("ours", image, MIB, mode)
    apply(model, MIB)
    sound(image)
    same_bytes(disk(t, image), bytes(model), "the disk")
    tool("snapshot-apply", image, "old")
    same_bytes(disk(t, image), bytes([7]) * (40 * KIB), "the disk of the snapshot")
    sound(image)


@cases(*((raw, mode) for raw in ("off", "on") for mode in MODES))
def test_data_file(t, raw, mode):
    image, data, model = t.path("a.qcow2"), t.path("a.data"), bytearray(2 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw={raw}", image,
             len(model))
    write(image, model, MIB - 512, MIB + 512, 7)
    for size in (MIB + 512, 5 * MIB, 3 * MIB + 1024, 64 * KIB, 4 * MIB):
        shrink = size < len(model)
        resize("ours", image, size, mode, shrink)
        apply(model, size)
        sound(image)
        same_bytes(disk(t, image), bytes(model), f"the disk of {size} bytes")
        equal(os.stat(data).st_size, size, "bytes of the data file")
        if raw == "on":
            same_bytes(read_file(data), bytes(model), "the data file")
        write(image, model, size // 2, 512, 9)


def test_longer_data_file(t):
    """What a raw data file has behind the disk's end does not show when the disk grows."""
    image, data, model = t.path("a.qcow2"), t.path("a.data"), bytearray(MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", image, MIB)
    with open(data, "r+b") as file:
        file.seek(MIB)
        file.write(b"x" * MIB)
    resize("ours", image, 3 * MIB)
    apply(model, 3 * MIB)
    same_bytes(disk(t, image), bytes(model), "the disk")
    same_bytes(read_file(data), bytes(model), "the data file")


def test_shrinking_gives_the_file_back(t):
    image, model = t.path("a.qcow2"), bytearray(16 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, len(model))
    write(image, model, 0, 16 * MIB, 3)
    resize("ours", image, MIB, shrink=True)
    sound(image)
    check(os.stat(image).st_size < 2 * MIB, f"the file has {os.stat(image).st_size} bytes")
    equal(Qcow2File(image).get("l1_size"), 1, "entries of the L1 table")
    resize("ours", image, 0, shrink=True)
    sound(image)
    resize("ours", image, 512 * 5)
    sound(image)
    same_bytes(disk(t, image), bytes(512 * 5), "the disk")


def test_long_l1_tables(t):
    """More clusters of an L1 table than a refcount block describes, and more blocks than fit."""
    image, model = t.path("a.qcow2"), bytearray(MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", image, MIB)
    write(image, model, 0, MIB, 3)
    resize("ours", image, 4 << 30)
    sound(image)
    qemu_io(image, "write -q -P 5 4294966784 512", "read -q -P 3 0 1M", "read -q -P 0 1M 1M",
            "read -q -P 5 4294966784 512", arguments=("-f", "qcow2"))
    sound(image)
    resize("ours", image, 2 * MIB, shrink=True)
    sound(image)
    apply(model, 2 * MIB)
    same_bytes(disk(t, image), bytes(model), "the disk")


@cases(*MODES)
def test_raw(t, mode):
    image = t.file("a.raw", content(1, 10000))
    if mode == "metadata":
        check("no metadata" in tool("resize", image, "raw", 20000, mode, status=1).stderr, "why")
        equal(read_file(image), content(1, 10000), "the file")
        return
    tool("resize", image, "raw", 300001, mode)
    same_bytes(read_file(image), content(1, 10000) + bytes(290001), "the file")
    check(mode == "off" or os.stat(image).st_blocks * 512 >= 300001, "storage is not reserved")
    tool("resize", image, "raw", 777, "shrink")
    same_bytes(read_file(image), content(1, 10000)[:777], "the file")


def refused(image, words, *arguments):
    before = read_file(image)
    said = tool("resize", image, *arguments, status=1).stderr
    check(words in said, f"{words} is not in: {said}")
    equal(read_file(image), before, "the image")


def test_refuses(t):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, 10 * MIB)
    refused(image, "must be asked for (shrink)", "qcow2", MIB, "off")
    refused(image, "must be asked for (shrink)", "qcow2", MIB, "full")
    refused(image, "2^63", "qcow2", "9223372036854775807", "off")
    refused(image, "needs clusters larger than 65536", "qcow2", "4E", "off")
    raw = t.file("a.raw", bytes(1000))
    refused(raw, "must be asked for (shrink)", "raw", 999, "off")


def test_refuses_old_snapshots(t):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", image, 10 * MIB)
    qemu_img("snapshot", "-c", "s", image)
    refused(image, "internal snapshots", "qcow2", "20M", "off")


def test_sizes_that_are_no_multiple_of_512(t):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, MIB)
    file = Qcow2File(image)
    file.set("size", MIB - 100).save(image)
    tool("resize", image, "qcow2", 2 * MIB + 1, "off")
    equal(Qcow2File(image).get("size"), 2 * MIB + 512, "the size")
    sound(image)


def test_stale_data_behind_the_end_does_not_show(t):
    """As after a crash in the middle of shrinking: the header has the size, nothing was freed."""
    image, model = t.path("a.qcow2"), bytearray(4 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", image, len(model))
    write(image, model, 0, 4 * MIB, 3)
    Qcow2File(image).set("size", MIB + 512).save(image)
    resize("ours", image, 3 * MIB)
    sound(image)
    apply(model, MIB + 512)
    apply(model, 3 * MIB)
    same_bytes(disk(t, image), bytes(model), "the disk")


if __name__ == "__main__":
    main()
