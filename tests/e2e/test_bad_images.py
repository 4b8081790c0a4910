#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Images that are broken, or are none: refused by name, or served as far as they go; never changed."""
import os
import re
import shutil
import socket
import struct

from evnbd_test import (EVNBD, KIB, MIB, SANITIZED, Refused, cases, check, content, digest, equal, main,
                        qemu_img, qemu_io, read_file, refused, run, samples, same_bytes, skip,
                        unpack_sample)
from nbd_raw import CMD_FLUSH, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EIO, Closed
from qcow2_file import (COMPRESSED, COPIED, EXT_BACKING_FORMAT, EXT_FEATURE_TABLE, FIELDS, OFFSET_MASK,
                        Qcow2File)

SIZE = 4 * MIB
CLUSTER = 4 * KIB


def make_qcow2(t, name="good.qcow2", *options):
    """Data at 0 to 1 MiB, a compressed cluster at 2 MiB, a zero cluster at 3 MiB."""
    image = t.path(name)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", *options, image, SIZE)
    qemu_io(image, "write -P 0x11 0 1M", "write -c -P 0x22 2M 4k", "write -z 3M 4k",
            arguments=("-f", "qcow2"))
    return image


def refused_unchanged(t, image, *options, says):
    """Refused for reading and for writing, by a message that names the file too."""
    before = digest(image)
    for access in ((), ("-r",)):
        refused(t, image, *options, *access, says=[re.escape(os.path.basename(image)), *says])
        equal(digest(image), before, f"hash of {image} after it was refused")


# What is no image at all.

def test_missing_file(t):
    refused(t, t.path("nowhere.img"), "-f", "raw", says=["nowhere.img", "no such file"])
    refused(t, t.path("nowhere.img"), says=["nowhere.img", "no such file"])
    refused(t, t.path("no/dir.img"), "-f", "raw", says=["dir.img", "no such file"])
    refused(t, "", "-f", "raw", says=["image|arguments"])
    check(not os.path.exists(t.path("nowhere.img")), "a missing image was made")


@cases("-f raw", "-f qcow2", "")
def test_directory(t, options):
    os.mkdir(t.path("folder"))
    refused(t, t.path("folder"), *options.split(), says=["folder", "directory"])
    refused(t, t.path("folder"), "-r", *options.split(), says=["folder", "directory"])


@cases("-f raw", "-f qcow2", "")
def test_fifo(t, options):
    """Opening a FIFO must not wait for somebody at its other end."""
    os.mkfifo(t.path("pipe"))
    refused(t, t.path("pipe"), *options.split(), says=["pipe", "fifo"])
    refused(t, t.path("pipe"), "-r", *options.split(), says=["pipe", "fifo"])


def test_other_kinds_of_files(t):
    refused(t, "/dev/null", "-f", "raw", says=["/dev/null", "character device"])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(t.path("sock"))
        refused(t, t.path("sock"), "-f", "raw", says=["sock"])
    os.symlink("loop", t.path("loop"))
    refused(t, t.path("loop"), "-f", "raw", says=["loop", "symbolic links"])


def test_unreadable_file(t):
    image = t.file("secret.img", content(1, MIB))
    os.chmod(image, 0)
    options = {}
    if os.geteuid() == 0:
        os.chmod(t.dir, 0o755)
        options = {"user": 65534, "group": 65534, "extra_groups": []}
        try:
            run(EVNBD, "--version", **options)
        except (AssertionError, OSError):
            skip("another user cannot run the program under test")
    refused(t, image, "-f", "raw", "-r", says=["secret.img", "permission denied"], **options)
    os.chmod(image, 0o444)
    refused(t, image, "-f", "raw", says=["secret.img", "permission denied", "read-only"], **options)


def test_names_in_messages_are_escaped(t):
    message = refused(t, t.path("bad\n\x1b[31mname"), "-f", "raw", says=["bad", "name"])
    check("\x1b" not in message and len(message.strip().split("\n")) == 1, repr(message))


