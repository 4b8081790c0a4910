# SPDX-License-Identifier: BSD-3-Clause
"""Hostile images, list B: files that are none, headers, extensions and backing files."""
import re
import struct

from evnbd_test import KIB, MIB, SANITIZED, check, content, equal, qemu_img, qemu_io, read_file
from hostile_images import (CLUSTER, CORRUPT, PACKED, SIZE, Hostile, content_of_good, good, make_good, row, spoiled)
from nbd_raw import CMD_WRITE, EPERM
from qcow2_file import EXT_BACKING_FORMAT, EXT_DATA_FILE, EXT_FEATURE_TABLE, FIELDS, Qcow2File

EXTREMES = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
DIRTY = 1
BAD = "bad.qcow2"
EXT_CRYPTO = 0x0537BE77


def each(t, says, field, *values, mended=False):
    """The good image with one field out of range, which the message names with its value."""
    for value in values:
        yield spoiled(t, f"{field}={value}", {field: value}, refused=(says,), mended=mended)


@row("B1", "truncated at all places")
def truncated(t):
    """A unit test of this name cuts a smaller image at every byte."""
    whole = read_file(make_good(t))
    for length in (0, 1, 3, 4, 8, 71, 72, 103, 104, 111, 112, 511, 512, CLUSTER - 1):
        yield Hostile(f"{length} bytes", t.file(BAD, whole[:length]), refused=("qcow2|end",))
    step = CLUSTER * (30 if SANITIZED else 12)
    for length in sorted({*range(CLUSTER, 6 * CLUSTER, CLUSTER), *range(CLUSTER, len(whole), step),
                          3 * CLUSTER + 8, 5 * CLUSTER - 8, len(whole) - 1}):
        yield Hostile(f"{length} bytes", t.file(BAD, whole[:length]), any_end=True, wanted=content_of_good())


@row("B2", "every header field with every extreme")
def extremes(t):
    """One field at a time; a unit test of this name takes two."""
    for field, (_, layout) in FIELDS.items():
        for value in EXTREMES:
            if field != "magic" and not value >> 8 * struct.calcsize(layout):
                dirty = (field, value) == ("incompatible", DIRTY)
                yield spoiled(t, f"{field}={value}", {field: value}, any_end=True, repaired_at_open=dirty)


