#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
The options of new qcow2 images in combination: each image is made by qemu-img and by us, both images are
written by both programs, read by both, and checked by both: all are equal.

By default as many combinations as show every pair of values together; with EVNBD_MATRIX=full all that
are valid, or of those with MATRIX_SHARE="3/100" each hundredth from the third on.  A name of a test, or a
part of one, as argument runs that alone.
"""
import itertools
import json
import os
import random

from evnbd_test import (KIB, MIB, SANITIZER, cases, check, content, equal, main, qemu_img, qemu_io, read_file,
                        run, same_bytes)
from qcow2_file import EXT_FEATURE_TABLE, Qcow2File
from qcow2_judge import TOOL, qemu_img_deriving

CLUSTERS = {"512": 512, "4k": 4 * KIB, "16k": 16 * KIB, "64k": 64 * KIB, "2M": 2 * MIB}
# Each option, and the values that it is tried with.
TABLE = {
    "cluster_size": tuple(CLUSTERS),
    "refcount_bits": ("1", "2", "4", "8", "16", "32", "64"),
    "compat": ("0.10", "1.1"),
    "extended_l2": ("off", "on"),
    "lazy_refcounts": ("off", "on"),
    "preallocation": ("off", "metadata", "falloc", "full"),
    "data_file": ("none", "any", "raw"),
    "compression_type": ("zlib", "zstd"),
    "encrypt.format": ("none", "aes", "luks"),
    "backing_file": ("none", "shorter", "longer"),
}
SIZE = MIB + 3 * 512
FULL = os.environ.get("EVNBD_MATRIX") == "full"
BACKING = {"shorter": SIZE // 2 + 5 * 512, "longer": SIZE * 2}
SECRET = ("--object", "secret,id=s,data=a word")


def valid(c):
    """What can be had together. QEMU also preallocates encrypted images of 0.10, which hold noise then."""
    old = c["compat"] == "0.10"
    if old and c["preallocation"] != "off" and c["encrypt.format"] != "none":
        return False
    if old and (c["refcount_bits"] != "16" or c["compression_type"] != "zlib" or c["data_file"] != "none" or
                "on" in (c["extended_l2"], c["lazy_refcounts"])):
        return False
    if c["extended_l2"] == "on" and CLUSTERS[c["cluster_size"]] < 16 * KIB:
        return False
    if c["data_file"] == "raw" and c["backing_file"] != "none":
        return False
    if c["backing_file"] != "none" and c["preallocation"] != "off" and c["extended_l2"] == "off":
        return False
    return True


def combinations():
    for values in itertools.product(*TABLE.values()):
        c = dict(zip(TABLE, values))
        if valid(c):
            yield c


def pairs_of(c):
    return set(itertools.combinations(c.items(), 2))


def covering():
    """
    A few combinations that have every pair of values that any has; the same in each run.  Few of LUKS:
    qemu-img takes seconds to make such an image.
    """
    rng = random.Random(1)
    pool = list(combinations())
    missing = set().union(*map(pairs_of, pool))
    found = []

    def gain(c):
        return len(pairs_of(c) & missing) - (12 if c["encrypt.format"] == "luks" else 0)

    while missing:
        best = max(rng.sample(pool, 150), key=gain)
        if gain(best) <= 1:  # the last ones are rare
            pair = min(missing, key=repr)
            best = max((c for c in pool if pair in pairs_of(c)), key=gain)
        missing -= pairs_of(best)
        found.append(best)
    return found


def chosen():
    if FULL:
        share, shares = map(int, os.environ.get("MATRIX_SHARE", "1/1").split("/"))
        found = list(combinations())[share - 1::shares]
    else:
        found = covering()
    print(f"# {len(found)} combinations", flush=True)
    return found


class Image:
    """One image, as both programs open it."""

    def __init__(self, c, name):
        self.c, self.name = c, f"{name}.qcow2"
        self.encrypted = c["encrypt.format"] != "none"
        key = ["encrypt.key-secret=s"] if self.encrypted else []
        self.opens = (["--secret", "s=a word", "--open", *key] if key else [])
        self.opts = ",".join(["driver=qcow2", f"file.filename={self.name}", *key])
        self.options = self.create_options(name)

    def create_options(self, name):
        """Without those that have QEMU's way to be said."""
        found = [f"{key}={self.c[key]}" for key in TABLE
                 if key not in ("data_file", "encrypt.format", "backing_file")]
        if self.c["data_file"] != "none":
            found.append(f"data_file={name}.data")
        if self.c["data_file"] == "raw":
            found.append("data_file_raw=on")
        if self.encrypted:
            found += [f"encrypt.format={self.c['encrypt.format']}", "encrypt.key-secret=s"]
        if self.c["encrypt.format"] == "luks":
            found.append("encrypt.iter-time=1")
        return ",".join(found)

    def tool(self, *words, status=0):
        done = run(TOOL, *self.opens, *words, status=status)
        check(not SANITIZER.search(done.stderr), done.stderr)
        return done

    def qemu(self, command, *words, **more):
        return qemu_img(command, *SECRET, *words, "--image-opts", self.opts, **more)

    def create_by_us(self):
        backing = self.c["backing_file"]
        more = f",backing_file={backing}.raw,backing_fmt=raw" if backing != "none" else ""
        self.tool("create", self.name, f"size={SIZE},{self.options}{more}")

    def create_by_qemu(self):
        backing = self.c["backing_file"]
        more = ["-b", f"{backing}.raw", "-F", "raw"] if backing != "none" else []
        qemu_img_deriving("create", "-q", *SECRET, "-f", "qcow2", "-o", self.options, *more, self.name,
                          SIZE)

    def files(self):
        return [self.name] + ([self.name.replace(".qcow2", ".data")] if self.c["data_file"] != "none" else [])

    def info(self):
        told = json.loads(self.qemu("info", "--output=json").stdout)
        for key in ("filename", "actual-size", "full-backing-filename"):
            told.pop(key, None)
        told["format-specific"]["data"].pop("data-file", None)
        told["format-specific"]["data"].pop("encrypt", None)  # salts, offsets, numbers of iterations
        return told

    def sound(self):
        """No errors and no leaks, by both checks; returns how many clusters are allocated."""
        ours = json.loads(self.tool("check", self.name).stdout)
        theirs = json.loads(self.qemu("check", "--output=json").stdout)
        for found in (ours, theirs):
            bad = {key: found[key] for key in ("corruptions", "leaks", "check-errors") if found.get(key)}
            check(not bad, f"{self.name}: {bad}")
        if not self.encrypted:  # of clusters that are reserved and zero, QEMU leaves one at offset 0 out
            equal(ours["allocated-clusters"], theirs.get("allocated-clusters", 0), "allocated clusters")
        return ours["allocated-clusters"]

    def read_both(self, model):
        self.tool("dump", self.name, "ours.raw")
        same_bytes(read_file("ours.raw"), model, f"{self.name} as we read it")
        self.qemu_convert()
        same_bytes(read_file("theirs.raw"), model, f"{self.name} as qemu-img reads it")
        if self.c["data_file"] == "raw" and not self.encrypted:
            # QEMU fills the last cluster.
            same_bytes(read_file(self.files()[1])[:SIZE], model, "the raw data file")

    def qemu_convert(self):
        qemu_img("convert", *SECRET, "--image-opts", self.opts, "-O", "raw", "theirs.raw")


