#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Images that are none, or of a broken chain; test_hostile_images.py has those that are broken themselves."""
import os
import re
import socket

from evnbd_test import (EVNBD, MIB, cases, check, content, digest, equal, main, read_file, refused, run, samples,
                        same_bytes, skip, unpack_sample)
from hostile_images import SIZE, Battery, Hostile, make_good
from hostile_images_header import overlay
from nbd_raw import CMD_WRITE, Closed


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


# Backing files.

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
            Battery(t, Hostile(row["set"], unpack_sample(t, row), any_end=True, sound=())).run()


def test_write_past_what_the_disk_has(t):
    """The client is told the truth and can go on."""
    image = make_good(t)
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
