# SPDX-License-Identifier: BSD-3-Clause
"""Hostile images, list B: L1, L2 and refcount tables, compressed clusters, snapshots, huge disks."""
import os
import struct

import test_qcow2_check_hostile
import test_qcow2_snapshots
from evnbd_test import KIB, MIB, check, content, equal, qemu_img, run
from hostile_images import CLUSTER, DATA, PACKED, TOOL, Hostile, fingerprint, good, row
from qcow2_file import COMPRESSED, COPIED, OFFSET_MASK, Qcow2File

BAD = "bad.qcow2"
SPOILED = 64 * KIB                         # the cluster of the disk whose entry is spoiled
BEHIND = ((3 * MIB, 0), (PACKED, 0x22))    # what another L2 table says
AROUND = ((0, 0x11), *BEHIND)


def with_snapshot(t):
    """The good image with a snapshot of its disk, whose data has been written anew."""
    path = good(t).save(t.path("snapshot.qcow2"))
    qemu_img("snapshot", "-c", "one", path)
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 0x11 0 {DATA}", path)
    return Qcow2File(path)


def structures(image):
    """{name: offset} of the clusters of the file that hold metadata."""
    found = {"l1": image.get("l1_offset"), "l2": image.u64(image.l1_entry_at(0)) & OFFSET_MASK,
             "other l2": image.u64(image.l1_entry_at(PACKED)) & OFFSET_MASK,
             "reftable": image.reftable_at(), "refblock": image.u64(image.reftable_at())}
    if image.get("snapshots"):
        found["snapshot table"] = image.get("snapshots_offset")
        found["snapshot l1"] = image.u64(image.get("snapshots_offset"))
        found["snapshot l2"] = image.u64(found["snapshot l1"]) & OFFSET_MASK
    return found


def spans(offsets):
    return tuple((at, at + CLUSTER) for at in offsets)


@row("B6", "a data pointer to the header")
def into_the_header(t):
    """Offset 0 is the header; with the copied bit it is no cluster that is absent."""
    image = good(t)
    image.set_u64(image.l2_entry_at(SPOILED), COPIED)
    yield Hostile("copied", image.save(t.path(BAD)), unwritable=(), sound=AROUND, keeps=((8, 72), (80, CLUSTER)))
    image.set_u64(image.l2_entry_at(SPOILED), COPIED | 1)
    yield Hostile("zero, copied", image.save(t.path(BAD)), sound=AROUND, keeps=((8, 72), (80, CLUSTER)))
    image.set_u64(image.l2_entry_at(SPOILED), COMPRESSED)
    yield Hostile("compressed", image.save(t.path(BAD)), broken=(SPOILED,), sound=AROUND,
                  keeps=((8, 72), (80, CLUSTER)))


@row("B7", "two entries for one cluster")
def aliases(t):
    image = good(t)
    image.set_u64(image.l2_entry_at(SPOILED), image.u64(image.l2_entry_at(SPOILED + CLUSTER)))
    yield Hostile("in one table", image.save(t.path(BAD)), sound=BEHIND, found=(2,))
    image = good(t)
    image.set_u64(image.l2_entry_at(PACKED + SPOILED), image.u64(image.l2_entry_at(SPOILED)))
    yield Hostile("in two tables", image.save(t.path(BAD)), sound=BEHIND, found=(2,))


@row("B22", "entries of the refcount table")
def reftable_entries(t):
    image = good(t)
    at, block = image.reftable_at(), image.u64(image.reftable_at())
    values = {"unaligned": block + 512, "reserved bit": block + 1, "bit 63": block | 1 << 63,
              "beyond": 1 << 40, "far beyond": (1 << 56) - CLUSTER}
    values.update((name, to) for name, to in structures(image).items() if name != "refblock")
    for name, value in values.items():
        image.set_u64(at, value)
        keeps = spans(to for to in structures(good(t)).values() if to != at)
        yield Hostile(name, image.save(t.path(BAD)), any_end=True, keeps=keeps, found=(1, 2))
    image.set_u64(at, 0)
    yield Hostile("none", image.save(t.path(BAD)), found=(2,), any_end=True)


