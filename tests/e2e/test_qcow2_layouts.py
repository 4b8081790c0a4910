#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""qcow2 with extended L2 entries and external data files: QEMU and we use the same images in turn."""
import json
import os
import random
import struct

from evnbd_test import (HELPERS, KIB, MIB, SANITIZED, SANITIZER, cases, check, content, digest, equal,
                        main, need, qemu_img, qemu_img_check, qemu_io, read_file, refused, run,
                        same_bytes)
from nbd_raw import CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES
from qcow2_file import COMPRESSED, COPIED, EXT_DATA_FILE, OFFSET_MASK, Qcow2File

TOOL = os.path.join(HELPERS, "..", "tools", "qcow2_tool")
SIZE = 5 * MIB + 512
ROUNDS = 3 if SANITIZED else 5
STEPS = 12
KINDS = ("extended_l2=on", "extended_l2=on,cluster_size=16k", "extended_l2=on,cluster_size=2M",
         "data_file=D", "data_file=D,cluster_size=512", "data_file=D,extended_l2=on",
         "data_file=D,data_file_raw=on", "data_file=D,data_file_raw=on,extended_l2=on,cluster_size=16k")
NUMBERS = ("corruptions", "leaks", "check-errors", "total-clusters", "allocated-clusters",
           "fragmented-clusters", "compressed-clusters", "image-end-offset")


def tool(*words, status=0):
    done = run(TOOL, *words, status=status)
    check(not SANITIZER.search(done.stderr), done.stderr)
    return done


def make_image(t, options, backing="", size=SIZE):
    """Returns the image and what it reads as."""
    image, more = t.path("disk.qcow2"), []
    below = bytes(size)
    if backing:
        below = content(40, size)
        t.file("base.raw", below)
        more = ["-b", "base.raw", "-F", "raw"]
    qemu_img("create", "-q", "-f", "qcow2", "-o", options.replace("=D", "=" + t.path("disk.data")), *more,
             image, size)
    model = bytearray(below)
    if "data_file" not in options:
        qemu_io(image, "write -c -P 99 2M 2M", arguments=("-f", "qcow2"))
        model[2 * MIB:4 * MIB] = bytes([99]) * 2 * MIB
    return image, model


# What is done to the image; the model follows.

