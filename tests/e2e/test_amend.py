#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Amended images: qemu-img finds the new features and the old content, and amends on."""
import json
import os
import random

from evnbd_test import (KIB, MIB, cases, check, content, equal, main, qemu_img, qemu_img_check,
                        qemu_io, read_file, same_bytes)
from qcow2_file import EXT_FEATURE_TABLE, Qcow2File
from qcow2_judge import disk, sound, tool

CLUSTERS = ("512", "4k", "64k", "2M")


def told(image):
    return json.loads(qemu_img("info", "-U", "-f", "qcow2", "--output=json", image).stdout)


def features(image):
    data = told(image)["format-specific"]["data"]
    return data["compat"], data["refcount-bits"], data.get("lazy-refcounts", False)


def fill(image, size, seed):
    """Data, zeroes with and without storage, and compressed clusters."""
    rng = random.Random(seed)
    commands = []
    for step in range(8):
        at, length = rng.randrange(0, size - 200 * KIB, 64 * KIB), rng.randrange(1, 3) * 64 * KIB
        commands.append(rng.choice((f"write -q -P {step + 1} {at} {length}",
                                    f"write -q -z {at} {length}", f"write -q -z -u {at} {length}")))
    qemu_io(image, *commands, arguments=("-f", "qcow2"))
    qemu_io(image, "write -q -c -P 99 2M 64k", arguments=("-f", "qcow2"), status=None)


@cases(*((cluster, seed, backing) for cluster in CLUSTERS for seed, backing in ((1, False), (2, True))))
def test_walk(t, cluster, seed, backing):
    """From features to features, by us and by qemu-img; the content stays."""
    image, rng, size = t.path("a.qcow2"), random.Random(seed), 3 * MIB + 512
    base = ("-b", t.file("base.raw", content(1, MIB + 512)), "-F", "raw") if backing else ()
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", *base, image, size)
    fill(image, size, seed)
    wanted = disk(t, image)
    for step in range(5):
        version = rng.choice(("0.10", "1.1", "1.1"))
        bits = 16 if version == "0.10" else rng.choice((1, 2, 4, 8, 16, 32, 64))
        lazy = version == "1.1" and rng.random() < 0.5
        options = f"compat={version},refcount_bits={bits}" + (
            f",lazy_refcounts={'on' if lazy else 'off'}" if version == "1.1" else "")
        if bits == 1 and cluster == "2M":
            options = options.replace("refcount_bits=1,", "refcount_bits=8,")
            bits = 8
        if cluster == "2M" or rng.random() < 0.7:  # there QEMU takes minutes
            # Packed compressed clusters have several references.
            done = tool("amend", image, options, status=None)
            if done.returncode:
                check("too narrow" in done.stderr, done.stderr)
                continue
        elif qemu_img("amend", "-q", "-f", "qcow2", "-o", options, image, status=None).returncode:
            continue
        equal(features(image), (version, bits, lazy), "features")
        sound(image)
        same_bytes(disk(t, image), wanted, f"the disk after step {step}, {options}")
        if step % 3 == 2:
            qemu_io(image, f"write -q -z {step}M 100k", arguments=("-f", "qcow2"))
            wanted = disk(t, image)
            sound(image)


@cases(*CLUSTERS)
def test_downgrade_drops_zero_clusters(t, cluster):
    base = t.file("base.raw", content(1, 2 * MIB + 512))
    for arguments in ((), ("-b", base, "-F", "raw")):
        image = t.path("a.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", *arguments, image,
                 4 * MIB)
        qemu_io(image, "write -q -z 0 4M", "write -q -P 3 512k 1M", "write -q -z 600k 100k",
                arguments=("-f", "qcow2"))
        wanted = disk(t, image)
        tool("amend", image, "compat=0.10")
        equal(features(image)[0], "0.10", "version")
        sound(image)
        same_bytes(disk(t, image), wanted, "the disk")
        kinds = {kind for _, kind, _ in Qcow2File(image).extensions()}
        check(EXT_FEATURE_TABLE not in kinds, "version 2 has names of features")


def test_snapshots_outlive_other_refcounts(t):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, 4 * MIB)
    for byte in (1, 2, 3):
        qemu_io(image, f"write -q -P {byte} 0 {byte}M", arguments=("-f", "qcow2"))
        qemu_img("snapshot", "-c", f"s{byte}", image)
    for bits in (64, 4, 2):
        tool("amend", image, f"refcount_bits={bits}")
        sound(image)
    before = read_file(image)
    said = tool("amend", image, "refcount_bits=1", status=1).stderr
    check("refcounts of 1 bits are too narrow: the cluster at offset" in said, said)
    equal(read_file(image), before, "the image")
    qemu_img("snapshot", "-a", "s2", image)
    sound(image)
    same_bytes(disk(t, image), bytes([2]) * 2 * MIB + bytes(2 * MIB), "the snapshot's disk")


@cases(("20M", 20 * MIB), ("5M", 5 * MIB), ("1000", 1024))
def test_size(t, option, size):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", image, 10 * MIB)
    tool("amend", image, f"size={option},compat=1.1,refcount_bits=1")
    equal(told(image)["virtual-size"], size, "size")
    equal(features(image), ("1.1", 1, False), "features")
    sound(image)


NAMES = ("b.raw", "", "c" * 200, "d", "x" * 255, "")


