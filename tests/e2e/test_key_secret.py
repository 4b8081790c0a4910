#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Serving encrypted images with --key-secret: QEMU reads what clients wrote, bitmaps and snapshots of
such images work, and what does not unlock is refused by name."""
import random

from evnbd_test import (KIB, MIB, cases, check, content, digest, equal, main, qemu_img, qemu_io, read_file,
                        refused, same_bytes)
from test_contexts import extents_of, qemu_nbd
from test_encryption import PASSPHRASE, SECRET, check_both, image_opts, qemu_create, qemu_read, tool

SIZE = 3 * MIB
# format, options of qemu-img
KINDS = (("luks", "iter-time=10"), ("qcow2", "encrypt.format=luks,encrypt.iter-time=10"),
         ("qcow2", "encrypt.format=aes"))
MARK = b"a sentence that nobody else may read"


def make(t, form, options):
    key = "key-secret=s" if form == "luks" else "encrypt.key-secret=s"
    return qemu_create(form, f"{key},{options}", t.path(f"disk.{form}"), SIZE)


def unlock(t, form, passphrase=PASSPHRASE):
    """The options of evnbd; the passphrase stands in a file, for others may read command lines."""
    secret = t.file("passphrase", passphrase.encode())
    return ("-f", form, "--object", f"secret,id=s,file={secret}", "--key-secret=s")


def scribble(client, model, seed):
    """Writes at random places, and some that are longer than what is encrypted at once."""
    rng = random.Random(seed)
    for length in (1, 100, 512, 5000, 70000, 400000, 512, 4096):
        at = rng.randrange(len(model) - length)
        data = rng.randbytes(length)
        client.write(at, data)
        model[at:at + length] = data
    client.flush()


@cases(*KINDS)
def test_clients_and_qemu(t, form, options):
    """What clients write is encrypted in the file, and the disk of both programs."""
    image, model = make(t, form, options), bytearray(content(1, SIZE))
    model[100000:100000 + len(MARK)] = MARK
    with t.serve(image, *unlock(t, form)).client() as client:
        equal(client.export.size, SIZE, "size of the export")
        client.write(0, bytes(model))
        scribble(client, model, 2)
        same_bytes(client.read_all(), bytes(model), "the disk as the client reads it")
    t.stop_servers()
    check(MARK not in read_file(image), "what was written is to be read in the file")
    same_bytes(qemu_read(t, form, image), bytes(model), "the disk as QEMU reads it")
    for more, start in (((), 0), (("-o", "70000"), 70000)):
        with t.serve(image, "-r", *unlock(t, form), *more).client() as client:
            same_bytes(client.read_all(), bytes(model[start:]), f"the export with {more}")
        t.stop_servers()


@cases(*KINDS[:2])
def test_wrong_passphrase(t, form, options):
    image = make(t, form, options)
    before = digest(image)
    refused(t, image, *unlock(t, form, "wrong horse"), says=["Failed to open", "none of its key slots opens"])
    equal(digest(image), before, "hash of the image")


@cases(*KINDS)
def test_no_secret(t, form, options):
    """What is missing is said, with the option that gives it."""
    image = make(t, form, options)
    before = digest(image)
    refused(t, image, "-f", form, says=["it is encrypted", "--key-secret=ID"])
    refused(t, image, says=["it is encrypted", "--key-secret=ID"])
    refused(t, image, "-f", form, "--key-secret=nosuch", says=["names the secret 'nosuch', which is not there"])
    equal(digest(image), before, "hash of the image")


def test_not_encrypted(t):
    image = t.path("plain.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    refused(t, image, *unlock(t, "qcow2"), says=["the image is not encrypted"])
    refused(t, image, *unlock(t, "raw"), says=["--key-secret is for images of the formats luks and qcow2"])
    refused(t, image, *unlock(t, "luks"), says=["Failed to open"])


def context_map(t, image, *options):
    server = t.serve(image, "-r", *options)
    extents = extents_of(server.uri, "qemu:dirty-bitmap:b")
    server.stop()
    return extents


@cases(*KINDS[1:])
def test_bitmap(t, form, options):
    """Bitmaps are not encrypted; what is written through the cipher is recorded in them."""
    image, model = make(t, form, options), bytearray(SIZE)
    qemu_img("bitmap", "--add", *SECRET, "--image-opts", image_opts(form, image), "b")
    with t.serve(image, *unlock(t, form)).client() as client:
        scribble(client, model, 3)
    t.stop_servers()
    ours = context_map(t, image, *unlock(t, form), "-B", "b")
    uri = qemu_nbd(t, image_opts(form, image), *SECRET, "--image-opts", "-B", "b")
    equal(ours, extents_of(uri, "qemu:dirty-bitmap:b"), "the map, ours and qemu-nbd's")
    check(any(dirty for _, dirty in ours), "nothing is dirty")
    same_bytes(qemu_read(t, form, image), bytes(model), "the disk as QEMU reads it")
    check_both(image)


@cases(*KINDS[1:])
def test_snapshots(t, form, options):
    """What a snapshot shares stays what it was, and is read with the same key."""
    image, model = make(t, form, options), bytearray(SIZE)
    with t.serve(image, *unlock(t, form)).client() as client:
        scribble(client, model, 4)
    t.stop_servers()
    tool("snapshot-create", image, "ours", form=form)
    kept = bytes(model)
    with t.serve(image, *unlock(t, form)).client() as client:
        scribble(client, model, 5)
        same_bytes(client.read_all(), bytes(model), "the disk as the client reads it")
    t.stop_servers()
    check_both(image)
    with t.serve(image, *unlock(t, form), "-l", "ours").client() as client:
        same_bytes(client.read_all(), kept, "the export of the snapshot")
    t.stop_servers()
    same_bytes(qemu_read(t, form, image), bytes(model), "the disk as QEMU reads it")
    tool("snapshot-apply", image, "ours", form=form)
    same_bytes(qemu_read(t, form, image), kept, "the applied snapshot as QEMU reads it")
    qemu_io(image_opts(form, image), "write -P 7 64k 64k", arguments=(*SECRET, "--image-opts"))
    tool("snapshot-delete", image, "ours", form=form)
    with t.serve(image, *unlock(t, form)).client() as client:
        same_bytes(client.read_all(), kept[:64 * KIB] + bytes([7]) * (64 * KIB) + kept[128 * KIB:],
                   "the disk without the snapshot")
    t.stop_servers()
    check_both(image)


if __name__ == "__main__":
    main()