@row("B24", "a refcount that is as high as it gets")
def full_refcounts(t):
    for bits, count in ((16, 0xFFFF), (8, 0xFF)):
        image = good(t, f"refcount_bits={bits}")
        block = image.u64(image.reftable_at())
        host = image.u64(image.l2_entry_at(SPOILED)) & OFFSET_MASK
        at = block + host // CLUSTER * bits // 8
        image.data[at:at + bits // 8] = count.to_bytes(bits // 8, "big")
        image.set_u64(image.l2_entry_at(SPOILED), host)
        path = image.save(t.path(BAD))
        before = fingerprint(path)
        done = run(TOOL, "snapshot-create", path, "more", status=1)
        check("refcount" in done.stderr, f"the message does not name the refcount: {done.stderr}")
        equal(fingerprint(path), before, "the file after a snapshot that was refused")
        yield Hostile(f"{bits} bits", path, sound=AROUND, found=(2, 3))


@row("B26", "entries of the L1 table")
def l1_entries(t):
    image = good(t)
    at, table = image.l1_entry_at(0), image.u64(image.l1_entry_at(0))
    values = {"unaligned": table + 512, "bit 0": table | 1, "bit 56": table | 1 << 56, "bit 62": table | 1 << 62,
              "beyond": COPIED | 1 << 40, "far beyond": COPIED | (1 << 56) - CLUSTER, "header, copied": COPIED}
    places = structures(image)
    values.update((name, COPIED | to) for name, to in places.items() if name != "l2")
    for name, value in values.items():
        image.set_u64(at, value)
        harmless = name in ("other l2",)
        yield Hostile(name, image.save(t.path(BAD)), found=(1, 2), any_end=not harmless,
                      sound=((3 * MIB, 0),), keeps=spans(places.values()) if not harmless else ())


@row("B27", "entries of an L2 table")
def l2_entries(t):
    image = good(t)
    at, data = image.l2_entry_at(SPOILED), image.u64(image.l2_entry_at(SPOILED))
    for name, value in {"unaligned": data + 512, "past 2^56": data | 1 << 57, "bit 61": data | 1 << 61,
                        "far unaligned": COPIED | (1 << 56) - 512}.items():
        image.set_u64(at, value)
        yield Hostile(name, image.save(t.path(BAD)), broken=(SPOILED,), unwritable=(SPOILED,), sound=AROUND,
                      corrupt=True, found=(2,))
    for name, value in {"bit 1": data | 2, "all but the offset": data | 0x1FE, "beyond": COPIED | 1 << 40,
                        "far beyond": COPIED | (1 << 56) - CLUSTER}.items():
        image.set_u64(at, value)
        yield Hostile(name, image.save(t.path(BAD)), sound=AROUND, found=(0, 2, 3))


@row("B29", "data on top of metadata")
def on_metadata(t):
    """
    Nothing is written there, and the image is marked corrupt.  L2 tables that only snapshots use are
    protected by their refcounts alone, as by QEMU unless it is told otherwise: the check finds them.
    """
    image = with_snapshot(t)
    places = structures(image)
    of_snapshot = places.pop("snapshot l2")
    entry = image.u64(image.l2_entry_at(SPOILED))
    for name, to in places.items():
        image.set_u64(image.l2_entry_at(SPOILED), COPIED | to)
        yield Hostile(name, image.save(t.path(BAD)), unwritable=(SPOILED,), sound=AROUND, corrupt=True, found=(2,),
                      keeps=spans(at for at in places.values() if at == to))
    image.set_u64(image.l2_entry_at(SPOILED), of_snapshot)
    yield Hostile("snapshot l2", image.save(t.path(BAD)), sound=AROUND, found=(2,))
    image.set_u64(image.l2_entry_at(SPOILED), entry)
    yield Hostile("none", image.save(t.path(BAD)), sound=AROUND, found=(0,))


def packed(image):
    """(file offset, most sectors that the entry can tell) of the compressed cluster."""
    shift = 62 - (image.get("cluster_bits") - 8)
    entry = image.u64(image.l2_entry_at(PACKED))
    check(entry & COMPRESSED, f"the cluster at {PACKED} should be compressed")
    return entry & (1 << shift) - 1, shift


def stored(data, last):
    """A block of deflate that is not compressed."""
    return struct.pack("<BHH", last, len(data), len(data) ^ 0xFFFF) + data


@row("B30", "compressed clusters")
def compressed_clusters(t):
    at, shift = packed(good(t))
    entry = good(t).u64(good(t).l2_entry_at(PACKED))
    most = entry | (1 << 62) - (1 << shift)
    damages = {
        "beyond": (COMPRESSED | 1 << shift - 1, b""), "far beyond": (COMPRESSED | (1 << 56) - 1, b""),
        "unaligned": (entry + 3, b""), "garbage": (entry, content(3, 64)),
        "short": (entry, stored(b"\x22" * 20, 1)),
        "a loop": (most, b"\0\0\0\xff\xff" * 800), "no end": (entry, b"\x62" + b"\x60" * 500),
    }
    for name, (value, data) in damages.items():
        image = good(t)
        image.set_u64(image.l2_entry_at(PACKED), value)
        image.data[at:at + len(data)] = data
        yield Hostile(name, image.save(t.path(BAD)), broken=(PACKED,), sound=((0, 0x11), (3 * MIB, 0)))
    image = good(t)
    image.set_u64(image.l2_entry_at(PACKED), most)
    yield Hostile("sectors to the end", image.save(t.path(BAD)), sound=((0, 0x11), (3 * MIB, 0)))
    # What goes on behind the cluster's end is not looked at.
    image.data[at:at + 2 * CLUSTER + 10] = stored(b"\x22" * CLUSTER, 0) + stored(b"\x23" * CLUSTER, 1)
    yield Hostile("more than a cluster", image.save(t.path(BAD)), sound=((0, 0x11), (3 * MIB, 0)))
    yield from zstd_clusters(t)


def frame(exponent, length):
    """A zstd frame that asks for a window of 2^(10 + exponent): one block, of so many equal bytes."""
    return b"\x28\xb5\x2f\xfd\0" + bytes([exponent << 3]) + (length << 3 | 3).to_bytes(3, "little") + b"\x22"


def zstd_clusters(t):
    option = "compression_type=zstd"
    at, _ = packed(good(t, option))
    damages = {"window 2^41": frame(31, CLUSTER), "window 2^32": frame(22, CLUSTER), "window 2^28": frame(18, CLUSTER),
               "short": frame(0, 100), "reserved block": b"\x28\xb5\x2f\xfd\0\x10\x07\0\0", "garbage": content(30, 64),
               "a skippable frame": struct.pack("<II", 0x184D2A50, 4) + b"none"}
    for name, data in damages.items():
        image = good(t, option)
        image.data[at:at + CLUSTER] = data.ljust(CLUSTER, b"\0")
        yield Hostile(f"zstd, {name}", image.save(t.path(BAD)), broken=(PACKED,), sound=((0, 0x11), (3 * MIB, 0)))
    image.data[at:at + CLUSTER] = frame(11, CLUSTER).ljust(CLUSTER, b"\0")
    yield Hostile("zstd, window 2^21", image.save(t.path(BAD)), sound=AROUND)


@row("B39", "the snapshot table")
def snapshot_tables(t):
    """The verbs on these images are tested in test_qcow2_snapshots.py."""
    for damage in test_qcow2_snapshots.AT_OPEN:
        yield Hostile(damage.__name__, test_qcow2_snapshots.hostile(t, damage), refused=("snapshot",),
                      mended=True)


@row("B40", "L1 tables of snapshots")
def snapshot_l1_tables(t):
    """The verbs on these images are tested in test_qcow2_snapshots.py."""
    overlapping = ("l1_is_active", "l1_is_reftable")
    for damage in test_qcow2_snapshots.AT_VERBS:
        says = ("overlaps a snapshot's tables",) if damage.__name__ in overlapping else ()
        yield Hostile(damage.__name__, test_qcow2_snapshots.hostile(t, damage), refused_writing=says, sound=((0, 2),))


@row("B45", "entries far beyond the end of the file")
def far_beyond(t):
    """Their check and repair are tested in test_qcow2_check_hostile.py."""
    hostile = test_qcow2_check_hostile
    for case in (hostile.entries_far_beyond, hostile.compressed_far_beyond, hostile.table_of_itself):
        path = t.path(BAD)
        case(path)
        yield Hostile(case.__name__, path, any_end=True, sound=(), found=(1, 2))


@row("B46", "disks that are larger than their tables can be")
def too_large(t):
    """Refused before anything is written: no file is left."""
    path = t.path("large.qcow2")
    for options in ("size=2E,cluster_size=512", "size=7E,cluster_size=64k", "size=9223372036854775807",
                    f"size={(4 << 20) * 64 * 512 + 1},cluster_size=512"):
        done = run(TOOL, "create", path, options, status=1)
        check("size" in done.stderr or "disk of" in done.stderr, f"the message names no size: {done.stderr}")
        check(not os.path.exists(path), f"{options}: a file was left")
    run(TOOL, "create", path, f"size={(4 << 20) * 64 * 512},cluster_size=512")
    yield Hostile("as large as can be", path, sound=((0, 0),), found=(0,))
