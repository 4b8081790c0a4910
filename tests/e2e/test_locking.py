#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Image locks: the same bytes as QEMU's, so that each sees what the other does."""
import os

from evnbd_test import MIB, Refused, cases, check, content, equal, main, need, qemu_img, refused, run, \
    same_bytes
from nbd_raw import RawClient

# Locked bytes by way of opening: 100 + i is permission i held, 200 + i is not shared with others.
HELD = {
    ("raw", "rw"): {100, 101, 201, 203},
    ("raw", "ro"): {100, 203},
    ("qcow2", "rw"): {100, 101, 103, 201, 203},
    ("qcow2", "ro"): {100, 201, 203},
    ("backing", "ro"): {100, 201, 203},
    ("data file", "rw"): {100, 101, 103, 203},
    ("data file", "ro"): {100, 203},
}


def make(t):
    """A qcow2 image over a qcow2 base, and a raw one."""
    qemu_img("create", "-q", "-f", "qcow2", t.path("base.qcow2"), "4M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", t.path("top.qcow2"))
    t.file("disk.raw", content(1, MIB))


def serve(t, image, access, *options):
    image_format = "raw" if image.endswith(".raw") else "qcow2"
    return t.serve(t.path(image), "-f", image_format, *(["-r"] if access == "ro" else []), *options)


def locked_bytes(server, path):
    """Bytes that the server has locked in a file, as /proc tells."""
    inode = os.stat(path).st_ino
    found = set()
    base = f"/proc/{server.pid}/fdinfo"
    for name in os.listdir(base):
        try:
            same = os.stat(f"/proc/{server.pid}/fd/{name}").st_ino == inode
            with open(f"{base}/{name}", encoding="ascii") as lines:
                locks = [line.split() for line in lines if line.startswith("lock:")]
        except FileNotFoundError:
            continue
        for words in locks if same else []:
            equal(words[2:5], ["OFDLCK", "ADVISORY", "READ"], "kind of lock")
            found.update(range(int(words[-2]), int(words[-1]) + 1))
    return found


@cases(("raw", "rw"), ("raw", "ro"), ("qcow2", "rw"), ("qcow2", "ro"))
def test_locked_bytes(t, image_format, access):
    make(t)
    image = "disk.raw" if image_format == "raw" else "top.qcow2"
    server = serve(t, image, access)
    equal(locked_bytes(server, t.path(image)), HELD[(image_format, access)], "locked bytes")
    if image_format == "qcow2":
        equal(locked_bytes(server, t.path("base.qcow2")), HELD[("backing", "ro")],
              "locked bytes of the backing file")


@cases("rw", "ro")
def test_locked_bytes_of_a_data_file(t, access):
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={t.path('disk.data')}", t.path("disk.qcow2"), "4M")
    server = serve(t, "disk.qcow2", access)
    equal(locked_bytes(server, t.path("disk.qcow2")), HELD[("qcow2", access)], "locked bytes")
    equal(locked_bytes(server, t.path("disk.data")), HELD[("data file", access)], "locked bytes of the data file")


@cases(("top.qcow2", "rw", "rw", False), ("top.qcow2", "rw", "ro", False), ("top.qcow2", "ro", "rw", False),
       ("top.qcow2", "ro", "ro", True), ("disk.raw", "rw", "rw", False), ("disk.raw", "ro", "rw", True),
       ("disk.raw", "ro", "ro", True))
def test_two_of_ours(t, image, first, second, works):
    make(t)
    serve(t, image, first)
    if works:
        serve(t, image, second)
    else:
        text = refused(t, t.path(image), "-f", "raw" if image.endswith("raw") else "qcow2",
                       *(["-r"] if second == "ro" else []), says=["lock", image, "another process"])
        equal("--allow-writers" in text, image == "disk.raw", text)


def test_shared_writers(t):
    """Two of ours and QEMU write to one raw image, when all agree to share it."""
    make(t)
    image = t.path("disk.raw")
    first, second = (serve(t, "disk.raw", "rw", "--allow-writers") for _ in range(2))
    pid = qemu_holds(t, "disk.raw", "rw")
    try:
        third = RawClient(t.path(f"qemu{t.numbers}.sock")).connect()
        wanted = content(1, MIB)
        with first.client() as one, second.client() as two, third:
            for number, client in enumerate((one, two, third)):
                piece = bytes([number + 1]) * 4096
                client.write(8192 * number, piece)
                wanted = wanted[:8192 * number] + piece + wanted[8192 * number + 4096:]
            for client in (one, two, third):
                same_bytes(client.read(0, MIB), wanted, "the disk, as each sees it")
        refused(t, image, "-f", "raw", says=["lock", image])
    finally:
        os.kill(pid, 15)