@row("B4", "virtual size")
def sizes(t):
    yield from each(t, "virtual size is", "size", 1 << 63, (1 << 63) - 511, (1 << 64) - 1)
    yield from each(t, "virtual size of", "size", 1 << 62, (1 << 63) - 512)
    for size in (SIZE - 1, SIZE - 511, 1, 511):  # without the last sector when that is not whole
        yield spoiled(t, f"size={size}", {"size": size}, sound=((0, 0x11),) if size > 511 else ())
        with t.serve(t.path(BAD), "-f", "qcow2", "-r").client() as client:
            equal(client.export.size, size // 512 * 512, "size of the export")
        t.stop_servers()
        t.servers.clear()


@row("B5", "tables beyond the end of the file")
def beyond(t):
    end = len(good(t).data)
    for says, field in (("L1 table", "l1_offset"), ("refcount table", "reftable_offset")):
        yield from each(t, says, field, 1 << 40, 1 << 63, (1 << 64) - CLUSTER, (end // CLUSTER + 1) * CLUSTER,
                        mended=field == "reftable_offset")
    for at in (1 << 40, 1 << 63, (1 << 64) - CLUSTER):
        yield spoiled(t, f"snapshots at {at}", {"snapshots": 1, "snapshots_offset": at}, refused=("snapshot table",),
                      mended=True)


@row("B9", "probed raw that becomes another format")
def probed_raw(t):
    image = t.file("disk.raw", content(9, MIB))
    with t.serve(image).client() as client:
        client.write(0, bytes(512))
        client.write(4, b"\0\0\0\3")
        for magic in (b"QFI\xfb", b"KDMV", b"vhdxfile", b"conectix"):
            for length in (len(magic), 512, CLUSTER):
                payload = (magic + b"\0\0\0\3")[:length].ljust(length, b"\0")
                equal(client.command(CMD_WRITE, 0, length, 0, payload), EPERM, f"error of a write of {magic}")
        client.write(512, b"QFI\xfb\0\0\0\3")
    t.stop_servers()
    t.servers.clear()
    equal(read_file(image)[:8], b"\0\0\0\0\0\0\0\3", "the start of the first sector")
    yield Hostile("after that", image, format="raw", sound=())


@row("B11", "version")
def versions(t):
    yield from each(t, r"version is \d+", "version", 0, 1, 4, 0xFFFFFFFF)
    yield Hostile("magic only", t.file(BAD, b"QFI\xfb"), refused=("4 bytes",))
    yield Hostile("magic and zeroes", t.file(BAD, b"QFI\xfb" + bytes(MIB)), refused=("version is 0",))


@row("B12", "cluster_bits")
def cluster_bits(t):
    yield from each(t, r"cluster_bits is \d+, it must be 9 to 21", "cluster_bits", 0, 8, 22, 31, 32, 63, 0xFFFFFFFF)


@row("B14", "unknown incompatible features")
def features(t):
    """A unit test of this name takes every bit."""
    for bit in (5, 6, 7, 8, 31, 32, 62, 63):
        yield spoiled(t, f"bit {bit}", {"incompatible": 1 << bit}, refused=(rf"incompatible bit {bit}\b",))
    table = extension(EXT_FEATURE_TABLE, struct.pack(">BB46s", 0, 42, b"moon phase\x1b"))
    image = with_extensions(t, table, bytes(8)).set("incompatible", 1 << 42 | 1 << 63)
    yield Hostile("named", image.save(t.path(BAD)), refused=("moon phase", "bit 42", "bit 63"))
    yield spoiled(t, "compatible", {"compatible": 0xFFFFFFFFFFFFFFFE})
    yield spoiled(t, "autoclear", {"autoclear": 0xFFFFFFFFFFFFFFFE})


def extension(kind, data):
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def with_extensions(t, *extensions):
    """The good image with these instead of its own, which follow the header at once."""
    image = good(t)
    image.data[112:CLUSTER] = b"".join(extensions).ljust(CLUSTER - 112, b"\0")[:CLUSTER - 112]
    return image


@row("B15", "feature table")
def feature_tables(t):
    entry = struct.pack(">BB46s", 0, 60, b"\x1b]0;" + b"\xff" * 42)  # not terminated
    for length in (0, 1, 47, 49, 95, 480):
        table = extension(EXT_FEATURE_TABLE, (entry * 11)[:length])
        image = with_extensions(t, table, bytes(8))
        yield Hostile(f"{length} bytes", image.save(t.path(BAD)))
        image.set("incompatible", 1 << 60)
        yield Hostile(f"{length} bytes, needed", image.save(t.path(BAD)), refused=("bit 60",))


@row("B16", "corrupt bit")
def marked_corrupt(t):
    yield spoiled(t, "corrupt", {"incompatible": CORRUPT}, refused_writing=("corrupt", "read-only"))


@row("B17", "dirty bit")
def marked_dirty(t):
    """To read it changes nothing; to write it is repaired first, and clean when that is done."""
    for name, count in (("right refcounts", None), ("lost refcounts", 0), ("refcounts too high", 7)):
        image = good(t).set("incompatible", DIRTY)
        block = image.u64(image.reftable_at())
        if count is not None:
            for entry in range(4, 40):
                struct.pack_into(">H", image.data, block + 2 * entry, count)
        path = image.save(t.path(BAD))
        with t.serve(path, "-f", "qcow2").client() as client:
            check(Qcow2File(path).get("incompatible") & DIRTY == 0, "the image is still dirty when it is served")
            client.write(CLUSTER, b"new")
        t.stop_servers()
        t.servers.clear()
        equal(qemu_img("check", "-q", path, status=None).returncode, 0, "status of qemu-img check")
        yield Hostile(name, image.save(path), repaired_at_open=True)


@row("B20", "refcount order, and version 2 with fields of version 3")
def orders(t):
    yield from each(t, r"refcount order is \d+, it must be 0 to 6", "refcount_order", 7, 31, 63, 0xFFFFFFFF)
    yield from each(t, r"header length is \d+", "header_length", 0, 103, 105, CLUSTER + 8, 0xFFFFFFFF)
    old = good(t, "compat=0.10")
    old.data[72:CLUSTER] = bytes(CLUSTER - 72)
    yield Hostile("version 2", old.save(t.path(BAD)))
    # The bytes have no meaning there, but where extensions begin.
    struct.pack_into(">QQQQII", old.data, 72, 0, 1 << 63 | 31, 1 << 63, 1, 7, 0xFFFFFFFF)
    yield Hostile("fields without meaning", old.save(t.path(BAD)))


@row("B21", "refcount table")
def refcount_tables(t):
    yield from each(t, r"refcount table offset is \d+", "reftable_offset", 0, 1, 513, CLUSTER + 8)
    yield from each(t, "refcount table is", "reftable_offset", 1 << 40, mended=True)
    yield from each(t, r"refcount table length is \d+", "reftable_clusters", 0, mended=True)
    yield from each(t, r"refcount table length is \d+", "reftable_clusters", 2049, 1 << 20, 0xFFFFFFFF)
    yield from each(t, "refcount table is", "reftable_clusters", 2048, mended=True)


@row("B25", "L1 table")
def l1_tables(t):
    yield from each(t, r"L1 size is \d+", "l1_size", 0, 1, 4194305, 1 << 26, 0xFFFFFFFF)
    yield from each(t, "L1 table is", "l1_size", 4194304)
    yield from each(t, r"L1 table offset is \d+", "l1_offset", 0, 513, 1 << 63)


@row("B31", "compression type")
def compression(t):
    says = r"compression type is \d+"
    for value in (1, 2, 3, 127, 128, 255):
        yield spoiled(t, f"{value}", {"compression_type": value}, refused=(says,))
        if value > 1:
            yield spoiled(t, f"{value} with the bit", {"compression_type": value, "incompatible": 8}, refused=(says,))
    yield spoiled(t, "the bit alone", {"incompatible": 8}, refused=("compression type is 0",))


@row("B32", "extended L2 entries")
def extended_entries(t):
    """Small clusters; subclusters that are data and zeroes at once; bits beside a compressed cluster."""
    for bits in (9, 11, 12):
        yield spoiled(t, f"clusters of 2^{bits} bytes", {"incompatible": 1 << 4, "cluster_bits": bits, "size": 4096},
                      refused=("extended L2 entries", f"clusters of {1 << bits} bytes"))
    path = t.path("extended.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", path, str(SIZE))
    qemu_io(path, "write -P 0x11 0 256k", f"write -c -P 0x22 {PACKED} 16k", arguments=("-f", "qcow2"))
    for name, offset, bitmap in (("data and zeroes", 64 * KIB, (1 << 64) - 1), ("one of both", 128 * KIB, 1 << 32 | 1),
                                 ("bits of a compressed cluster", PACKED, 1)):
        image = Qcow2File(path)
        image.set_u64(image.l2_entry_at(offset) + 8, bitmap)
        yield Hostile(name, image.save(t.path(BAD)), broken=(offset,), unwritable=(offset,))


@row("B34", "header extensions")
def extensions(t):
    end = bytes(8)
    raw = extension(EXT_BACKING_FORMAT, b"raw")
    for says, parts in (
            ("extension", (struct.pack(">II", 0x12345678, 0xFFFFFFFF),)),
            ("extension", (struct.pack(">II", 0x12345678, CLUSTER), bytes(16))),
            ("extension", (struct.pack(">II", EXT_BACKING_FORMAT, 64 * KIB), end)),
            ("backing format", (extension(EXT_BACKING_FORMAT, b"q" * 64), end)),
            ("two extensions", (raw, raw)),
            ("LUKS header length", (extension(EXT_CRYPTO, bytes(16)), end)),
    ):
        yield Hostile(f"{parts}", with_extensions(t, *parts).save(t.path(BAD)), refused=(says,))
    for parts in ((extension(0x12345678, b"unknown"), end), (extension(1, b"") * 498,), (raw, end)):
        yield Hostile(f"{parts}"[:80], with_extensions(t, *parts).save(t.path(BAD)))


def overlay(t, backing, backing_format="raw", name="top.qcow2"):
    image = t.path(name)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", backing_format, image, "1M")
    return image


@row("B35", "names of backing files")
def backing_names(t):
    t.file("base.raw", content(4, MIB))
    for name, says in (("missing.raw", "no such file"), ("fd:1", "path"),
                       ('json:{"driver":"file","filename":"base.raw"}', "path"), ("nbd://localhost/x", "path"),
                       ("nbd:unix:/x", "path"), ("http://localhost/x", "path"), ("host_device:/dev/sda", "path"),
                       ("//../../nowhere/x", "no such file"), ("/dev/null", "character device")):
        yield Hostile(name, overlay(t, name), refused=(says, re.escape(name.replace('"', '\\"')) + "|backing"),
                      offline=True, may_open=("missing.raw", name))


@row("B37", "data files")
def data_files(t):
    t.file("base.raw", content(6, MIB))
    for name in ("missing.raw", "fd:1", 'json:{"driver":"file","filename":"base.raw"}', "nbd://localhost/x",
                 "http://localhost/x", "host_device:/dev/sda", "/dev/null", BAD):
        image = with_extensions(t, extension(EXT_DATA_FILE, name.encode()), bytes(8))
        image.set("incompatible", 1 << 2)
        yield Hostile(name, image.save(t.path(BAD)), refused=("data file",), offline=True, may_open=(name, "missing.raw"))
    image = with_extensions(t, bytes(8))
    image.set("incompatible", 1 << 2)
    yield Hostile("without a name", image.save(t.path(BAD)), refused=("data file",), offline=True)
    # Alone the bit has no meaning, and goes with the first write.
    yield spoiled(t, "raw bit without data-file bit", {"autoclear": 1 << 1})
    path = spoiled(t, "", {"autoclear": 1 << 1}).path
    with t.serve(path, "-f", "qcow2").client() as client:
        client.write(0, b"x")
    t.stop_servers()
    t.servers.clear()
    equal(Qcow2File(path).get("autoclear"), 0, "autoclear features after a write")


@row("B36", "backing files without a format, and of another one")
def backing_formats(t):
    t.file("base.raw", content(5, MIB))
    image = Qcow2File(overlay(t, "base.raw"))
    struct.pack_into(">I", image.data, image.extension(EXT_BACKING_FORMAT), 0x12345678)
    yield Hostile("none", image.save(t.path(BAD)), refused=("backing file", "format"), offline=True)
    yield Hostile("unknown", overlay(t, "base.raw", "vmdk"), refused=("vmdk",), offline=True)
    yield Hostile("not so", overlay(t, "base.raw", "qcow2"), refused=("base.raw", "qcow2"), offline=True,
                  may_open=("base.raw",))
    make_good(t, "inner.qcow2")
    # What says raw is raw: nothing is probed, and the file behind "inner" is not opened.
    inner = Qcow2File(overlay(t, "base.raw", "raw", "inner.qcow2"))
    path = overlay(t, "inner.qcow2")
    with t.serve(path, "-f", "qcow2", "-r").client() as client:
        equal(client.read(0, 512), bytes(inner.data[:512]), "start of a raw backing file")
    t.stop_servers()
    t.servers.clear()
    yield Hostile("looks like qcow2", path, sound=(), may_open=("inner.qcow2",))