def test_unknown_format(t):
    image = t.file("disk.img", content(2, MIB))
    refused(t, image, "-f", "nosuchformat", says=["unknown driver", "nosuchformat"])
    refused(t, image, "-f", "qcow2", says=["disk.img", "qcow2"])


# The header of qcow2.

BAD_HEADERS = (
    ("version", 0, "version"), ("version", 1, "version"), ("version", 4, "version"),
    ("version", 0xFFFFFFFF, "version"),
    ("cluster_bits", 0, "cluster_bits"), ("cluster_bits", 8, "cluster_bits"),
    ("cluster_bits", 22, "cluster_bits"), ("cluster_bits", 31, "cluster_bits"),
    ("cluster_bits", 63, "cluster_bits"), ("cluster_bits", 0xFFFFFFFF, "cluster_bits"),
    ("size", 1 << 63, "size"), ("size", (1 << 64) - 1, "size"), ("size", 1 << 62, "L1 size"),
    ("l1_size", 0, "L1"), ("l1_size", 1, "L1"), ("l1_size", 1 << 26, "L1"),
    ("l1_size", 0xFFFFFFFF, "L1"),
    ("l1_offset", 0, "L1"), ("l1_offset", 513, "L1"), ("l1_offset", 1 << 40, "L1"),
    ("l1_offset", 1 << 63, "L1"), ("l1_offset", (1 << 64) - CLUSTER, "L1"),
    ("reftable_offset", 0, "refcount table"), ("reftable_offset", 1, "refcount table"),
    ("reftable_offset", 1 << 40, "refcount table"), ("reftable_offset", 1 << 63, "refcount table"),
    ("reftable_clusters", 0, "refcount table"), ("reftable_clusters", 1 << 20, "refcount table"),
    ("reftable_clusters", 0xFFFFFFFF, "refcount table"),
    ("snapshots", 65537, "snapshots"), ("snapshots", 0xFFFFFFFF, "snapshots"),
    ("snapshots", 1, "snapshot"),
    ("refcount_order", 7, "refcount order"), ("refcount_order", 31, "refcount order"),
    ("refcount_order", 0xFFFFFFFF, "refcount order"),
    ("header_length", 0, "header length"), ("header_length", 103, "header length"),
    ("header_length", 0xFFFFFFFF, "header length"),
    ("compression_type", 2, "compression type"), ("compression_type", 255, "compression type"),
    ("compression_type", 1, "compression type"),
    ("crypt_method", 1, "encrypted"), ("crypt_method", 2, "encrypted"), ("crypt_method", 3, "crypt"),
    ("autoclear", 1, "bitmap"),
    ("incompatible", 1 << 2, "data-file.filename"), ("incompatible", 1 << 4, "L1 size"),
)


@cases(*BAD_HEADERS)
def test_header(t, field, value, says):
    image = Qcow2File(make_qcow2(t)).set(field, value).save(t.path("bad.qcow2"))
    refused_unchanged(t, image, "-f", "qcow2", says=[says])


def test_unknown_features(t):
    """Each incompatible bit is refused, by the name that the image has for it."""
    good = Qcow2File(make_qcow2(t))
    for bit in range(5, 64):
        good.set("incompatible", 1 << bit)
        refused(t, good.save(t.path("bad.qcow2")), "-f", "qcow2", "-r",
                says=["bad.qcow2", rf"incompatible bit {bit}\b"])
    table = extension(EXT_FEATURE_TABLE, struct.pack(">BB46s", 0, 42, b"moon phase\x1b"))
    named = Qcow2File(with_extensions(t, table, bytes(8))).set("incompatible", 1 << 42 | 1 << 63)
    message = refused(t, named.save(t.path("bad.qcow2")), "-f", "qcow2",
                      says=["moon phase", "bit 42", "bit 63"])
    check("\x1b" not in message, "a control character of a feature's name reached the terminal")