@cases("top.qcow2", "base.qcow2")
def test_only_raw_images_are_shared(t, image):
    make(t)
    refused(t, t.path(image), "--allow-writers", says=["--allow-writers is for raw images only", "qcow2"])


def test_backing_files_are_shared_for_reading_only(t):
    make(t)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", t.path("other.qcow2"))
    serve(t, "top.qcow2", "rw")
    serve(t, "other.qcow2", "rw")
    serve(t, "base.qcow2", "ro")
    refused(t, t.path("base.qcow2"), "-f", "qcow2", says=["lock", "base.qcow2"])


def test_locks_are_given_back(t):
    make(t)
    for _ in range(2):
        server = serve(t, "top.qcow2", "rw")
        server.stop()
    serve(t, "top.qcow2", "rw")


# Our locks as QEMU sees them.

def qemu(t, *arguments, works, image):
    done = qemu_img(*arguments, t.path(image), status=None)
    check((done.returncode == 0) == works, f"qemu-img {arguments}: {done.returncode} {done.stderr}")
    if not works:
        check("lock" in done.stderr, done.stderr)


def test_qemu_sees_a_writer(t):
    make(t)
    serve(t, "top.qcow2", "rw")
    qemu(t, "info", "-f", "qcow2", works=False, image="top.qcow2")
    qemu(t, "info", "-U", "-f", "qcow2", works=True, image="top.qcow2")
    qemu(t, "check", "-f", "qcow2", works=False, image="top.qcow2")
    qemu(t, "info", "-f", "qcow2", works=True, image="base.qcow2")


def test_qemu_sees_a_reader(t):
    make(t)
    serve(t, "top.qcow2", "ro")
    serve(t, "disk.raw", "ro")
    qemu(t, "info", "-f", "qcow2", works=True, image="top.qcow2")
    qemu(t, "snapshot", "-c", "name", works=False, image="top.qcow2")
    qemu(t, "info", "-f", "raw", works=True, image="disk.raw")


def test_qemu_sees_a_raw_writer(t):
    make(t)
    serve(t, "disk.raw", "rw")
    need("qemu-io")
    done = run("qemu-io", "-f", "raw", "-c", "write 0 512", t.path("disk.raw"), status=None)
    check(done.returncode != 0 and "lock" in done.stderr, f"QEMU wrote into our raw image: {done.stderr}")
    qemu(t, "info", "-f", "raw", works=True, image="disk.raw")


# QEMU's locks as we see them.

def qemu_holds(t, image, access):
    """A qemu-nbd that has the image open."""
    need("qemu-nbd")
    number = t.number()
    pid_file = t.path(f"qemu{number}.pid")
    image_format = "raw" if image.endswith(".raw") else "qcow2"
    run("qemu-nbd", "--fork", "-t", "-f", image_format, *(["-r"] if access == "ro" else []),
        f"--pid-file={pid_file}", "-k", t.path(f"qemu{number}.sock"), t.path(image))
    with open(pid_file, encoding="ascii") as file:
        return int(file.read())


@cases(("top.qcow2", "rw", "rw", False), ("top.qcow2", "rw", "ro", False), ("top.qcow2", "ro", "rw", False),
       ("top.qcow2", "ro", "ro", True), ("disk.raw", "rw", "rw", False), ("disk.raw", "rw", "ro", True),
       ("disk.raw", "ro", "rw", True), ("disk.raw", "ro", "ro", True))
def test_qemu_and_ours(t, image, theirs, ours, works):
    make(t)
    pid = qemu_holds(t, image, theirs)
    try:
        try:
            serve(t, image, ours)
            check(works, f"we opened {image} {ours} while QEMU has it {theirs}")
        except Refused as refusal:
            check(not works, f"we did not open {image} {ours} while QEMU has it {theirs}: {refusal.log}")
            equal(refusal.status, 1, "exit status")
            check("lock" in refusal.log and image in refusal.log, refusal.log)
    finally:
        os.kill(pid, 15)


def test_qemu_backing_file(t):
    """A backing file that QEMU has open below an overlay can be read by us, not written."""
    make(t)
    pid = qemu_holds(t, "top.qcow2", "rw")
    try:
        serve(t, "base.qcow2", "ro")
        refused(t, t.path("base.qcow2"), "-f", "qcow2", says=["lock", "base.qcow2"])
    finally:
        os.kill(pid, 15)


if __name__ == "__main__":
    main()
