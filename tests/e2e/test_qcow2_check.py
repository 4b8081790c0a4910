#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Checking and repairing qcow2 images: our verdict and QEMU's, and what a repair leaves."""
import json
import os
import struct

from evnbd_test import (HELPERS, KIB, MIB, SANITIZER, cases, check, digest, equal, main,
                        qemu_img, qemu_img_check, qemu_io, refused, read_file, run, same_bytes)
from qcow2_file import COPIED, OFFSET_MASK, Qcow2File

TOOL = os.path.join(HELPERS, "..", "tools", "qcow2_tool")
NUMBERS = ("corruptions", "leaks", "check-errors", "total-clusters", "allocated-clusters",
           "fragmented-clusters", "compressed-clusters", "image-end-offset")
SIZE = 6 * MIB
KINDS = (("1.1", 4 * KIB, 16), ("1.1", 64 * KIB, 16), ("1.1", 512, 1), ("1.1", 4 * KIB, 64),
         ("0.10", 4 * KIB, 16))
# Guest clusters (of 64 KiB) that damages use: with data; 16: compressed; 18: zeroes.
DATA, OTHER, PACKED = 2 * 64 * KIB, 5 * 64 * KIB, 16 * 64 * KIB


def tool(*words, status=0, **options):
    done = run(TOOL, *words, status=None, **options)
    check(not SANITIZER.search(done.stderr), done.stderr)
    check(status is None or done.returncode == status,
          f"{words}: status {done.returncode} instead of {status}: {done.stdout}{done.stderr[-3000:]}")
    return done


def our_check(image, status=None):
    done = tool("check", image, status=status)
    return json.loads(done.stdout) if done.stdout else {}


def qemu_check(image):
    done = qemu_img("check", "-f", "qcow2", "--output=json", image, status=None)
    found = json.loads(done.stdout) if done.stdout else {}
    return {key: found.get(key, 0) for key in NUMBERS}


def compare_numbers(image, keys=NUMBERS):
    ours, theirs = our_check(image), qemu_check(image)
    equal({key: ours[key] for key in keys}, {key: theirs[key] for key in keys},
          "the numbers of our check and of qemu-img's")