@cases(*((cluster, version) for cluster in ("512", "1k", "4k", "64k") for version in ("0.10", "1.1")))
def test_backing_names(t, cluster, version):
    image = t.path("a.qcow2")
    t.file("b.raw", content(1, MIB))
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster},compat={version}", image,
             MIB)
    for name in NAMES:
        for step in ("", "amend"):
            if step:
                tool("amend", image, "compat=1.1" if version == "0.10" else "lazy_refcounts=on",
                     status=0 if name in ("b.raw", "") else None)
            else:
                tool("backing", image, name, "raw")
            info = told(image)
            equal((info.get("backing-filename", ""), info.get("backing-filename-format")),
                  (name, "raw" if name else None), "backing file")
        if name == "b.raw":
            same_bytes(disk(t, image), content(1, MIB), "the disk")
        if name in ("b.raw", ""):
            sound(image)


def test_unknown_extensions_stay(t):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, MIB)
    file = Qcow2File(image)
    at = file.extension(EXT_FEATURE_TABLE)
    file.data[at:at + 4] = b"\x12\x34\x56\x78"
    kept = bytes(file.data[at:at + 8 + 384])
    file.save(image)
    tool("backing", image, "base.raw", "raw")
    file = Qcow2File(image)
    at = file.extension(0x12345678)
    equal(bytes(file.data[at:at + 8 + 384]), kept, "the extension")
    equal(told(image)["backing-filename"], "base.raw", "backing file")


REFUSED = {
    "cluster_size=4k": "can only be given when an image is created",
    "preallocation=full": "can only be given when an image is created",
    "extended_l2=on": "can only be given when an image is created",
    "compression_type=zstd": "can only be given when an image is created",
    "encryption=on": "can only be given when an image is created",
    "backing_file=x": "rebase the image",
    "backing_fmt=raw": "rebase the image",
    "data_file=x": "external data file",
    "data_file_raw=on": "cannot be switched on",
    "compat=9": "0.10",
    "refcount_bits=7": "power of two",
    "refcount_bits=128": "power of two",
    "foo=1": "foo",
    "compat=0.10,lazy_refcounts=on": "needs compat=1.1",
    "compat=0.10,refcount_bits=8": "needs compat=1.1",
    "size=8E": "",
}


@cases(*REFUSED)
def test_refuses(t, options):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, MIB)
    before = read_file(image)
    said = tool("amend", image, options, status=1).stderr
    check(REFUSED[options] in said, said)
    equal(read_file(image), before, "the image")


@cases(("compression_type=zstd", "zstd"), ("extended_l2=on", "extended L2 entries"),
       ("refcount_bits=8", "refcount_bits=16"))
def test_refuses_downgrade(t, options, words):
    image = t.path("a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, MIB)
    before = read_file(image)
    said = tool("amend", image, "compat=0.10", status=1).stderr
    check(words in said, said)
    equal(read_file(image), before, "the image")


def test_data_file(t):
    image, data = t.path("a.qcow2"), t.path("a.data")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", image, MIB)
    tool("amend", image, "refcount_bits=64,size=2M")
    qemu_img_check(image)
    equal(read_file(data), bytes(2 * MIB), "the data file")
    tool("amend", image, "data_file_raw=off")
    qemu_img_check(image)
    told = json.loads(qemu_img("info", "--output=json", image).stdout)["format-specific"]["data"]
    equal((told["data-file"], told["data-file-raw"], told["refcount-bits"]), (data, False, 64),
          "what qemu-img tells")


@cases(("512", "off"), ("64k", "off"), ("64k", "on"))
def test_name_of_data_file(t, cluster, raw):
    """Another name in the header, as long as it fits; the same with qemu-img."""
    image, data, other = t.path("a.qcow2"), t.path("a.data"), t.path("other.data")
    backing = ("-b", t.file("base.raw", content(1, MIB)), "-F", "raw") if raw == "off" else ()
    qemu_img("create", "-q", "-f", "qcow2", "-o",
             f"cluster_size={cluster},data_file={data},data_file_raw={raw}", *backing, image, MIB)
    qemu_io(image, "write -q -P 5 64k 64k", arguments=("-f", "qcow2"))
    wanted = disk(t, image)
    os.rename(data, other)
    tool("--open", f"data-file.filename={other}", "amend", image, f"data_file={other},lazy_refcounts=on")
    told_now = told(image)
    equal(told_now["format-specific"]["data"]["data-file"], other, "name of the data file")
    equal(told_now["format-specific"]["data"]["data-file-raw"], raw == "on", "data-file-raw")
    equal(told_now.get("backing-filename"), backing[1] if backing else None, "backing file")
    sound(image)
    same_bytes(disk(t, image), wanted, "the disk")
    before = read_file(image)
    for name in ("", "x" * 70000):
        said = tool("amend", image, f"data_file={name}", status=1).stderr
        check("data file" in said, said)
    equal(read_file(image), before, "the image after what was refused")
    qemu_img("amend", "-q", "-f", "qcow2", "-o", f"data_file={data}", image)
    os.rename(other, data)
    tool("amend", image, f"data_file={data}")
    sound(image)
    same_bytes(disk(t, image), wanted, "the disk")


def test_refuses_downgrade_with_bitmaps_and_snapshots(t):
    for command in (("bitmap", "--add"), ("snapshot", "-c")):
        image = t.path("a.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", image, MIB)
        if command[0] == "bitmap":
            qemu_img(*command, image, "b")
        else:
            qemu_img(*command, "s", image)
        before = read_file(image)
        tool("amend", image, "compat=0.10", status=1)
        equal(read_file(image), before, "the image")


if __name__ == "__main__":
    main()
