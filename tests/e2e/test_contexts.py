#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Metadata contexts: what evnbd tells of images is what qemu-nbd and qemu-img tell of them."""
import json
import os

from evnbd_test import KIB, MIB, cases, check, content, equal, main, need, qemu_img, read_file, run
from test_interop_qcow2 import create, make_chain

HOLE, ZERO = 1, 2


def contexts_of(uri):
    need("nbdinfo")
    return json.loads(run("nbdinfo", "--json", uri).stdout)["exports"][0].get("contexts", [])


def merged(extents):
    """[length, what] of neighbors that are the same, together."""
    runs = []
    for length, what in extents:
        if runs and runs[-1][1] == what:
            runs[-1][0] += length
        else:
            runs.append([length, what])
    return runs


def extents_of(uri, context):
    """[length, flags]"""
    need("nbdinfo")
    extents = json.loads(run("nbdinfo", f"--map={context}", "--json", uri).stdout)
    return merged((extent["length"], extent["type"]) for extent in extents)


def qemu_nbd(t, image, *options):
    """The URI of a qemu-nbd that serves the image for reading; it ends with its client."""
    need("qemu-nbd")
    sock, pid = t.path(f"qemu{t.number()}.sock"), t.path("qemu.pid")
    run("qemu-nbd", "--fork", f"--pid-file={pid}", "-r", "-k", sock, *options, image)
    return f"nbd+unix:///?socket={sock}"


def check_zeroes(extents, image_format, image, raw):
    """What is told to be zero is: QEMU may tell more than we do, but nobody more than the truth."""
    qemu_img("convert", "-f", image_format, "-O", "raw", image, raw)
    data, at = read_file(raw), 0
    for length, flags in extents:
        check(not flags & ZERO or data.count(0, at, at + length) == length,
              f"{length} bytes at {at} are not all zero")
        at += length
    equal(at, len(data), "bytes in extents")


def same_extents(t, image_format, image):
    server = t.serve(image, "-r", "-A", "-f", image_format)
    depths, allocation = (extents_of(server.uri, context)
                          for context in ("qemu:allocation-depth", "base:allocation"))
    options = ("-A", "-f", image_format)
    equal(depths, extents_of(qemu_nbd(t, image, *options), "qemu:allocation-depth"), "depths")
    peers = extents_of(qemu_nbd(t, image, *options), "base:allocation")
    equal(merged((length, flags & HOLE) for length, flags in allocation),
          merged((length, flags & HOLE) for length, flags in peers), "holes")
    check_zeroes(allocation, image_format, image, t.path("expected.raw"))


@cases(512, 4 * KIB, 64 * KIB)
def test_chain_like_qemu(t, cluster):
    """Two qcow2 layers with data, compressed clusters, zeroes and holes over a raw base."""
    same_extents(t, "qcow2", make_chain(t, cluster, "1.1", "zlib", 16))


def test_sparse_raw_like_qemu(t):
    path = t.sparse_file("disk.raw", 8 * MIB + 3 * KIB)
    with open(path, "r+b") as file:
        for number in range(0, 8, 3):
            file.seek(number * MIB + 64 * KIB)
            file.write(content(number, 128 * KIB))
    same_extents(t, "raw", path)


def test_map_like_qemu_img(t):
    """Where QEMU's own client finds data over NBD is where it finds it in the file."""
    image = make_chain(t, 64 * KIB, "1.1", "zlib", 16)
    server = t.serve(image, "-f", "qcow2", "-r")

    def data_of(*words):
        extents = json.loads(qemu_img("map", "--output=json", *words).stdout)
        return merged((extent["length"], extent["data"]) for extent in extents)

    equal(data_of("-f", "raw", server.uri), data_of("-f", "qcow2", image), "the map")


def test_offers(t):
    """Depth is offered when it was asked for, bitmaps only by name; a name brings no other along."""
    image = create(t.path("disk.qcow2"), MIB, 64 * KIB)
    server = t.serve(image, "-f", "qcow2")
    equal(contexts_of(server.uri), ["base:allocation"], "contexts")
    server.stop()
    server = t.serve(image, "-f", "qcow2", "--allocation-depth", export="n", unix=t.path("s"))
    equal(contexts_of(server.uri), ["base:allocation", "qemu:allocation-depth"], "contexts")


def test_follows_writes(t):
    """A client that asks again sees what another has written."""
    base = t.file("base.raw", content(1, MIB))
    image = create(t.path("disk.qcow2"), MIB, 64 * KIB, backing=(os.path.basename(base), "raw"))
    server = t.serve(image, "-f", "qcow2", "-A", "-e", "2")
    equal(extents_of(server.uri, "qemu:allocation-depth"), [[MIB, 2]], "before")
    with server.client() as client:
        client.write(128 * KIB, b"x" * (64 * KIB))
        equal(extents_of(server.uri, "qemu:allocation-depth"),
              [[128 * KIB, 2], [64 * KIB, 1], [MIB - 192 * KIB, 2]], "after")


if __name__ == "__main__":
    main()