def guest(t, image):
    path = t.path("guest.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, path)
    return read_file(path)


def make_image(t, compat="1.1", cluster=4 * KIB, refcount_bits=16, name="disk.qcow2", snapshots=0):
    image = t.path(name)
    options = f"compat={compat},cluster_size={cluster}"
    if compat != "0.10":
        options += f",refcount_bits={refcount_bits}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, SIZE)
    writes = [f"write -P {1 + i} {i * 128 * KIB} 100k" for i in range(1, 8)]
    writes += [f"write -P 77 {OTHER} 64k", f"write -c -P 88 {PACKED} 64k", f"write -c -P 89 {PACKED + 64 * KIB} 64k"]
    if compat != "0.10":
        writes += [f"write -z {18 * 64 * KIB} 64k"]
    writes += ["write -P 99 5M 200k"]
    qemu_io(image, *writes, arguments=("-f", "qcow2"))
    for number in range(snapshots):
        qemu_img("snapshot", "-c", f"s{number}", image)
        qemu_io(image, f"write -P {200 + number} {DATA} 64k", arguments=("-f", "qcow2"))
    return image


# Damages: each changes the file in memory.

def refcount_at(file, host):
    """File offset of a 16-bit refcount."""
    cluster, entries = host // file.cluster_size, file.cluster_size // 2
    return (file.u64(file.reftable_at() + cluster // entries * 8) & ~0x1FF) + cluster % entries * 2


def set_refcount(file, host, value):
    struct.pack_into(">H", file.data, refcount_at(file, host), value)


def host_of(file, guest_offset):
    return file.u64(file.l2_entry_at(guest_offset)) & OFFSET_MASK


def change(file, at, function):
    file.set_u64(at, function(file.u64(at)))


def leak(file):
    cluster = file.cluster_size
    free = (len(file.data) + cluster - 1) // cluster * cluster
    file.data.extend(bytes(free + 3 * cluster - len(file.data)))
    for number in range(3):
        set_refcount(file, free + number * cluster, 1)


def refcount_too_low(file):
    set_refcount(file, host_of(file, DATA), 0)


def refcount_too_high(file):
    set_refcount(file, host_of(file, DATA), 2)
    change(file, file.l2_entry_at(DATA), lambda v: v & ~COPIED)


def copied_lacks(file):
    change(file, file.l2_entry_at(DATA), lambda v: v & ~COPIED)
    change(file, file.l1_entry_at(DATA), lambda v: v & ~COPIED)


def data_twice(file):
    file.set_u64(file.l2_entry_at(OTHER), file.u64(file.l2_entry_at(DATA)))


def data_beyond(file):
    file.set_u64(file.l2_entry_at(DATA), 1 << 50 | COPIED)


def data_unaligned(file):
    change(file, file.l2_entry_at(DATA), lambda v: v + 512)


def data_reserved(file):
    change(file, file.l2_entry_at(DATA), lambda v: v | 1 << 57)


def data_on_l1(file):
    file.set_u64(file.l2_entry_at(DATA), file.get("l1_offset") | COPIED)


def data_on_refblock(file):
    file.set_u64(file.l2_entry_at(DATA), file.u64(file.reftable_at()) | COPIED)


def data_on_l2(file):
    file.set_u64(file.l2_entry_at(DATA), file.u64(file.l1_entry_at(DATA)))


def compressed_copied(file):
    change(file, file.l2_entry_at(PACKED), lambda v: v | COPIED)


def compressed_beyond(file):
    change(file, file.l2_entry_at(PACKED), lambda v: v | 1 << 45)


def l1_beyond(file):
    file.set_u64(file.l1_entry_at(DATA), 1 << 50 | COPIED)


def l1_unaligned(file):
    change(file, file.l1_entry_at(DATA), lambda v: v + 512)


def l1_reserved(file):
    change(file, file.l1_entry_at(DATA), lambda v: v | 1 << 60)


def l1_on_l1(file):
    file.set_u64(file.l1_entry_at(DATA), file.get("l1_offset") | COPIED)


def block_missing(file):
    file.set_u64(file.reftable_at(), 0)


def block_beyond(file):
    file.set_u64(file.reftable_at(), 1 << 50)


def block_unaligned(file):
    change(file, file.reftable_at(), lambda v: v + 512)


def block_reserved(file):
    change(file, file.reftable_at(), lambda v: v | 8)


def block_on_l2(file):
    file.set_u64(file.reftable_at(), file.u64(file.l1_entry_at(DATA)) & OFFSET_MASK)


def block_twice(file):
    file.set_u64(file.reftable_at() + 8, file.u64(file.reftable_at()))


def block_zeroed(file):
    at = file.u64(file.reftable_at())
    file.data[at:at + file.cluster_size] = bytes(file.cluster_size)


def reftable_beyond(file):
    file.set("reftable_offset", 1 << 30)


def reftable_partly_beyond(file):
    """It would cover all tables of the image."""
    file.set("reftable_offset", 0x1000).set("reftable_clusters", 2048)


def reftable_empty(file):
    file.set("reftable_clusters", 0)


def snapshots_beyond(file):
    file.set("snapshots", 2).set("snapshots_offset", 1 << 30)


def dirty(file):
    file.set("incompatible", file.get("incompatible") | 1)


def corrupt(file):
    file.set("incompatible", 2)


# The damage; whether our numbers are QEMU's; guest ranges that a repair cannot save, and what of it.
SAME, CLOSE = True, False
WHOLE = ()
ONE_CLUSTER = ((DATA, "cluster"),)
ONE_TABLE = ((DATA, "table"),)
DAMAGES = (
    (leak, SAME, WHOLE), (refcount_too_low, SAME, WHOLE), (refcount_too_high, SAME, WHOLE),
    (copied_lacks, SAME, WHOLE), (data_twice, SAME, ((OTHER, "cluster"),)),
    (data_beyond, SAME, ONE_CLUSTER), (data_unaligned, SAME, ONE_CLUSTER),
    (data_reserved, SAME, WHOLE), (data_on_l1, SAME, ONE_CLUSTER),
    (data_on_refblock, CLOSE, ONE_CLUSTER), (data_on_l2, SAME, ONE_CLUSTER),
    (compressed_copied, SAME, WHOLE), (compressed_beyond, SAME, ((PACKED, "cluster"),)),
    (l1_beyond, SAME, ONE_TABLE), (l1_unaligned, CLOSE, ONE_TABLE), (l1_reserved, SAME, WHOLE),
    (l1_on_l1, CLOSE, ONE_TABLE), (block_missing, SAME, WHOLE), (block_beyond, SAME, WHOLE),
    (block_unaligned, CLOSE, WHOLE), (block_reserved, CLOSE, WHOLE), (block_on_l2, CLOSE, WHOLE),
    (block_twice, CLOSE, WHOLE), (block_zeroed, SAME, WHOLE), (reftable_beyond, SAME, WHOLE),
    (reftable_partly_beyond, CLOSE, WHOLE), (reftable_empty, SAME, WHOLE), (snapshots_beyond, CLOSE, WHOLE),
    (dirty, SAME, WHOLE), (corrupt, SAME, WHOLE),
)


def without(data, lost, file):
    """The guest's bytes without the ranges that are lost."""
    data = bytearray(data)
    for at, unit in lost:
        length = file.cluster_size * (file.cluster_size // 8 if unit == "table" else 1)
        start = at // length * length
        length = min(length, len(data) - start)
        data[start:start + length] = bytes(length)
    return bytes(data)


def check_repaired(t, image, wanted, lost=WHOLE):
    qemu_img_check(image)
    compare_numbers(image)
    file = Qcow2File(image)
    same_bytes(without(guest(t, image), lost, file), without(wanted, lost, file), "the disk")
    equal(file.get("incompatible") & 3 if file.get("version") >= 3 else 0, 0, "dirty and corrupt bits")
    before = digest(image)
    equal(json.loads(tool("repair", image, "all").stdout)["corruptions-fixed"], 0, "a second repair")
    equal(digest(image), before, "hash of the image after a second repair")
    tool("write", image, DATA + 100, 200000, 0x5A)
    tool("write", image, 3 * MIB, 200000, 0xA5)
    qemu_img_check(image)
    qemu_io(image, f"read -P 0x5A {DATA + 100} 200000", f"read -P 0xA5 {3 * MIB} 200000",
            "write -P 3 1M 3M", arguments=("-f", "qcow2"))
    qemu_img_check(image)


@cases(*KINDS)
def test_sound(t, compat, cluster, refcount_bits):
    """Images of QEMU, with snapshots where the refcounts allow them."""
    for snapshots in (0, 2) if refcount_bits > 1 else (0,):
        image = make_image(t, compat, cluster, refcount_bits, f"{snapshots}.qcow2", snapshots)
        before = digest(image)
        found = our_check(image, status=0)
        equal((found["corruptions"], found["leaks"], found["check-errors"]), (0, 0, 0), "findings")
        compare_numbers(image)
        tool("repair", image, "all")
        equal(digest(image), before, "hash of a sound image after check and repair")


@cases(*((damage.__name__, version) for damage, _, _ in DAMAGES for version in ("1.1", "0.10")))
def test_damage(t, name, version):
    damage, same, lost = next(row for row in DAMAGES if row[0].__name__ == name)
    if version == "0.10" and name in ("dirty", "corrupt"):
        return  # version 2 has no such bits
    image = make_image(t, version, 4 * KIB)
    wanted = guest(t, image)
    file = Qcow2File(image)
    damage(file)
    file.save(image)
    before = digest(image)
    found, theirs = our_check(image), qemu_check(image)
    equal(digest(image), before, "hash of the image after it was checked")
    if same:
        equal({key: found[key] for key in NUMBERS}, theirs, "our numbers and QEMU's")
    sick = ("corruptions", "check-errors")
    equal(any(found[key] for key in sick), any(theirs[key] for key in sick), f"verdict ({theirs})")
    fixed = json.loads(tool("repair", image, "all").stdout)
    equal((fixed["corruptions"], fixed["leaks"]), (0, 0), "what is left after the repair")
    for what in ("corruptions", "leaks"):
        check(not found[what] or fixed["corruptions-fixed"] + fixed["leaks-fixed"] > 0,
              f"repaired {fixed}, found before {found}")
    check_repaired(t, image, wanted, lost)


@cases("leak", "refcount_too_high")
def test_only_leaks(t, name):
    image = make_image(t)
    wanted = guest(t, image)
    file = Qcow2File(image)
    globals()[name](file)
    file.save(image)
    fixed = json.loads(tool("repair", image, "leaks", status=None).stdout)
    check(fixed["leaks-fixed"] > 0 and fixed["leaks"] == 0, str(fixed))
    tool("repair", image, "all")
    check_repaired(t, image, wanted)


def test_leaks_only_leaves_errors(t):
    image = make_image(t)
    file = Qcow2File(image)
    data_beyond(file)
    file.set("incompatible", 2)
    file.save(image)
    found = json.loads(tool("repair", image, "leaks", status=2).stdout)
    check(found["corruptions"] > 0, str(found))
    equal(Qcow2File(image).get("incompatible"), 2, "the corrupt bit after the leaks were repaired")


@cases(*KINDS[:4])
def test_lost_refcounts(t, compat, cluster, refcount_bits):
    """The refcount table is empty: all is built anew, snapshots and compressed clusters included."""
    image = make_image(t, compat, cluster, refcount_bits, snapshots=2 if refcount_bits > 1 else 0)
    wanted = guest(t, image)
    file = Qcow2File(image)
    length = file.get("reftable_clusters") * file.cluster_size
    file.data[file.reftable_at():file.reftable_at() + length] = bytes(length)
    file.save(image)
    tool("repair", image, "all")
    check_repaired(t, image, wanted)
    if refcount_bits > 1:
        qemu_img("snapshot", "-a", "s0", image)
        qemu_img("snapshot", "-d", "s0", image)
        qemu_img_check(image)


def test_damaged_with_snapshots(t):
    for number, damage in enumerate((refcount_too_low, data_beyond, copied_lacks, block_missing,
                                     reftable_beyond, snapshots_beyond)):
        image = make_image(t, name=f"{number}.qcow2", snapshots=3)
        wanted = guest(t, image)
        file = Qcow2File(image)
        damage(file)
        file.save(image)
        tool("repair", image, "all")
        check_repaired(t, image, wanted, ONE_CLUSTER if damage is data_beyond else WHOLE)


def test_bitmaps(t):
    image = make_image(t)
    qemu_img("bitmap", "--add", "-g", "4k", image, "one")
    qemu_img("bitmap", "--add", "-g", "64k", image, "two")
    qemu_io(image, "write -P 1 2M 100k", arguments=("-f", "qcow2"))
    compare_numbers(image)
    equal(our_check(image, status=0)["leaks"], 0, "leaks of an image with bitmaps")


def test_dirty_is_repaired_when_opened_for_writing(t):
    image = make_image(t)
    wanted = guest(t, image)
    file = Qcow2File(image)
    refcount_too_low(file)
    leak(file)
    dirty(file)
    file.save(image)
    before = digest(image)
    with t.serve(image, "-f", "qcow2", "-r").client() as client:
        same_bytes(client.read_all(), wanted, "the disk, read-only")
    t.stop_servers()
    equal(digest(image), before, "hash of a dirty image that was only read")
    with t.serve(image, "-f", "qcow2").client() as client:
        same_bytes(client.read_all(), wanted, "the disk")
        client.write(0, b"x" * 4096)
    t.stop_servers()
    equal(Qcow2File(image).get("incompatible"), 0, "the dirty bit")
    qemu_img_check(image)


@cases("backing", "data_file", "key")
def test_refused_is_not_repaired(t, why):
    """A dirty image that something else forbids to open stays as it was, to the byte."""
    image, options = t.path("disk.qcow2"), ["-f", "qcow2"]
    extra = {"backing": ["-b", t.path("base"), "-F", "raw"], "data_file": ["-o", f"data_file={t.path('base')}"],
             "key": ["--object", "secret,id=s,data=word", "-o",
                     "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"]}[why]
    t.sparse_file("base", MIB)
    qemu_img("create", "-q", "-f", "qcow2", *extra, image, "1M")
    if why == "backing":
        qemu_io(image, "write 0 64k")
    os.unlink(t.path("base"))
    file = Qcow2File(image)
    leak(file)
    dirty(file)
    file.save(image)
    before = digest(image)
    refused(t, image, *options)
    equal(digest(image), before, "hash of the image")


def test_cannot_be_repaired(t):
    """Two L1 tables in one place: the image is left marked corrupt, and nothing is given back."""
    image = make_image(t, snapshots=1)
    file = Qcow2File(image)
    file.set_u64(file.get("snapshots_offset"), file.get("l1_offset"))
    file.set("incompatible", 2)
    file.save(image)
    tool("repair", image, "all", status=2)
    equal(Qcow2File(image).get("incompatible"), 2, "the corrupt bit")


if __name__ == "__main__":
    main()
