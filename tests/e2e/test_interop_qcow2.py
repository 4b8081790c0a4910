#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""qcow2 images made by qemu-img: what is read and written through evnbd is what QEMU says."""
import hashlib
import os
import random

from evnbd_test import (KIB, MIB, SANITIZED, cases, check, content, digest, equal, main, need, qemu_img,
                        qemu_img_check, qemu_io, read_file, run, same_bytes, samples, unpack_sample)
from nbd_raw import CMD_TRIM, CMD_WRITE_ZEROES

CLUSTERS = (512, 4 * KIB, 64 * KIB, 2 * MIB)
# Compatibility level, compression, refcount width.
KINDS = (("0.10", "zlib", 16), ("1.1", "zlib", 16), ("1.1", "zstd", 16), ("1.1", "zlib", 1),
         ("1.1", "zlib", 8), ("1.1", "zstd", 64))


def create(path, size, cluster, compat="1.1", compression="zlib", refcount_bits=16, backing=None):
    options = [f"cluster_size={cluster}", f"compat={compat}"]
    if compat != "0.10":
        options += [f"compression_type={compression}", f"refcount_bits={refcount_bits}"]
    base = ["-b", os.path.basename(backing[0]), "-F", backing[1]] if backing else []
    qemu_img("create", "-q", "-f", "qcow2", "-o", ",".join(options), *base, path, size)
    return path