def choose(dice, size):
    """A range: any, or whole clusters of a usual size."""
    unit = dice.choice((1, 512, 2 * KIB, 16 * KIB, 64 * KIB))
    offset = dice.randrange(size) // unit * unit
    length = max(dice.randrange(1, 150 * KIB) // unit, 1) * unit
    return offset, min(length, size - offset)


def by_qemu(t, image, dice, model):
    """Writes and zeroes by qemu-io, which wants whole sectors."""
    commands = []
    for _ in range(STEPS):
        offset, length = (n // 512 * 512 for n in choose(dice, len(model)))
        length = max(length, 512)
        kind, byte = dice.choice(("write", "write", "write -z", "write -z -u")), dice.randrange(1, 255)
        commands.append(f"{kind} -P {byte} {offset} {length}" if kind == "write" else f"{kind} {offset} {length}")
        model[offset:offset + length] = bytes([byte if kind == "write" else 0]) * length
    qemu_io(image, *commands, arguments=("-f", "qcow2", "-d", "unmap"))


def by_us(t, image, dice, model):
    with t.serve(image, "-f", "qcow2", "--discard=unmap").client() as client:
        for _ in range(STEPS):
            offset, length = choose(dice, len(model))
            kind = dice.choice((CMD_WRITE, CMD_WRITE, CMD_WRITE_ZEROES, CMD_TRIM))
            data = bytes([dice.randrange(1, 255)]) * length if kind == CMD_WRITE else b""
            flags = dice.choice((0, 2)) if kind == CMD_WRITE_ZEROES else 0  # NO_HOLE
            equal(client.command(kind, offset, length, flags, data), 0, f"error of command {kind} at {offset}")
            if kind == CMD_TRIM:
                data = client.read(offset, length)
                check(all(a in (b, 0) for a, b in zip(data, model[offset:offset + length])),
                      f"TRIM of {length} bytes at {offset} left neither old bytes nor zeroes")
            model[offset:offset + length] = data or bytes(length)
        same_bytes(client.read_all(), bytes(model), "the export")
    t.stop_servers()


def merged(extents):
    """Extents as (start, end, depth or None, zero), neighbors joined."""
    out = []
    for start, length, depth, zero in extents:
        if out and out[-1][1] == start and out[-1][2:] == (depth, zero):
            out[-1] = (out[-1][0], start + length, depth, zero)
        else:
            out.append((start, start + length, depth, zero))
    return out


def qemu_map(image):
    extents = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", image).stdout)
    # Data that is zero: QEMU has found a hole of the file below what the tables call data.
    return merged((e["start"], e["length"], e["depth"] + 1 if e["present"] else None,
                   e["zero"] and not e["data"]) for e in extents)


def our_map(image):
    extents = (json.loads(line) for line in tool("map", image).stdout.splitlines())
    return merged((e["start"], e["length"], e["depth"] or None, e["zero"]) for e in extents)


def compare_verdicts(image):
    done = qemu_img("check", "-f", "qcow2", "--output=json", image, status=None)
    theirs, ours = json.loads(done.stdout), json.loads(tool("check", image).stdout)
    equal({key: ours[key] for key in NUMBERS}, {key: theirs.get(key, 0) for key in NUMBERS},
          "the numbers of our check and of qemu-img's")


def compare_all(t, image, model, raw):
    qemu_img_check(image)
    compare_verdicts(image)
    expected = t.file("model.raw", bytes(model))
    qemu_img("compare", "-f", "qcow2", "-F", "raw", image, expected)
    equal(our_map(image), qemu_map(image), "map")
    if raw:
        same_bytes(read_file(t.path("disk.data"))[:len(model)], bytes(model), "the raw data file")


@cases(*((kind, backing) for kind in KINDS for backing in ("", "backing")
         if not (backing and "raw" in kind)))
def test_in_turns(t, kind, backing):
    need("qemu-io")
    image, model = make_image(t, kind, backing)
    dice = random.Random(f"{kind} {backing}")
    for _ in range(ROUNDS):
        for change in (by_qemu, by_us):
            change(t, image, dice, model)
            compare_all(t, image, model, "raw" in kind)


@cases(*KINDS)
def test_nbdinfo_map(t, kind):
    """What clients are told of holes and zeroes is what QEMU tells of the image."""
    need("nbdinfo", "qemu-io")
    image, model = make_image(t, kind)
    by_qemu(t, image, random.Random(kind), model)
    server = t.serve(image, "-f", "qcow2", "-r")
    told = json.loads(run("nbdinfo", "--map", "--json", server.uri).stdout)
    ours = merged((e["offset"], e["length"], None, bool(e["type"] & 2)) for e in told)
    equal(ours, merged((start, end - start, None, zero) for start, end, _, zero in qemu_map(image)), "map")


# Data files.

def data_image(t, name):
    """An image whose data file has the name; a file disk.data is there."""
    image = Qcow2File(make_image(t, "data_file=D")[0])
    at = image.extension(EXT_DATA_FILE)
    old = struct.unpack_from(">I", image.data, at + 4)[0]
    rest = image.data[at + 8 + (old + 7) // 8 * 8:1024]
    fresh = struct.pack(">II", EXT_DATA_FILE, len(name)) + name + bytes(-len(name) % 8) + rest
    image.data[at:at + len(fresh)] = fresh
    return image.save(t.path("named.qcow2"))


@cases((b"nbd://localhost/x", "path"), (b"http://localhost/x", "path"), (b"fd:1", "path"),
       (b'json:{"driver":"file","filename":"disk.data"}', "path"), (b"host_device:/dev/sda", "path"),
       (b"disk\0data", "path"), (b"", "data-file.filename|path"), (b".", "directory"),
       (b"no/such/file", "no such file"), (b"/dev/null", "character device"),
       (b"named.qcow2", "comes back"), (b"./named.qcow2", "comes back"))
def test_data_file_names(t, name, says):
    image = data_image(t, name)
    before = digest(image)
    for access in ((), ("-r",)):
        refused(t, image, "-f", "qcow2", *access, says=["named.qcow2", says])
    equal(digest(image), before, "hash of the image")


def test_data_file_is_beside_the_image(t):
    """A relative name is looked for where the image is, not where the server runs."""
    with t.serve(data_image(t, b"disk.data"), "-f", "qcow2").client() as client:
        client.write(MIB, b"found")
    t.stop_servers()
    equal(read_file(t.path("disk.data"))[MIB:MIB + 5], b"found", "the data file")


def test_data_file_that_looks_like_an_image(t):
    """Nothing is probed: the data file is raw, whatever a guest writes into it."""
    image, _ = make_image(t, "data_file=D,data_file_raw=on")
    header = read_file(image)[:64 * KIB]
    for _ in range(2):
        with t.serve(image, "-f", "qcow2").client() as client:
            client.write(0, header)
            equal(client.read(0, len(header)), header, "what a guest wrote")
        t.stop_servers()


def test_data_file_with_holes_is_short(t):
    """What a data file lacks at its end reads as zeroes, and grows when it is written."""
    image, _ = make_image(t, "data_file=D")
    os.truncate(t.path("disk.data"), 0)
    with t.serve(image, "-f", "qcow2").client() as client:
        equal(client.read(0, MIB), bytes(MIB), "nothing")
        client.write(SIZE - 1000, b"end")
    t.stop_servers()
    check(os.path.getsize(t.path("disk.data")) <= SIZE, "the data file is longer than the disk")
    qemu_io(image, f"read -P 0 {SIZE - 512} 512", arguments=("-f", "qcow2"))
    qemu_img_check(image)


def test_snapshots_exclude_a_data_file(t):
    image = Qcow2File(make_image(t, "data_file=D")[0])
    image.set("snapshots", 1).set("snapshots_offset", image.get("l1_offset"))
    refused(t, image.save(t.path("bad.qcow2")), "-f", "qcow2", says=["bad.qcow2", "snapshots", "data file"])


# Checks and repairs of entries.

def spoil(image, what):
    at = image.l2_entry_at(64 * KIB)
    if what == "both":
        image.set_u64(at + 8, image.u64(at + 8) | 1 << 33)
    elif what == "no-storage":
        image.set_u64(at, 0)
    elif what == "packed":
        image.set_u64(image.l2_entry_at(2 * MIB) + 8, 1)
    elif what == "zero-bit":
        image.set_u64(at, image.u64(at) | 1)
    elif what == "unaligned":
        image.set_u64(at, image.u64(at) + 512)
    elif what == "beyond":
        image.set_u64(at, COPIED | 1 << 45)
    elif what == "elsewhere":
        image.set_u64(at, COPIED | 192 * KIB)
    else:
        image.set_u64(at, COMPRESSED | image.u64(at) & OFFSET_MASK)


@cases(*(("extended_l2=on", what) for what in ("both", "no-storage", "packed", "zero-bit", "unaligned", "beyond")),
       *(("data_file=D", what) for what in ("elsewhere", "compressed", "unaligned")),
       ("data_file=D,extended_l2=on", "both"), ("data_file=D,extended_l2=on", "no-storage"))
def test_repair(t, kind, what):
    """A broken entry is found and repaired; QEMU finds nothing more, and the rest is what it was."""
    need("qemu-io")
    path, _ = make_image(t, kind)
    qemu_io(path, "write -P 1 0 256k", arguments=("-f", "qcow2"))
    image = Qcow2File(path)
    spoil(image, what)
    image.save(path)
    tool("check", path, status=2)
    equal(digest(path), digest(image.save(t.path("copy"))), "hash of an image that was only checked")
    tool("repair", path, "all")
    compare_verdicts(path)
    qemu_img_check(path)
    with t.serve(path, "-f", "qcow2").client() as client:
        equal(client.read(0, 64 * KIB), b"\1" * 64 * KIB, "data before the broken entry")
        equal(client.read(192 * KIB, 64 * KIB), b"\1" * 64 * KIB, "data behind it")
        if what in ("both", "packed", "zero-bit"):
            equal(client.read(64 * KIB, 64 * KIB), b"\1" * 64 * KIB, "data of the entry, which is not lost")
        client.read(64 * KIB, 128 * KIB)


@cases("", "cluster_size=16k", "data_file=D")
def test_repair_of_refcounts(t, more):
    """Refcounts are rebuilt from extended entries, too; those of a data file are none."""
    need("qemu-io")
    path, _ = make_image(t, f"extended_l2=on{',' if more else ''}{more}")
    qemu_io(path, "write -P 1 0 1M", "write -P 2 3M 100k", arguments=("-f", "qcow2"))
    image = Qcow2File(path)
    image.set_u64(image.reftable_at(), 0x200)
    image.save(path)
    tool("check", path, status=2)
    tool("repair", path, "all")
    compare_verdicts(path)
    qemu_io(path, "read -P 1 0 1M", "read -P 2 3M 100k", arguments=("-f", "qcow2"))


if __name__ == "__main__":
    main()