def write_both(image, model):
    """Both programs write, into each other's clusters too; returns what the disk holds then."""
    cluster = CLUSTERS[image.c["cluster_size"]]
    by_us = ((cluster // 2 // 512 * 512, cluster + 512, 0x33), (SIZE - 512, 512, 0x35),
             (SIZE // 2 // 512 * 512, 1024, 0x37))
    by_qemu = ((0, min(3 * cluster, SIZE // 3) // 512 * 512, 0x41), (SIZE - 1536, 1024, 0x43),
               (SIZE // 2 // 512 * 512 + 512, 1024, 0x45))
    model = bytearray(model)

    def fill(at, length, byte):
        length = min(length, SIZE - at)
        model[at:at + length] = bytes([byte]) * length
        return at, length, byte

    commands = [f"write -P {byte} {at} {length}" for at, length, byte in
                (fill(*piece) for piece in by_qemu)]
    # QEMU cannot compress into what is allocated.
    if image.c["data_file"] == "none" and image.c["preallocation"] == "off" and not image.encrypted and \
            cluster < SIZE // 4:
        at, length, byte = fill(SIZE // 4 // cluster * cluster, cluster, 0x47)
        commands.append(f"write -c -P {byte} {at} {length}")
    qemu_io(image.opts, *commands, arguments=(*SECRET, "--image-opts"))
    for at, length, byte in (fill(*piece) for piece in by_us):
        image.tool("write", image.name, at, length, byte)
    return bytes(model)


def blank(c):
    if c["backing_file"] == "none":
        return bytes(SIZE)
    return read_file(f"{c['backing_file']}.raw")[:SIZE].ljust(SIZE, b"\0")


def extensions(image):
    """Their types; with clusters of 4 KiB QEMU leaves the names of features out."""
    left_out = [EXT_FEATURE_TABLE] if image.c["cluster_size"] == "4k" else []
    return sorted(kind for _, kind, _ in Qcow2File(image.name).extensions() if kind not in left_out)


def blank_of(image):
    """
    What preallocated clusters of encrypted images hold is noise, if QEMU made them; with raw data files
    tables are always preallocated.
    """
    if image.encrypted and (image.c["preallocation"] != "off" or image.c["data_file"] == "raw"):
        image.qemu_convert()
        return read_file("theirs.raw")
    return blank(image.c)


@cases(*(" ".join(c.values()) for c in chosen()),
       sanitized=lambda values: FULL or values.startswith(("512 ", "16k ")) and " luks " not in values)
def test_matrix(t, values):
    c = dict(zip(TABLE, values.split()))
    os.chdir(t.dir)  # names of data files are relative
    for name, length in BACKING.items():
        t.file(f"{name}.raw", content(3, length))
    ours, theirs = Image(c, "one"), Image(c, "two")
    ours.create_by_us()
    theirs.create_by_qemu()
    check(c["backing_file"] != "none" or blank_of(ours) == bytes(SIZE), "a new image of ours is not zero")
    equal(ours.info(), theirs.info(), "what qemu-img tells")
    equal(extensions(ours), extensions(theirs), "header extensions")
    equal(*(Qcow2File(image.name).get("compatible") for image in (ours, theirs)), "compatible bits")
    clusters = [image.sound() for image in (ours, theirs)]
    equal(clusters[0], clusters[1], "allocated clusters of new images")
    if c["preallocation"] in ("falloc", "full"):
        check(sum(os.stat(path).st_blocks for path in ours.files()) * 512 >= SIZE, "storage is not reserved")
    for image in (ours, theirs):
        model = blank_of(image)
        if c["backing_file"] != "none":
            image.read_both(model)
        image.read_both(write_both(image, model))
        image.sound()


if __name__ == "__main__":
    main()