def fill(image, seed, size, cluster):
    """Writes compressed clusters, data and zeroes, and discards, at random places of one layer."""
    rng = random.Random(seed)

    def whole_clusters(count):
        for number in rng.sample(range(size // cluster), min(count, size // cluster)):
            yield f"{number * cluster} {cluster}"

    commands = []
    for place in whole_clusters(6):
        # QEMU compresses only into clusters that are not allocated.
        commands += [f"discard {place}", f"write -c -P {rng.randrange(1, 256)} {place}"]
    for _ in range(12):
        at, length = rng.randrange(size), rng.randrange(1, max(cluster, 50 * KIB))
        commands.append(f"write -P {rng.randrange(1, 256)} {at} {min(length, size - at)}")
    for command in ("write -z", "write -z -u", "discard"):
        commands += [f"{command} {place}" for place in whole_clusters(3)]
    qemu_io(image, *commands, arguments=("-f", "qcow2"))


def make_chain(t, cluster, compat, compression, refcount_bits):
    """A base (raw), a middle and a top (both qcow2); the base is shorter than what is above it."""
    size = max(3 * MIB + 512, 4 * cluster + 512)
    t.file("base.raw", content(size, size - MIB - 512))
    middle = create(t.path("middle.qcow2"), size - 512, cluster, compat, compression, refcount_bits,
                    ("base.raw", "raw"))
    fill(middle, 1, size - 512, cluster)
    other = 64 * KIB if cluster != 64 * KIB else 4 * KIB
    top = create(t.path("top.qcow2"), size, cluster if cluster == 512 else other, compat,
                 compression, refcount_bits, ("middle.qcow2", "qcow2"))
    fill(top, 2, size, cluster if cluster == 512 else other)
    return top


def expected(t, image):
    """The guest's bytes as qemu-img sees them."""
    path = t.path("expected.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, path)
    return path


def compare_reads(t, server, wanted_path, seed=1):
    need("nbdcopy")
    wanted = read_file(wanted_path)
    out = t.path("out.raw")
    run("nbdcopy", server.uri, out)
    same_bytes(read_file(out), wanted, "what nbdcopy read")
    rng = random.Random(seed)
    with server.client() as client:
        equal(client.export.size, len(wanted), "size of the export")
        for _ in range(100):
            at = rng.randrange(len(wanted))
            length = min(rng.choice((1, 511, 4096, 70000, 300000)), len(wanted) - at)
            same_bytes(client.read(at, length), wanted[at:at + length], f"a read at {at}")


@cases(*((cluster, *kind) for cluster in CLUSTERS for kind in KINDS),
       sanitized=lambda cluster, compat, compression, refcount_bits: refcount_bits in (8, 64))
def test_chain(t, cluster, compat, compression, refcount_bits):
    top = make_chain(t, cluster, compat, compression, refcount_bits)
    wanted = expected(t, top)
    before = [digest(t.path(name)) for name in ("base.raw", "middle.qcow2", "top.qcow2")]
    compare_reads(t, t.serve(top, "-f", "qcow2", "-r", "-e", "0"), wanted)
    compare_reads(t, t.serve(top, "-r", "-e", "0"), wanted)
    t.stop_servers()
    after = [digest(t.path(name)) for name in ("base.raw", "middle.qcow2", "top.qcow2")]
    equal(after, before, "hashes of the chain after it was read")


@cases(*((cluster, *kind) for cluster in CLUSTERS for kind in KINDS[:4]),
       sanitized=lambda cluster, compat, compression, refcount_bits: compression == "zstd" or refcount_bits == 1)
def test_write_into_a_chain(t, cluster, compat, compression, refcount_bits):
    top = make_chain(t, cluster, compat, compression, refcount_bits)
    model = bytearray(read_file(expected(t, top)))
    lower = [digest(t.path(name)) for name in ("base.raw", "middle.qcow2")]
    rng = random.Random(cluster)
    with t.serve(top, "-f", "qcow2").client() as client:
        for number in range(60 if SANITIZED else 150):
            at = rng.randrange(len(model))
            length = min(rng.choice((1, 513, 4096, 70000, 200000)), len(model) - at)
            if number % 5 == 4:
                equal(client.command(CMD_WRITE_ZEROES, at, length, rng.choice((0, 2))), 0, "zeroes")
                model[at:at + length] = bytes(length)
            else:
                data = content(number, length)
                client.write(at, data)
                model[at:at + length] = data
            at = rng.randrange(len(model))
            length = min(100000, len(model) - at)
            same_bytes(client.read(at, length), bytes(model[at:at + length]), f"a read at {at}")
        same_bytes(client.read_all(), bytes(model), "the export")
    t.stop_servers()
    qemu_img_check(top)
    same_bytes(read_file(expected(t, top)), bytes(model), "the image as qemu-img reads it")
    equal([digest(t.path(name)) for name in ("base.raw", "middle.qcow2")], lower, "lower layers")


@cases("off", "metadata", "falloc", "full")
def test_preallocated(t, mode):
    image = t.path("disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"preallocation={mode}", image, "4M")
    data = content(20, 4 * MIB)
    with t.serve(image, "-f", "qcow2").client() as client:
        equal(client.read_all(), bytes(4 * MIB), "a new image")
        for at in range(0, 4 * MIB, 300001):
            client.write(at, data[at:at + 300001])
        same_bytes(client.read_all(), data, "the export")
    t.stop_servers()
    qemu_img_check(image)
    same_bytes(read_file(expected(t, image)), data, "the image as qemu-img reads it")


def test_all_compressed(t):
    """An image in which every cluster is compressed, as `qemu-img convert -c` makes it."""
    wanted = t.file("disk.raw", b"".join(content(i, 20000) + bytes([i]) * 45536 for i in range(60)))
    for compression in ("zlib", "zstd"):
        image = t.path(f"{compression}.qcow2")
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={compression}",
                 wanted, image)
        server = t.serve(image, "-f", "qcow2", "-e", "0")
        compare_reads(t, server, wanted)
        with server.client() as client:
            client.write(100000, b"over a compressed cluster")
            client.write(0, bytes(MIB))
        server.stop()
        qemu_img_check(image)
        model = bytearray(read_file(wanted))
        model[100000:100025] = b"over a compressed cluster"
        model[:MIB] = bytes(MIB)
        same_bytes(read_file(expected(t, image)), bytes(model), "the image as qemu-img reads it")


@cases(512, 64 * KIB)
def test_internal_snapshots_are_kept(t, cluster):
    """Writes leave the clusters of snapshots alone."""
    image = create(t.path("disk.qcow2"), 4 * MIB, cluster)
    fill(image, 5, 4 * MIB, cluster)
    qemu_img("snapshot", "-c", "one", image)
    fill(image, 6, 4 * MIB, cluster)
    qemu_img("snapshot", "-c", "two", image)
    old = {}
    for name in ("one", "two"):
        qemu_img("convert", "-f", "qcow2", "-O", "raw", "-l", name, image, t.path(name))
        old[name] = digest(t.path(name))
    data = content(21, 4 * MIB)
    with t.serve(image, "-f", "qcow2", "--discard=unmap").client() as client:
        client.write(0, data[:3 * MIB])
        equal(client.command(CMD_WRITE_ZEROES, MIB, MIB), 0, "error of WRITE_ZEROES")
        equal(client.command(CMD_TRIM, 3 * MIB, MIB), 0, "error of TRIM")
    t.stop_servers()
    qemu_img_check(image)
    for name in ("one", "two"):
        qemu_img("convert", "-f", "qcow2", "-O", "raw", "-l", name, image, t.path(name))
        equal(digest(t.path(name)), old[name], f"hash of snapshot {name}")


def test_zeroing_gives_clusters_back(t):
    """Holes punched into an image are reused, and refcounts stay exact."""
    image = create(t.path("disk.qcow2"), 8 * MIB, 64 * KIB)
    with t.serve(image, "-f", "qcow2", "--discard=unmap").client() as client:
        client.write(0, content(22, 8 * MIB))
        client.flush()
        full = os.path.getsize(image)
        for _ in range(4):
            equal(client.command(CMD_TRIM, 0, 8 * MIB), 0, "error of TRIM")
            equal(client.command(CMD_WRITE_ZEROES, 0, 8 * MIB), 0, "error of WRITE_ZEROES")
            equal(client.read(0, 8 * MIB), bytes(8 * MIB), "zeroes")
            client.flush()  # what is given back can be used when that is durable
            client.write(0, content(23, 8 * MIB))
            client.flush()
        check(os.path.getsize(image) <= full + MIB,
              f"the file grew from {full} to {os.path.getsize(image)} bytes by writing it again")
    t.stop_servers()
    qemu_img_check(image)


def test_new_image_through_nbd(t):
    """qemu-img makes the image, nbdcopy fills it through evnbd, qemu-img reads it."""
    need("nbdcopy")
    image = create(t.path("disk.qcow2"), 16 * MIB, 64 * KIB)
    raw = t.file("disk.raw", content(24, 5 * MIB) + bytes(6 * MIB) + content(25, 5 * MIB))
    server = t.serve(image, "-f", "qcow2", "-e", "0")
    run("nbdcopy", "--flush", raw, server.uri)
    server.stop()
    qemu_img_check(image)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", image, raw)


def test_grown_tables(t):
    """A small cluster size makes the refcount table grow and move."""
    image = create(t.path("disk.qcow2"), 24 * MIB, 512)
    data = content(26, 24 * MIB)
    with t.serve(image, "-f", "qcow2").client() as client:
        for at in range(0, len(data), MIB):
            client.write(at, data[at:at + MIB])
        same_bytes(client.read_all(), data, "the export")
    t.stop_servers()
    qemu_img_check(image)
    same_bytes(read_file(expected(t, image)), data, "the image as qemu-img reads it")


def test_shared_samples(t):
    """Images made by other programs read as the table of samples says."""
    for row in samples("qcow2"):
        if row["expect"] != "ok":
            continue
        server = t.serve(unpack_sample(t, row), "-f", "qcow2", "-r", "-e", "0")
        with server.client() as client:
            equal(client.export.size, int(row["virtual_size"]), f"size of {row['set']}")
            equal(hash_of_export(client), row["guest_sha256"], f"hash of {row['set']}")
        server.stop()


def hash_of_export(client):
    state = hashlib.sha256()
    for at in range(0, client.export.size, 8 * MIB):
        state.update(client.read(at, min(8 * MIB, client.export.size - at)))
    return state.hexdigest()


if __name__ == "__main__":
    main()
