#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Four clients write at random; afterwards the image is sound and holds what the model says."""
import os

from evnbd_test import (HELPERS, KIB, MIB, SANITIZED, cases, content, digest, equal, main, qemu_img,
                        qemu_img_check, qemu_io, run, skip)

OPERATIONS = 400 if SANITIZED else 800  # of each client

# name, qemu-img's options, what lies below
IMAGES = {
    "raw": None,
    "v2": ("compat=0.10", ""),
    "v3": ("compat=1.1", ""),
    "c512": ("cluster_size=512", ""),
    "c4k": ("cluster_size=4k", ""),
    "c2m": ("cluster_size=2M", ""),
    "refcount1": ("refcount_bits=1", ""),
    "refcount64": ("refcount_bits=64,cluster_size=4k", ""),
    "preallocated": ("preallocation=metadata", ""),
    "backing-v2": ("compat=0.10", "raw"),
    "backing-c512": ("cluster_size=512", "raw"),
    "backing-v3": ("compat=1.1", "qcow2"),
    "backing-c2m": ("cluster_size=2M", "qcow2"),
    "snapshots": ("compat=1.1", "snapshots"),
    "snapshots-c512": ("cluster_size=512", "snapshots"),
    "compressed": ("compat=1.1", "compressed"),
    "subclusters": ("extended_l2=on", ""),
    "subclusters-c16k": ("extended_l2=on,cluster_size=16k,refcount_bits=8", ""),
    "subclusters-c2m": ("extended_l2=on,cluster_size=2M", ""),
    "subclusters-preallocated": ("extended_l2=on,preallocation=metadata", "raw"),
    "subclusters-backing": ("extended_l2=on,cluster_size=128k", "qcow2"),
    "subclusters-snapshots": ("extended_l2=on", "snapshots"),
    "subclusters-compressed": ("extended_l2=on", "compressed"),
    "data-file": ("data_file=disk.data", ""),
    "data-file-backing": ("data_file=disk.data,cluster_size=4k", "raw"),
    "data-file-subclusters": ("data_file=disk.data,extended_l2=on", "qcow2"),
    "data-file-raw": ("data_file=disk.data,data_file_raw=on", ""),
    "data-file-raw-subclusters": ("data_file=disk.data,data_file_raw=on,extended_l2=on", ""),
}
OPTIONS = {"": (), "unmap": ("--discard=unmap",), "zeroes": ("--discard=unmap", "--detect-zeroes=unmap")}


def make_below(t, size, kind):
    """A backing file, somewhat smaller than the image; returns qemu-img's options."""
    raw = t.file("base.raw", content(30, size // 3) + bytes(size // 3) + content(31, size // 5))
    if kind == "raw":
        return ["-b", "base.raw", "-F", "raw"]
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, t.path("base.qcow2"))
    return ["-b", "base.qcow2", "-F", "qcow2"]


def make_image(t, name, size):
    """Returns the image, its format, and snapshots as a dictionary from name to hash."""
    if name == "raw":
        return t.file("disk.raw", content(32, size)), "raw", {}
    options, below = IMAGES[name]
    image = t.path("disk.qcow2")
    if below == "compressed":
        raw = t.file("disk.raw", content(33, size // 2) + bytes(size // 2))
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, image)
        return image, "qcow2", {}
    backing = make_below(t, size, below) if below in ("raw", "qcow2") else []
    options = options.replace("disk.data", t.path("disk.data"))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, *backing, image, size)
    snapshots = {}
    if below == "snapshots":
        for number, snapshot in enumerate(("one", "two")):
            qemu_io(image, f"write -P {number + 1} {number}M 1000000", arguments=("-f", "qcow2"))
            qemu_img("snapshot", "-c", snapshot, image)
            snapshots[snapshot] = snapshot_hash(t, image, snapshot)
    return image, "qcow2", snapshots


def snapshot_hash(t, image, name):
    qemu_img("convert", "-f", "qcow2", "-O", "raw", "-l", name, image, t.path("snapshot.raw"))
    return digest(t.path("snapshot.raw"))


def helper():
    path = os.path.join(HELPERS, "random_writes")
    if not os.path.exists(path):
        skip("random_writes was not built")
    return path


@cases(*((image, options) for image in IMAGES for options in OPTIONS
         if options != "zeroes" or image in ("raw", "v3", "backing-c512", "snapshots")),
       sanitized=lambda image, options: options == "unmap" or (options, image) in (
           ("", "raw"), ("", "c512"), ("", "subclusters"), ("zeroes", "backing-c512"), ("zeroes", "snapshots")))
def test_random_writes(t, name, options):
    program = helper()
    size = 6 * MIB if IMAGES[name] and "512" in IMAGES[name][0] else 12 * MIB
    size += 3 * KIB + (77 if name == "raw" else 0)
    image, image_format, snapshots = make_image(t, name, size)
    model = t.path("model.raw")
    qemu_img("convert", "-f", image_format, "-O", "raw", image, model)
    os.truncate(model, size)  # qemu-img rounds odd sizes up
    server = t.serve(image, "-f", image_format, "-e", "0", *OPTIONS[options])
    for seed in (1, 2):
        run(program, server.uri, model, 4, 16, OPERATIONS, seed)
    server.stop()
    if image_format == "qcow2":
        qemu_img_check(image)
        for snapshot, old in snapshots.items():
            equal(snapshot_hash(t, image, snapshot), old, f"hash of snapshot {snapshot}")
        qemu_img("compare", "-f", image_format, "-F", "raw", image, model)
        if "data_file_raw=on" in IMAGES[name][0]:
            qemu_img("compare", "-f", "raw", "-F", "raw", t.path("disk.data"), model)
    else:
        equal(digest(image), digest(model), "hash of the image")


@cases("threads", "io_uring")
def test_one_deep_client(t, aio):
    """One client may cross every border and go deeper."""
    program = helper()
    image, image_format, _ = make_image(t, "backing-v3", 12 * MIB)
    model = t.path("model.raw")
    qemu_img("convert", "-f", image_format, "-O", "raw", image, model)
    server = t.serve(image, "-f", image_format, f"--aio={aio}", "--discard=unmap")
    run(program, server.uri, model, 1, 64, 4 * OPERATIONS, 7)
    server.stop()
    qemu_img_check(image)
    qemu_img("compare", "-f", image_format, "-F", "raw", image, model)


@cases("none", "writethrough", "directsync", "unsafe", ("none", "subclusters-c16k"), ("none", "data-file"),
       ("none", "data-file-raw-subclusters"))
def test_cache_modes(t, cache, name="v3"):
    program = helper()
    image, image_format, _ = make_image(t, name, 8 * MIB)
    model = t.path("model.raw")
    qemu_img("convert", "-f", image_format, "-O", "raw", image, model)
    server = t.serve(image, "-f", image_format, f"--cache={cache}", "-e", "0")
    run(program, server.uri, model, 4, 8, OPERATIONS // 4, 9)
    server.stop()
    qemu_img_check(image)
    qemu_img("compare", "-f", image_format, "-F", "raw", image, model)


if __name__ == "__main__":
    main()