def test_compatible_features_are_ignored(t):
    image = Qcow2File(make_qcow2(t)).set("compatible", 0xFFFFFFFFFFFFFFFE)
    image = image.save(t.path("future.qcow2"))
    with t.serve(image, "-f", "qcow2", "-r").client() as client:
        equal(client.read(0, 8), b"\x11" * 8, "data")


def test_marked_corrupt(t):
    """Images marked corrupt can be read; to write is refused."""
    image = Qcow2File(make_qcow2(t)).set("incompatible", 2).save(t.path("marked.qcow2"))
    before = digest(image)
    refused(t, image, "-f", "qcow2", says=["marked.qcow2", "corrupt"])
    with t.serve(image, "-f", "qcow2", "-r").client() as client:
        equal(client.read(0, MIB), b"\x11" * MIB, "data")
    t.stop_servers()
    equal(digest(image), before, "hash of the image")


VALUES = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)


@cases(*(field for field in FIELDS if field != "magic"))
def test_every_field_with_every_extreme(t, field):
    """Whatever a header field says: refused with a message, or served without harm."""
    good = make_qcow2(t)
    width = 8 * struct.calcsize(FIELDS[field][1])
    for value in VALUES:
        if value >> width:
            continue
        image = Qcow2File(good).set(field, value).save(t.path("bad.qcow2"))
        try_to_use(t, image, "-r")
        if (field, value) != ("incompatible", 1):  # dirty: repaired when it is opened for writing
            try_to_use(t, image)


def try_to_use(t, image, *options):
    """Serves an image of which anything may be wrong, and reads all of it that is not too big."""
    before = digest(image)
    try:
        server = t.serve(image, "-f", "qcow2", *options)
    except Refused as refusal:
        equal(refusal.status, 1, "exit status")
        check(os.path.basename(image) in refusal.log, f"the message names no file: {refusal.log}")
    else:
        with server.client() as client:
            for at in range(0, min(client.export.size, SIZE), MIB):
                client.read_error(at, min(MIB, client.export.size - at))
            if client.export.size:
                client.read_error(client.export.size - 1, 1)
        if not SANITIZED:
            check(server.status_field("VmHWM") < 128 * KIB, "the server took more than 128 MiB")
        server.stop()
    equal(digest(image), before, "hash of the image")


@cases(0, 1, 3, 4, 8, 71, 72, 103, 104, 111, 112, 511, 512, CLUSTER - 1)
def test_truncated_in_the_header(t, length):
    image = t.file("short.qcow2", read_file(make_qcow2(t))[:length])
    refused_unchanged(t, image, "-f", "qcow2", says=["qcow2|end"])


def test_truncated_anywhere(t):
    """Every cluster boundary of the file, and places around it: an error, or what is still there."""
    good = read_file(make_qcow2(t))
    wanted = b"\x11" * MIB + bytes(MIB) + b"\x22" * CLUSTER + bytes(2 * MIB - CLUSTER)
    step = CLUSTER * (40 if SANITIZED else 15)
    for length in sorted({*range(CLUSTER, 12 * CLUSTER, CLUSTER), *range(CLUSTER, len(good), step),
                          3 * CLUSTER + 8, 5 * CLUSTER - 8, len(good) - 1}):
        image = t.file("short.qcow2", good[:length])
        before = digest(image)
        try:
            server = t.serve(image, "-f", "qcow2", "-r")
        except Refused as refusal:
            equal(refusal.status, 1, f"exit status, cut to {length} bytes")
            continue
        with server.client() as client:
            for at in range(0, SIZE, 64 * KIB):
                error, data = client.read_error(at, 64 * KIB)
                check(error in (0, EIO), f"error {error} at {at}, cut to {length} bytes")
                for i in range(0, len(data), 512):
                    check(data[i:i + 512] in (wanted[at + i:at + i + 512], bytes(512)),
                          f"invented data at {at + i}, cut to {length} bytes")
        server.stop()
        equal(digest(image), before, "hash of the image")


