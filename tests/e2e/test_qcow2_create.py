#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""New qcow2 images: what we make and what qemu-img makes are alike; combinations are in test_matrix.py."""
import json
import os
import re

from evnbd_test import (KIB, MIB, cases, check, content, equal, main, need, qemu_img, qemu_img_check,
                        qemu_io, read_file, run)
from qcow2_judge import tool


def info(image):
    """What qemu-img tells of an image, without what depends on the file."""
    told = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", image).stdout)
    for key in ("filename", "actual-size", "full-backing-filename"):
        told.pop(key, None)
    return told


def make_both(t, options, size, backing=None):
    ours, theirs = t.path("ours.qcow2"), t.path("theirs.qcow2")
    tool("create", ours, f"size={size},{options}" +
         (f",backing_file={backing},backing_fmt=raw" if backing else ""))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options,
             *(["-b", backing, "-F", "raw"] if backing else []), theirs, size)
    return ours, theirs


def exercise(image, size, cluster):
    """Both programs write to the image and check it."""
    equal(tool("check", image).stdout.count('"corruptions": 0,'), 1, "a sound new image")
    qemu_img_check(image)
    length = min(size, 3 * cluster + 1000, 5 * MIB)
    qemu_io(image, f"write -P 7 0 {length}", f"write -P 9 {size - 512} 512",
            arguments=("-f", "qcow2"))
    tool("write", image, size // 2 // 512 * 512, 512, 0x33)
    qemu_img_check(image)
    tool("check", image)
    qemu_io(image, f"read -P 7 0 {min(length, size // 2 // 512 * 512)}",
            f"read -P 9 {size - 512} 512", f"read -P 0x33 {size // 2 // 512 * 512} 512",
            arguments=("-f", "qcow2"))


def test_size_of_backing(t):
    base = t.file("base.raw", content(3, 3 * MIB))
    ours, theirs = make_both(t, "cluster_size=64k", 4 * MIB, "base.raw")
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", ours, theirs)
    tool("create", ours, "backing_file=base.raw,backing_fmt=raw")
    equal(info(ours)["virtual-size"], 3 * MIB, "size taken from the backing file")
    equal(read_file(base), content(3, 3 * MIB), "the backing file")


@cases(*(f"{more}{mode}" for more in ("", "data_file_raw=on,", "extended_l2=on,",
                                      "extended_l2=on,data_file_raw=on,cluster_size=2M,")
         for mode in ("preallocation=off", "preallocation=metadata", "preallocation=full")))
def test_data_file(t, options):
    size = 3 * MIB + 512 * 3
    ours, theirs = t.path("ours.qcow2"), t.path("theirs.qcow2")
    tool("create", ours, f"size={size},data_file=ours.raw,{options}")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={t.path('theirs.raw')},{options}", theirs, size)
    told = info(ours)
    equal(told["format-specific"]["data"].pop("data-file"), "ours.raw", "name of the data file")
    other = info(theirs)
    other["format-specific"]["data"].pop("data-file")
    equal(told, other, f"what qemu-img tells of {options}")
    equal(tool("map", ours).stdout, tool("map", theirs).stdout, "map")
    equal(json.loads(tool("check", ours).stdout), json.loads(tool("check", theirs).stdout), "check")
    tool("write", ours, size - 512, 512, 0x55)
    equal(os.path.getsize(t.path("ours.raw")), size, "bytes of the data file")
    if "full" in options:
        check(os.stat(t.path("ours.raw")).st_blocks * 512 >= size, "storage is not reserved")
    os.chdir(t.dir)  # QEMU takes the name as relative to here
    exercise("ours.qcow2", size, 64 * KIB)


def test_backing_below_preallocated_subclusters(t):
    """What is preallocated does not hide the backing file."""
    t.file("base.raw", content(3, 3 * MIB))
    ours, theirs = make_both(t, "extended_l2=on,preallocation=metadata", 4 * MIB, "base.raw")
    equal(info(ours), info(theirs), "what qemu-img tells")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", ours, t.path("base.raw"))
    tool("write", ours, MIB + 512, 512, 0x44)
    qemu_io(ours, f"read -P 0x44 {MIB + 512} 512", arguments=("-f", "qcow2"))
    qemu_img_check(ours)


@cases(("0", 64 * KIB), ("1", 64 * KIB), ("512", 512), ("1T", 64 * KIB), ("16T", 64 * KIB),
       ("100G", 512), ("128G", 512), ("2P", 2 * MIB))
def test_sizes(t, size, cluster):
    ours, theirs = make_both(t, f"cluster_size={cluster}", size)
    equal(info(ours), info(theirs), "what qemu-img tells")
    qemu_img_check(ours)
    tool("check", ours)


def test_layout(t):
    """Ten MiB with default options: the file ends with the L1 table's last byte."""
    tool("create", t.path("disk.qcow2"), "size=10M")
    equal(os.path.getsize(t.path("disk.qcow2")), 196616, "bytes of the file")


@cases(*((size, options) for size in ("0", "1M", "10G", "1T", "3000001")
         for options in ("cluster_size=64k", "cluster_size=512", "cluster_size=2M",
                         "refcount_bits=1", "refcount_bits=64,cluster_size=4k", "extended_l2=on",
                         "extended_l2=on,cluster_size=2M", "data_file=x,data_file_raw=on")
         if (size, options) != ("1T", "cluster_size=512")))
def test_measure(t, size, options):
    theirs = json.loads(qemu_img("measure", "-O", "qcow2", "-o", options, "--size", size,
                                 "--output=json").stdout)
    ours = json.loads(tool("measure", f"size={size},{options}").stdout)
    equal(ours, {key: theirs[key] for key in ours}, "measure")


@cases("nocow=on", "nocow=off", "extent_size_hint=2M", "nocow=on,extent_size_hint=64k,preallocation=full")
def test_hints_for_the_file_system(t, options):
    """Both programs leave the same attributes, which are few where the file system has no such thing."""
    ours, theirs = make_both(t, options, MIB)
    exercise(ours, MIB, 64 * KIB)
    equal(info(ours), info(theirs), "what qemu-img tells")
    need("lsattr")
    attributes = [run("lsattr", image, status=None).stdout.split(" ")[0] for image in (ours, theirs)]
    equal(attributes[0], attributes[1], "attributes of the file")


REFUSED = (
    ("size=1M,extent_size_hint=4G", "below 4G"), ("size=1M,nocow=maybe", "nocow"),
    ("size=1M,cluster_size=1000", "power of two"), ("size=1M,cluster_size=4M", "512 to 2M"),
    ("size=1M,refcount_bits=3", "power of two"), ("size=1M,refcount_bits=128", "1 to 64"),
    ("size=1M,compat=0.10,refcount_bits=8", "1.1"), ("size=1M,compat=0.10,lazy_refcounts=on", "1.1"),
    ("size=1M,compat=0.10,compression_type=zstd", "1.1"), ("size=1M,compat=2", "compat"),
    ("size=2305843009213693952,cluster_size=512", "larger"), ("size=129G,cluster_size=512", "larger"),
    ("size=9223372036854775807", "2\\^63|larger"), ("cluster_size=64k", "size"),
    ("size=1M,backing_file=base.raw", "backing_fmt"), ("size=1M,backing_fmt=raw", "backing_file"),
    ("size=1M,backing_file=none.raw,backing_fmt=raw", "none.raw"),
    ("size=1M,extended_l2=on,cluster_size=8k", "at least 16K"),
    ("size=1M,extended_l2=on,compat=0.10", "1.1"), ("size=1M,data_file=x,compat=0.10", "1.1"),
    ("size=1M,data_file_raw=on", "no data_file"), ("size=1M,data_file=", "empty"),
    ("size=1M,data_file=no/such/folder/x", "folder/x"),
    ("size=1T,cluster_size=64k,data_file=x,data_file_raw=on,preallocation=off,backing_fmt=raw", "backing_file"),
    ("size=129G,cluster_size=16k,extended_l2=on,refcount_bits=3", "power of two"),
    ("size=1M,nonsense=1", "nonsense"), ("size=-1", "size"),
)


@cases(*REFUSED)
def test_refused(t, options, says):
    """Nothing is written before all options were judged."""
    image = t.file("disk.qcow2", b"what was there before")
    done = tool("create", image, options, status=1)
    check(re.search(says, done.stderr), done.stderr)
    equal(read_file(image), b"what was there before", "the file")


def test_name_that_does_not_fit(t):
    t.file("b" * 240, bytes(MIB))
    name = "./" * 150 + "b" * 240
    done = tool("create", t.path("disk.qcow2"), f"cluster_size=512,backing_fmt=raw,backing_file={name}",
                status=1)
    check("fit" in done.stderr, done.stderr)
    tool("create", t.path("disk.qcow2"), f"cluster_size=4k,backing_fmt=raw,backing_file={name}")
    qemu_img_check(t.path("disk.qcow2"))


def test_image_in_use_is_not_cut(t):
    image = t.path("disk.qcow2")
    tool("create", image, "size=1M")
    before = read_file(image)
    with t.serve(image, "-f", "qcow2").client():
        tool("create", image, "size=2M", status=1)
        equal(read_file(image), before, "an image that is in use")


if __name__ == "__main__":
    main()
