#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
A disk that was taken for raw cannot be made an image of another format: with qemu-img as the judge of
what it would be taken for, no write does that through evnbd.
"""
import json
import struct

from evnbd_test import KIB, cases, check, equal, main, need, qemu_img, read_file, write_file
from nbd_raw import CMD_WRITE, CMD_WRITE_ZEROES, EPERM

SIZE = 64 * KIB
BOCHS = struct.pack("<32s16s16sII", b"Bochs Virtual HD Image", b"Redolog", b"Growing", 0x20000, 512)
CLOOP = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"

# Formats by their first bytes. What qemu-img does not take for another format may be written or not.
HEADERS = {
    "qcow": b"QFI\xfb\0\0\0\1", "qcow2": b"QFI\xfb\0\0\0\2", "qcow2-v3": b"QFI\xfb\0\0\0\3",
    "qcow2-v9": b"QFI\xfb\0\0\0\x09", "qed": b"QED\0", "vhdx": b"vhdxfile", "vpc": b"conectix",
    "vdi": bytes(64) + b"\x7f\x10\xda\xbe", "vmdk-hosted": b"KDMV", "vmdk-esx": b"COWD",
    "vmdk-sesparse": b"\xbe\xba\xfe\xca\0\0\0\0", "parallels": b"WithoutFreeSpace\2\0\0\0",
    "parallels-ext": b"WithouFreSpacExt\2\0\0\0", "bochs": BOCHS, "cloop": CLOOP, "luks": b"LUKS\xba\xbe\0\1",
}
TEXTS = [b"version=1\n", b"version=2\r\n", b"version=3\n", b"version=4\n", b"version=1", b"version=1 \n",
         b" version=1\n", b"version = 1\n", b"Version=1\n", b"# x\nversion=1\n", b"# x\r\nversion=1\r\n",
         b"\nversion=1\n", b"\r\nversion=1\n", b"   \nversion=1\n", b"\t\nversion=1\n", b"  \r\nversion=1\n",
         b" # x\nversion=1\n", b"# x\0y\nversion=1\n", b"#\nversion=1\n", b"# Disk DescriptorFile\n",
         b"#" + b"x" * 480 + b"\nversion=1\n", b"#" + b"x" * 600 + b"\nversion=1\n",
         b"#\n#\n  \n#\nversion=2\nCID=1\n", b"#\n" * 100 + b"version=1\n"]
HARMLESS = [b"version\n", b"# a comment\n", b"CID=1\nversion=1\n", b"versions=1\n", b"QFI", b"LUKS", b"\n" * 512,
            b"#!/bin/sh\necho version=1\n", b"# x\nversion=one\n", bytes(512)]


def taken_for(t, data):
    """The format that qemu-img sees in a file that begins so; "refused": none, but not raw either."""
    need("qemu-img")
    path = write_file(t.path("judged"), data.ljust(SIZE, b"\0"))
    done = qemu_img("info", "--output=json", path, status=None)
    return "refused" if done.returncode else json.loads(done.stdout)["format"]


def test_judge(t):
    """The judge knows the formats: else the others here prove nothing."""
    for name in ("qcow2", "vmdk-hosted", "vdi", "luks", "cloop", "bochs", "qed", "vpc"):
        check(taken_for(t, HEADERS[name]) != "raw", f"qemu-img takes {name} for raw")
    check(taken_for(t, b"version=1\n") != "raw", "qemu-img takes a VMDK descriptor for raw")


def test_no_write_makes_a_format(t):
    image = t.file("disk", bytes(SIZE))
    client = t.serve(image).client()
    for data in [*HEADERS.values(), *TEXTS]:
        for payload in (data, data.ljust(4096, b"\0")):
            error = client.command(CMD_WRITE, 0, len(payload), payload=payload)
            check(error in (0, EPERM), f"error {error}")
            client.flush()
            equal(taken_for(t, read_file(image)), "raw", f"the disk after a write of {data[:60]} (error {error})")
            if error == 0:
                client.write(0, bytes(4096))


def test_no_second_half_makes_a_format(t):
    image = t.file("disk", bytes(SIZE))
    client = t.serve(image).client()
    for data in [*HEADERS.values(), *TEXTS]:
        for cut in (1, len(data) - 1):
            for offset, half in ((cut, data[cut:]), (0, data[:cut])):
                client.command(CMD_WRITE, offset, len(half), payload=half)
            client.flush()
            equal(taken_for(t, read_file(image)), "raw", f"the disk after the halves of {data[:60]}")
            equal(client.command(CMD_WRITE_ZEROES, 0, 4096), 0, "WRITE_ZEROES")


def test_all_known_headers_are_refused(t):
    """Those that this qemu-img does not look for, too."""
    client = t.serve(t.file("disk", bytes(SIZE))).client()
    for name, data in HEADERS.items():
        equal(client.command(CMD_WRITE, 0, len(data), payload=data), EPERM, f"error of a write of {name}")


def test_other_texts_are_written(t):
    client = t.serve(t.file("disk", bytes(SIZE))).client()
    for data in HARMLESS:
        equal(taken_for(t, data), "raw", f"what qemu-img says of {data[:60]}")
        client.write(0, data.ljust(512, b"\0"))


# Of a part of the disk, the header is what the disk has before it and what is written.
PARTS = {
    "magic": (1, b"QFI\xfb\0\0\0\3"),
    "version": (4, b"QFI\xfb\0\0\0\3"),
    "behind": (64, HEADERS["vdi"]),
    "text": (500, b"#" + b"x" * 498 + b"\nversion=1\n"),
    "end": (511, b"#" + b"x" * 510 + b"\nversion=1\n"),
    "sectors": (512, b"#" + b"x" * 511 + b"\nversion=1\n"),
}


@cases(*PARTS)
def test_part_of_the_disk(t, name):
    offset, data = PARTS[name]
    image = t.file("disk", data[:offset].ljust(SIZE, b"\0"))
    client = t.serve(image, "-o", str(offset)).client()
    error = client.command(CMD_WRITE, 0, len(data) - offset, payload=data[offset:])
    equal(error, EPERM, "error of a write of the rest")


def test_part_behind_the_header(t):
    client = t.serve(t.file("disk", bytes(SIZE)), "-o", "4096").client()
    client.write(0, HEADERS["qcow2"])
    client = t.serve(t.file("disk2", bytes(SIZE)), "-o", "511").client()
    client.write(0, HEADERS["qcow2"])
    client.write(SIZE - 511 - 8, HEADERS["qcow2"])


if __name__ == "__main__":
    main()