def extension(kind, data):
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def with_extensions(t, *extensions):
    """An image without its own extensions (QEMU's follow the header at once)."""
    image = Qcow2File(make_qcow2(t))
    image.data[112:CLUSTER] = b"".join(extensions).ljust(CLUSTER - 112, b"\0")[:CLUSTER - 112]
    return image.save(t.path("bad.qcow2"))


def test_extensions(t):
    end = bytes(8)
    for says, parts in (
            ("extension", (struct.pack(">II", 0x12345678, 0xFFFFFFFF),)),
            ("extension", (struct.pack(">II", 0x12345678, CLUSTER), bytes(16))),
            ("backing format", (extension(EXT_BACKING_FORMAT, b"q" * 64), end)),
            ("extension", (extension(EXT_BACKING_FORMAT, b"raw"), extension(EXT_BACKING_FORMAT, b"raw"))),
            ("LUKS header length", (extension(0x0537BE77, bytes(16)), end)),
    ):
        refused_unchanged(t, with_extensions(t, *parts), "-f", "qcow2", says=[says])
    for parts in ((extension(0x12345678, b"unknown"), end), (extension(1, b"") * 400,),
                  (extension(EXT_FEATURE_TABLE, bytes(47)), end),
                  (extension(EXT_FEATURE_TABLE, b"\xff" * 480), end)):
        with t.serve(with_extensions(t, *parts), "-f", "qcow2", "-r").client() as client:
            equal(client.read(0, 4), b"\x11" * 4, "data of an image with harmless extensions")


# Tables of qcow2, which are met when they are used.

def serve_and_read(t, image, bad, *options):
    """The cluster at `bad` cannot be read; the client stays connected and reads what is good."""
    before = digest(image)
    with t.serve(image, "-f", "qcow2", "-r", *options).client() as client:
        equal(client.read_error(bad, 512)[0], EIO, f"error of a read at {bad}")
        equal(client.read_error(0, SIZE // 2)[0], EIO if bad < SIZE // 2 else 0, "error of a long read")
        equal(client.read(3 * MIB, CLUSTER), bytes(CLUSTER), "a cluster that is good")
    t.stop_servers()
    equal(digest(image), before, "hash of the image")


@cases("unaligned", "past-2^56", "reserved-bit", "beyond")
def test_l2_entry(t, what):
    image = Qcow2File(make_qcow2(t))
    at = image.l2_entry_at(64 * KIB)
    good = image.u64(at)
    image.set_u64(at, {"unaligned": good + 512, "past-2^56": good | 1 << 57, "reserved-bit": good | 2,
                       "beyond": COPIED | 1 << 40}[what])
    path = image.save(t.path("bad.qcow2"))
    if what in ("unaligned", "past-2^56"):
        serve_and_read(t, path, 64 * KIB)
        serve_and_write(t, path, 64 * KIB)
    else:
        try_to_use(t, path, "-r")


@cases(("beyond", 1 << 40), ("unaligned", 512), ("past-2^56", 1 << 57))
def test_l1_entry(t, what, value):
    image = Qcow2File(make_qcow2(t))
    at = image.l1_entry_at(0)
    image.set_u64(at, COPIED | value if what == "beyond" else image.u64(at) + value)
    path = image.save(t.path("bad.qcow2"))
    try:
        serve_and_read(t, path, 64 * KIB)
        serve_and_write(t, path, 64 * KIB)
    except Refused as refusal:
        equal(refusal.status, 1, "exit status")
        check("bad.qcow2" in refusal.log and "L1" in refusal.log, refusal.log)


def serve_and_write(t, path, bad):
    """A write over a broken entry fails or repairs; what the guest sees elsewhere does not change."""
    shutil.copy(path, t.path("copy.qcow2"))
    server = t.serve(t.path("copy.qcow2"), "-f", "qcow2", "--discard=unmap")
    with server.client() as client:
        for command, payload in ((CMD_WRITE, b"x" * 512), (CMD_WRITE_ZEROES, b""), (CMD_TRIM, b"")):
            error = client.command(command, bad, 512, 0, payload)
            check(error in (0, EIO), f"error {error} of command {command} at {bad}")
        check(client.command(CMD_FLUSH) in (0, EIO), "error of FLUSH")
        equal(client.read(3 * MIB, CLUSTER), bytes(CLUSTER), "a cluster that is good")
    server.stop()


@cases("beyond", "unaligned", "garbage", "long")
def test_compressed_cluster(t, what):
    image = Qcow2File(make_qcow2(t))
    at = image.l2_entry_at(2 * MIB)
    entry = image.u64(at)
    check(entry & COMPRESSED, "the cluster at 2 MiB should be compressed")
    shift = 62 - (image.get("cluster_bits") - 8)
    host = entry & ((1 << shift) - 1)
    if what == "beyond":
        image.set_u64(at, COMPRESSED | 1 << (shift - 1))
    elif what == "unaligned":
        image.set_u64(at, entry + 3)
    elif what == "garbage":
        image.data[host:host + 64] = content(3, 64)
    else:  # a stream that goes on and on: stored blocks of zeroes, none of them the last
        image.data[host:host + 65] = b"\0\xff\xff\0\0" * 13
    path = image.save(t.path("bad.qcow2"))
    if what == "long":
        try_to_use(t, path, "-r")
    else:
        serve_and_read(t, path, 2 * MIB)


@cases("header", "l1", "l2", "reftable", "refblock")
def test_data_on_top_of_metadata(t, victim):
    """A mapping that points at metadata is not written through: the metadata stays as it is."""
    image = Qcow2File(make_qcow2(t))
    target = {"header": 0, "l1": image.get("l1_offset"), "reftable": image.reftable_at(),
              "refblock": image.u64(image.reftable_at()),
              "l2": image.u64(image.l1_entry_at(0)) & OFFSET_MASK}[victim]
    image.set_u64(image.l2_entry_at(64 * KIB), COPIED | target)
    path = image.save(t.path("bad.qcow2"))
    with t.serve(path, "-f", "qcow2").client() as client:
        equal(client.command(CMD_WRITE, 64 * KIB, CLUSTER, 0, b"\xee" * CLUSTER), EIO, "error of a write")
        equal(client.read(0, 4), b"\x11" * 4, "a cluster that is good")
    t.stop_servers()
    after = read_file(path)
    # The header may have been marked corrupt; nothing else of it changes either.
    for start, end in ((0, 72), (80, CLUSTER)) if victim == "header" else ((target, target + CLUSTER),):
        same_bytes(after[start:end], bytes(image.data[start:end]), f"the {victim}")


@cases("beyond", "unaligned", "zero", "reserved")
def test_refcount_table_entry(t, what):
    """Allocation with a broken refcount table fails, and breaks nothing."""
    image = Qcow2File(make_qcow2(t))
    at = image.reftable_at()
    image.set_u64(at, {"beyond": 1 << 40, "unaligned": image.u64(at) + 512, "zero": 0,
                       "reserved": image.u64(at) + 1}[what])
    path = image.save(t.path("bad.qcow2"))
    try:
        server = t.serve(path, "-f", "qcow2")
    except Refused as refusal:
        equal(refusal.status, 1, "exit status")
        check("refcount" in refusal.log, refusal.log)
        return
    with server.client() as client:
        error = client.command(CMD_WRITE, MIB, CLUSTER, 0, b"\xee" * CLUSTER)
        check(what == "zero" or error == EIO, f"error {error} of a write that allocates")
        client.command(CMD_FLUSH)
        equal(client.read(0, MIB), b"\x11" * MIB, "what was there")
    server.stop()
    same_bytes(read_file(path)[:72], bytes(image.data[:72]), "the header")


# Backing files.

def overlay(t, backing, backing_format="raw", name="top.qcow2"):
    image = t.path(name)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", backing_format, image, "1M")
    return image


@cases(("missing.raw", "no such file"), ("json:{\"driver\":\"file\",\"filename\":\"base.raw\"}", "path"),
       ("nbd://localhost/x", "path"), ("http://localhost/x", "path"), ("fd:1", "path"),
       ("host_device:/dev/sda", "path"), (".", "directory"))
def test_backing_name(t, name, says):
    t.file("base.raw", content(4, MIB))
    image = overlay(t, name)
    refused_unchanged(t, image, "-f", "qcow2", says=[says])


def test_backing_without_a_format(t):
    t.file("base.raw", content(5, MIB))
    image = Qcow2File(overlay(t, "base.raw"))
    struct.pack_into(">I", image.data, image.extension(EXT_BACKING_FORMAT), 0x12345678)
    refused_unchanged(t, image.save(t.path("bad.qcow2")), "-f", "qcow2", says=["backing file", "format"])


def test_raw_backing_that_looks_like_qcow2(t):
    """The recorded format is taken at its word: nothing is probed."""
    make_qcow2(t, "inner.qcow2")
    with t.serve(overlay(t, "inner.qcow2"), "-f", "qcow2", "-r").client() as client:
        equal(client.read(0, 4), b"QFI\xfb", "start of a raw backing file")


def test_backing_formats(t):
    t.file("base.raw", content(6, MIB))
    refused_unchanged(t, overlay(t, "base.raw", "vmdk"), "-f", "qcow2", says=["vmdk"])
    refused_unchanged(t, overlay(t, "base.raw", "qcow2"), "-f", "qcow2", says=["base.raw", "qcow2"])


def test_cycle(t):
    image = overlay(t, "top.qcow2", "qcow2")
    refused_unchanged(t, image, "-f", "qcow2", says=["backing chain"])
    one = overlay(t, "two.qcow2", "qcow2", "one.qcow2")
    overlay(t, "one.qcow2", "qcow2", "two.qcow2")
    refused_unchanged(t, one, "-f", "qcow2", says=["backing chain"])
    os.link(one, t.path("other-name.qcow2"))
    overlay(t, "other-name.qcow2", "qcow2", "two.qcow2")
    refused_unchanged(t, one, "-f", "qcow2", says=["backing chain"])


def test_long_chain(t):
    """64 backing files work, one more is refused."""
    t.file("0", content(7, MIB))
    for layer in range(1, 66):
        overlay(t, str(layer - 1), "raw" if layer == 1 else "qcow2", str(layer))
    with t.serve(t.path("64"), "-f", "qcow2", "-r").client() as client:
        same_bytes(client.read_all(), read_file(t.path("0")), "the export over 64 backing files")
    refused(t, t.path("65"), "-f", "qcow2", "-r", says=["backing chain", "64"])


def test_shared_samples(t):
    """Images that are to be refused, or at least to do no harm."""
    for row in samples("qcow2"):
        if row["expect"] == "refuse":
            try_to_use(t, unpack_sample(t, row), "-r")
            try_to_use(t, unpack_sample(t, row))


def test_write_past_what_the_disk_has(t):
    """The client is told the truth and can go on."""
    image = make_qcow2(t)
    with t.serve(image, "-f", "qcow2").client() as client:
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (1 << 63, 512), ((1 << 64) - 512, 1024)):
            error = client.command(CMD_WRITE, offset, length, 0, b"x" * length)
            check(error != 0, f"a write of {length} at {offset} was taken")
        client.write(SIZE - 1, b"x")
        try:
            equal(client.read(SIZE - 1, 1), b"x", "last byte")
        except Closed as closed:
            raise AssertionError("the connection was closed") from closed


if __name__ == "__main__":
    main()
