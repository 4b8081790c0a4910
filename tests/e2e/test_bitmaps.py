#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps of qcow2: what we record and what QEMU records are read by both, and are the same."""
import json
import random
import signal
import struct

from evnbd_test import (KIB, MIB, SANITIZED, cases, check, digest, ended, equal, main, need, qemu_img,
                        qemu_img_check, qemu_io, read_file, refused, run, wait_for)
from nbd_raw import CMD_WRITE_ZEROES
from qcow2_file import Qcow2File
from test_contexts import extents_of, qemu_nbd
from test_qcow2_check import TOOL, our_check, set_refcount, tool

SIZE = 24 * MIB
EXT_BITMAPS = 0x23852875
IN_USE, AUTO, EXTRA_COMPATIBLE = 1, 2, 4


def create(t, cluster=64 * KIB, size=SIZE, name="disk.qcow2", options=()):
    image = t.path(name)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", *options, image, size)
    return image


def our_bitmaps(image):
    """{name: row of bitmap-list}"""
    rows = (json.loads(line) for line in tool("bitmap-list", image).stdout.splitlines())
    return {row["name"]: row for row in rows}


def qemu_bitmaps(image):
    """{name: (flags, granularity)} as qemu-img tells."""
    info = json.loads(qemu_img("info", "--output=json", image).stdout)
    bitmaps = info["format-specific"]["data"].get("bitmaps", [])
    return {bitmap["name"]: (sorted(bitmap["flags"]), bitmap["granularity"]) for bitmap in bitmaps}


def context(name):
    return f"qemu:dirty-bitmap:{name}"


def our_map(t, image, name, *options):
    server = t.serve(image, "-f", "qcow2", "-r", "-B", name, *options)
    extents = extents_of(server.uri, context(name))
    server.stop()
    return extents


def qemu_map(t, image, name):
    uri = qemu_nbd(t, image, "-f", "qcow2", "-B", name)
    pid = read_file(t.path("qemu.pid")).decode().strip()
    extents = extents_of(uri, context(name))
    wait_for(lambda: ended(pid), "the end of qemu-nbd")
    return extents


def same_maps(t, image, *names):
    for name in names:
        ours, theirs = our_map(t, image, name), qemu_map(t, image, name)
        equal(ours, theirs, f"the map of {name}, ours and qemu-nbd's")
        check(any(dirty for _, dirty in ours), f"nothing in {name} is dirty")


def client_writes(t, image, seed, *options):
    """Writes and zeroes here and there, then a clean end."""
    server = t.serve(image, "-f", "qcow2", *options)
    chance = random.Random(seed)
    with server.client() as client:
        for _ in range(40):
            length = chance.choice((512, 4096, 70000, 300000))
            offset = chance.randrange((SIZE - length) // 512) * 512
            client.write(offset, chance.randbytes(length))
        client.flush()
    server.stop()


@cases((512, 4 * KIB), (4 * KIB, 512), (64 * KIB, 64 * KIB), (64 * KIB, 512), (2 * MIB, 8 * MIB),
       sanitized=lambda cluster, _: cluster in (512, 64 * KIB))
def test_qemu_reads_what_we_record(t, cluster, granularity):
    image = create(t, cluster)
    qemu_img("bitmap", "--add", "-g", granularity, image, "theirs")
    tool("bitmap-add", image, "ours", granularity, "enabled")
    tool("bitmap-add", image, "off", granularity, "disabled")
    client_writes(t, image, cluster)
    same_maps(t, image, "theirs", "ours")
    equal(our_map(t, image, "ours"), our_map(t, image, "theirs"), "two bitmaps of the same writes")
    equal(our_map(t, image, "off"), [[SIZE, 0]], "a disabled bitmap")
    qemu_img_check(image)
    equal(our_check(image, status=0)["leaks"], 0, "leaks")


def test_zeroes_where_there_are_zeroes_are_recorded(t):
    image = create(t)
    tool("bitmap-add", image, "ours", 64 * KIB, "enabled")
    with t.serve(image, "-f", "qcow2").client() as client:
        client.command(CMD_WRITE_ZEROES, MIB, 4 * KIB)
        client.command(CMD_WRITE_ZEROES, 2 * MIB, 128 * KIB)
    t.stop_servers()
    ours = our_map(t, image, "ours")
    tool("bitmap-remove", image, "ours")
    qemu_img("bitmap", "--add", "-g", 64 * KIB, image, "theirs")
    qemu_io(image, "write -z 1M 4k", "write -z 2M 128k")
    equal(ours, our_map(t, image, "theirs"), "what is dirty")


@cases((512, 4 * KIB), (4 * KIB, 512), (64 * KIB, 64 * KIB), (64 * KIB, 512), (2 * MIB, 8 * MIB),
       sanitized=lambda cluster, _: cluster in (512, 64 * KIB))
def test_we_read_what_qemu_records(t, cluster, granularity):
    image = create(t, cluster)
    tool("bitmap-add", image, "ours", granularity, "enabled")
    qemu_img("bitmap", "--add", "-g", granularity, image, "theirs")
    chance = random.Random(cluster)
    offsets = [chance.randrange(SIZE // 512 - 200) * 512 for _ in range(30)]
    qemu_io(image, *(f"write {offset} 100k" for offset in offsets), "write -z 1M 512k",
            "discard 5M 1M", arguments=("-f", "qcow2", "-d", "unmap"))
    same_maps(t, image, "theirs", "ours")
    client_writes(t, image, 5)
    same_maps(t, image, "theirs", "ours")
    qemu_img_check(image)


def test_changes_like_qemu_img(t):
    """The same changes of two images, one by us and one by QEMU."""
    ours, theirs = create(t, name="ours.qcow2"), create(t, name="theirs.qcow2")

    def both(our_words, their_words):
        tool(our_words[0], ours, *our_words[1:])
        qemu_img("bitmap", *their_words[:-1], theirs, their_words[-1])
        equal(qemu_bitmaps(ours), qemu_bitmaps(theirs), f"bitmaps after {our_words}")
        qemu_img_check(ours)

    def write(command):
        for image in (ours, theirs):
            qemu_io(image, command, arguments=("-f", "qcow2"))

    both(("bitmap-add", "a", 0, "enabled"), ("--add", "a"))
    both(("bitmap-add", "b", 4096, "disabled"), ("--add", "--disable", "-g", "4k", "b"))
    write("write 1M 100k")
    both(("bitmap-enable", "b"), ("--enable", "b"))
    write("write 7M 5000")
    both(("bitmap-disable", "a"), ("--disable", "a"))
    write("write 9M 5000")
    both(("bitmap-add", "sum", 512, "disabled"), ("--add", "--disable", "-g", "512", "sum"))
    both(("bitmap-merge", "a", "sum"), ("--merge", "a", "sum"))
    both(("bitmap-merge", "b", "sum"), ("--merge", "b", "sum"))
    both(("bitmap-merge", "sum", "a"), ("--merge", "sum", "a"))
    for name in ("a", "b", "sum"):
        equal(our_map(t, ours, name), our_map(t, theirs, name), f"the map of {name}")
        same_maps(t, ours, name)
    both(("bitmap-clear", "sum"), ("--clear", "sum"))
    equal(qemu_map(t, ours, "sum"), [[SIZE, 0]], "what was cleared")
    both(("bitmap-remove", "a"), ("--remove", "a"))
    both(("bitmap-remove", "sum"), ("--remove", "sum"))
    same_maps(t, ours, "b")
    both(("bitmap-remove", "b"), ("--remove", "b"))
    equal(our_bitmaps(ours), {}, "bitmaps")


def test_names(t):
    image = create(t)
    names = ["n" * 1023, "d\u00e9j\u00e0 vu, with blanks", "x"]
    for name in names:
        tool("bitmap-add", image, name, 0, "enabled")
    equal(set(qemu_bitmaps(image)), set(names), "names")
    for name in names[:2]:
        equal(our_map(t, image, name), [[SIZE, 0]], "a map")


def test_header_with_a_backing_file(t):
    """The name of the backing file is moved out of the way, and stays what it was."""
    base = create(t, name="base.qcow2")
    qemu_io(base, "write -P 5 0 1M", arguments=("-f", "qcow2"))
    for cluster in (512, 64 * KIB):
        image = create(t, cluster, name=f"top{cluster}.qcow2", options=("-b", base, "-F", "qcow2"))
        tool("bitmap-add", image, "a", 0, "enabled")
        tool("bitmap-add", image, "b", 0, "enabled")
        equal(json.loads(qemu_img("info", "--output=json", image).stdout)["backing-filename"], base,
              "the backing file")
        qemu_io(image, "read -P 5 0 1M", "write 2M 64k", arguments=("-f", "qcow2"))
        same_maps(t, image, "a", "b")
        qemu_img_check(image)


def test_is_seen_at_once(t):
    """While clients write, and until the bitmap is saved, the map is what was written."""
    image = create(t)
    tool("bitmap-add", image, "live", 4096, "enabled")
    server = t.serve(image, "-f", "qcow2", "-B", "live", "-e", "2")
    equal(extents_of(server.uri, context("live")), [[SIZE, 0]], "before")
    with server.client() as client:
        client.write(MIB, b"x" * 5000)
        equal(extents_of(server.uri, context("live")), [[MIB, 0], [8192, 1], [SIZE - MIB - 8192, 0]],
              "after the write")
    server.stop()
    same_maps(t, image, "live")


def test_killed(t):
    """Nobody takes a bitmap for good that was not saved; it can only be removed."""
    image = create(t)
    tool("bitmap-add", image, "a", 0, "enabled")
    tool("bitmap-add", image, "b", 0, "enabled")
    tool("bitmap-add", image, "off", 0, "disabled")
    server = t.serve(image, "-f", "qcow2")
    with server.client() as client:
        client.write(0, b"x" * 512)
        client.flush()
        server.kill()
    t.servers.clear()
    flags = {name: flags for name, (flags, _) in qemu_bitmaps(image).items()}
    equal(flags, {"a": ["auto", "in-use"], "b": ["auto", "in-use"], "off": []}, "flags")
    check("inconsistent" in our_bitmaps(image)["a"]["unusable"], our_bitmaps(image))
    need("qemu-nbd")
    done = run("qemu-nbd", "-r", "-f", "qcow2", "-B", "a", "-k", t.path("q.sock"), image, status=1)
    check("inconsistent" in done.stderr, done.stderr)
    refused(t, image, "-f", "qcow2", "-r", "-B", "a", says=["Bitmap 'a'.*inconsistent"])
    check("inconsistent" in tool("bitmap-clear", image, "a", status=1).stderr, "clearing was refused")
    client_writes(t, image, 1)
    equal(our_map(t, image, "off"), [[SIZE, 0]], "the map of the bitmap that was off")
    tool("bitmap-remove", image, "a")
    qemu_img("bitmap", "--remove", image, "b")
    equal(list(qemu_bitmaps(image)), ["off"], "bitmaps")
    qemu_img_check(image)


def test_left_in_use_by_qemu(t):
    image = create(t)
    qemu_img("bitmap", "--add", image, "a")
    need("qemu-io")
    run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", f"sigraise {int(signal.SIGKILL)}", image,
        status=-signal.SIGKILL)
    check("inconsistent" in our_bitmaps(image)["a"]["unusable"], our_bitmaps(image))
    client_writes(t, image, 1)
    equal(qemu_bitmaps(image)["a"][0], ["auto", "in-use"], "flags")
    tool("bitmap-remove", image, "a")
    qemu_img_check(image)


def test_reading_changes_nothing(t):
    image = create(t)
    tool("bitmap-add", image, "a", 0, "enabled")
    client_writes(t, image, 1)
    before = digest(image)
    our_map(t, image, "a")
    server = t.serve(image, "-f", "qcow2", "-B", "a")
    with server.client() as client:
        client.read(0, MIB)
        client.flush()
    server.stop()
    equal(digest(image), before, "the image")


@cases(("ours", 64 * KIB), ("theirs", 64 * KIB), ("ours", 512), ("theirs", 4 * KIB),
       sanitized=lambda maker, cluster: (maker == "ours") == (cluster == 512))
def test_snapshots(t, maker, cluster):
    """To apply a snapshot makes all of an enabled bitmap dirty, as qemu-nbd sees it, and nothing leaks."""
    image = create(t, cluster)
    for name, words in (("on", ()), ("off", ("--disable",))):
        qemu_img("bitmap", "--add", *words, "-f", "qcow2", image, name)
    client_writes(t, image, 1)
    if maker == "ours":
        tool("snapshot-create", image, "kept")
    else:
        qemu_img("snapshot", "-c", "kept", image)
    same_maps(t, image, "on")
    tool("bitmap-clear", image, "on")
    client_writes(t, image, 2)
    before = our_map(t, image, "on")
    check(any(not dirty for _, dirty in before), "everything is dirty before")
    tool("snapshot-apply", image, "kept")
    equal(qemu_map(t, image, "on"), [[SIZE, 1]], "the map of the bitmap that records")
    equal(qemu_map(t, image, "off"), [[SIZE, 0]], "the map of the other one")
    same_maps(t, image, "on")
    client_writes(t, image, 3)
    tool("snapshot-delete", image, "kept")
    check(qemu_bitmaps(image)["on"][0] == ["auto"], "the bitmap is not in order")
    qemu_img_check(image)
    our_check(image, status=0)


@cases(SIZE // 2, 3 * SIZE)
def test_snapshots_of_other_sizes(t, size):
    """Bitmaps get the size of the disk that is applied, where QEMU refuses; those that record are dirty."""
    image = create(t, 4 * KIB)
    tool("snapshot-create", image, "other")
    qemu_img("resize", "-q", "-f", "qcow2", "--shrink", image, size)
    for name, words in (("on", ()), ("off", ("--disable",))):
        qemu_img("bitmap", "--add", *words, "-g", "512", "-f", "qcow2", image, name)
    refused(t, image, "-f", "qcow2", "-l", "other", "-B", "on", says=["not about its snapshots"])
    tool("snapshot-apply", image, "other")
    equal(json.loads(qemu_img("info", "--output=json", image).stdout)["virtual-size"], SIZE, "size")
    equal(qemu_map(t, image, "on"), [[SIZE, 1]], "the map of the bitmap that records")
    equal(qemu_map(t, image, "off"), [[SIZE, 0]], "the map of the other one")
    same_maps(t, image, "on")
    client_writes(t, image, 3)
    qemu_img_check(image)
    our_check(image, status=0)


@cases((512, 512), (4 * KIB, 512), (64 * KIB, 64 * KIB))
def test_resized(t, cluster, granularity):
    """What is added is clean and what is cut off is forgotten, as qemu-img does it."""
    images = ours, theirs = [create(t, cluster, name=name) for name in ("ours.qcow2", "theirs.qcow2")]
    for image in images:
        for name, words in (("on", ()), ("off", ("--disable",))):
            qemu_img("bitmap", "--add", *words, "-g", granularity, "-f", "qcow2", image, name)
    size = SIZE
    for step, after in enumerate((3 * SIZE, SIZE + 1536, SIZE // 2 + 512, 2 * SIZE, 2 * SIZE - 512)):
        for image in images:
            qemu_io(image, f"write {size - 70000} 70000", arguments=("-f", "qcow2"))
            qemu_io(image, f"write {step * 100}k 10k", arguments=("-f", "qcow2"))
            qemu_img("bitmap", "--merge", "on", "-f", "qcow2", image, "off")
        tool("resize", ours, "qcow2", after, "shrink" if after < size else "off")
        qemu_img("resize", "-q", "-f", "qcow2", *(["--shrink"] if after < size else []), theirs, after)
        size = after
        for name in ("on", "off"):
            equal(our_map(t, ours, name), qemu_map(t, theirs, name), f"map of {name} with {size} bytes")
        same_maps(t, ours, "on", "off")
        check(qemu_bitmaps(ours)["on"][0] == ["auto"], "the bitmap is not in order")
        qemu_img_check(ours)
        our_check(ours, status=0)


def test_resize_refused(t):
    """A bitmap that is not understood keeps its size, so the disk must."""
    image = create(t)
    qemu_img("bitmap", "--add", "-f", "qcow2", image, "on")
    directory = Directory(image)
    directory.put(16, ">B", 7)  # the type
    directory.file.save(image)
    before = digest(image)
    done = tool("resize", image, "qcow2", 2 * SIZE, "off", status=1)
    check("bitmap 'on', which cannot be resized" in done.stderr, done.stderr)
    equal(digest(image), before, "hash of the image")


def test_in_the_backing_chain(t):
    base = create(t, name="base.qcow2")
    qemu_img("bitmap", "--add", base, "below")
    qemu_img("bitmap", "--add", base, "both")
    qemu_io(base, "write 1M 64k", arguments=("-f", "qcow2"))
    image = create(t, name="top.qcow2", options=("-b", base, "-F", "qcow2"))
    qemu_img("bitmap", "--add", image, "both")
    qemu_io(image, "write 2M 64k", arguments=("-f", "qcow2"))
    before = digest(base)
    same_maps(t, image, "below", "both")
    client_writes(t, image, 1, "-B", "below", "-B", "both")
    equal(digest(base), before, "the backing file")
    refused(t, image, "-f", "qcow2", "-B", "none", says=[
        "Bitmap 'none' is not found; '.*top.qcow2' and its backing files have: 'both', 'below', 'both'$"])
    refused(t, image, "-f", "qcow2", "-B", "both", "-B", "both", says=["more than once"])


def test_behind_an_offset(t):
    """What is written through --offset is recorded where it lies in the image."""
    image = create(t)
    tool("bitmap-add", image, "a", 65536, "enabled")
    server = t.serve(image, "-f", "qcow2", "-o", 65536)
    with server.client() as client:
        client.write(65536, b"x" * 512)
    server.stop()
    equal(our_map(t, image, "a"), [[131072, 0], [65536, 1], [SIZE - 196608, 0]], "the map")


# Damages to the directory of an image with bitmaps 'one' and 'two', of which there is data.

class Directory:
    def __init__(self, image):
        self.file = Qcow2File(image)
        self.extension = self.file.extension(EXT_BITMAPS) + 8
        self.at = self.file.u64(self.extension + 16)
        self.size = self.file.u64(self.extension + 8)

    def put(self, at, layout, value):
        struct.pack_into(layout, self.file.data, self.at + at, value)

    def table(self):
        return self.file.u64(self.at)


def leftover(d):
    d.file.set_u64(d.extension + 8, d.size + 16)
    d.file.data.extend(bytes(4096))


ROWS = {  # name: (damage, bitmap 'one' afterwards, whether the image can be written)
    "B19-bit-without-extension": (lambda d: d.file.data.__setitem__(
        slice(d.extension - 8, d.extension), bytes(8)), None, None),
    "B19-extension-without-bit": (lambda d: d.file.set("autoclear", 0), "gone", True),
    "B41-directory-size-0": (lambda d: d.file.set_u64(d.extension + 8, 0), None, None),
    "B41-directory-size-2^64-1": (lambda d: d.file.set_u64(d.extension + 8, 2**64 - 1), None, None),
    "B41-directory-cut": (lambda d: d.file.set_u64(d.extension + 8, d.size - 8), "gone", False),
    "B41-stale-bytes-behind": (leftover, "good", True),
    "B41-directory-beyond": (lambda d: d.file.set_u64(d.extension + 16, 1 << 40), "gone", False),
    "B41-count-too-high": (lambda d: struct.pack_into(">I", d.file.data, d.extension, 3), "gone", False),
    "B41-name-0": (lambda d: d.put(18, ">H", 0), "unnamed", True),
    "B41-name-65535": (lambda d: d.put(18, ">H", 65535), "gone", False),
    "B41-extra-2^32-1": (lambda d: d.put(20, ">I", 2**32 - 1), "gone", False),
    "B41-granularity-0": (lambda d: d.put(17, ">B", 0), "granularity", True),
    "B41-granularity-8": (lambda d: d.put(17, ">B", 8), "granularity", True),
    "B41-granularity-32": (lambda d: d.put(17, ">B", 32), "granularity", True),
    "B41-granularity-63": (lambda d: d.put(17, ">B", 63), "granularity", True),
    "B41-table-size-wraps": (lambda d: d.put(8, ">I", 1 << 29), "does not fit", True),
    "B41-table-size-0": (lambda d: d.put(8, ">I", 0), "does not fit", True),
    "B41-table-beyond": (lambda d: d.put(0, ">Q", 1 << 40), "not within the file", True),
    "B41-table-not-aligned": (lambda d: d.put(0, ">Q", d.table() + 512), "not within the file", True),
    "B41-flags-reserved": (lambda d: d.put(12, ">I", 8 | AUTO), "flags that are not known", True),
    "B41-duplicate-names": (lambda d: d.put(24, ">3s", b"two"), None, True),
    "B41-type-2": (lambda d: d.put(16, ">B", 2), "type that is not known", True),
    "B42-in-use": (lambda d: d.put(12, ">I", IN_USE | AUTO), "inconsistent", True),
    "B42-bit-0-with-offset": (lambda d: d.file.set_u64(d.table(), d.file.u64(d.table()) | 1),
                              "its table is broken", True),
    "B42-data-beyond": (lambda d: d.file.set_u64(d.table(), 1 << 40), "its table is broken", True),
    "B42-data-is-l1": (lambda d: d.file.set_u64(d.table(), d.file.get("l1_offset")), "overlaps", True),
    "B42-table-is-refcount-table": (lambda d: d.put(0, ">Q", d.file.reftable_at()), "overlaps", True),
    "B29-directory-is-l1": (lambda d: d.file.set_u64(d.extension + 16, d.file.get("l1_offset")),
                            "unnamed", False),
}


def damaged(t, name):
    image = create(t, 4 * KIB, size=4 * MIB)
    for bitmap in ("one", "two"):
        qemu_img("bitmap", "--add", "-g", "512", image, bitmap)
    qemu_io(image, "write -P 3 1M 64k", arguments=("-f", "qcow2"))
    directory = Directory(image)
    ROWS[name][0](directory)
    return directory.file.save(image)


def check_listed(image, name, wanted):
    found = our_bitmaps(image)
    if wanted == "gone":
        equal(found, {}, f"{name}: bitmaps")
    elif wanted == "good":
        equal(found["one"]["unusable"], "", f"{name}: what is said of 'one'")
        equal(found["one"]["dirty"], [[MIB, 64 * KIB]], f"{name}: the bits of 'one'")
    elif wanted == "unnamed":
        check(found[""]["unusable"], found)
    elif wanted:
        # Overlaps are looked for when the image is to be written.
        said = found["one"]["unusable"]
        check(wanted in said or wanted == "overlaps", f"{name}: {said}")


@cases(*ROWS)
def test_hostile(t, name):
    """Read-only the disk is there; for writing it is refused, or what is written is recorded or said
    to be inconsistent; nothing but the bitmaps is ever harmed."""
    _, wanted, writable = ROWS[name]
    image = damaged(t, name)
    if writable is None:
        refused(t, image, "-f", "qcow2", "-r", says=["bitmap"])
        return
    check_listed(image, name, wanted)
    with t.serve(image, "-f", "qcow2", "-r").client() as client:
        equal(client.read(MIB, 64 * KIB), b"\3" * 64 * KIB, "the data")
    t.stop_servers()
    if not writable:
        refused(t, image, "-f", "qcow2", says=["bitmap.*read-only, or repair it"])
    else:
        with t.serve(image, "-f", "qcow2", unix=t.path("rw.sock")).client() as client:
            client.write(2 * MIB, b"\4" * 4096)
            client.flush()
        t.stop_servers()
        for row in our_bitmaps(image).values():
            check(row["unusable"] or [2 * MIB, 4096] in row["dirty"], f"{name}: {row} after a write")
    repair(t, image)


def repair(t, image):
    """What is left is sound for us and for QEMU, unless it has what nobody knows."""
    done = tool("repair", image, "all", status=None)
    equal(done.returncode, 0, f"status of the repair ({done.stderr})")
    equal(our_check(image, status=0)["corruptions"], 0, "corruptions")
    with t.serve(image, "-f", "qcow2", unix=t.path("repaired.sock")).client() as client:
        equal(client.read(MIB, 64 * KIB), b"\3" * 64 * KIB, "the data")
    t.stop_servers()
    if not any("not known" in row["unusable"] for row in our_bitmaps(image).values()):
        qemu_img_check(image)


def test_as_many_as_can_be(t):
    """65535 enabled bitmaps that share one table, within 256 MiB of address space and a minute."""
    need("prlimit")
    image = create(t, 4 * KIB, size=4 * MIB)
    tool("bitmap-add", image, "one", 512, "enabled")
    d = Directory(image)
    entries = b"".join(struct.pack(">QIIBBHI8s", d.table(), 1, AUTO, 1, 9, 8, 0, b"%08x" % number)
                       for number in range(65535))
    d.file.data.extend(bytes(-len(d.file.data) % (4 * KIB)))
    at = len(d.file.data)
    d.file.data.extend(entries)
    for host in range(at, len(d.file.data), 4 * KIB):
        set_refcount(d.file, host, 1)
    struct.pack_into(">IIQQ", d.file.data, d.extension, 65535, 0, len(entries), at)
    d.file.save(image)
    limits = [] if SANITIZED else [f"--as={256 * MIB}"]
    run("prlimit", "--cpu=60", *limits, TOOL, "write", image, 0, 512, 7)
    rows = run("prlimit", "--cpu=60", *limits, TOOL, "bitmap-list", image).stdout.splitlines()
    equal(len(rows), 65535, "bitmaps")
    unusable = [bool(json.loads(row)["unusable"]) for row in rows]
    equal((unusable[0], all(unusable[1:])), (False, True), "which are unusable")
    equal(json.loads(rows[0])["dirty"], [[0, 512]], "the bits of the first")
    done = run("prlimit", "--cpu=60", *limits, TOOL, "bitmap-add", image, "more", 0, "enabled", status=1)
    check("can have no more" in done.stderr, done.stderr)


@cases("kept", "incompatible")
def test_extra_data(t, kind):
    """Extra data stays what it is; where it had to be understood the bitmap is not used."""
    image = create(t, 4 * KIB, size=4 * MIB)
    tool("bitmap-add", image, "one", 512, "enabled")
    d = Directory(image)
    entry = bytes(d.file.data[d.at:d.at + 24]) + b"extra---" + b"one" + bytes(5)
    d.file.data[d.at:d.at + len(entry)] = entry
    d.put(20, ">I", 8)
    d.put(12, ">I", AUTO | (EXTRA_COMPATIBLE if kind == "kept" else 0))
    d.file.set_u64(d.extension + 8, len(entry))
    d.file.save(image)
    with t.serve(image, "-f", "qcow2").client() as client:
        client.write(MIB, b"x" * 512)
    t.stop_servers()
    one = our_bitmaps(image)["one"]
    if kind == "kept":
        equal(one["dirty"], [[MIB, 512]], "the bits")
    else:
        check("extra data" in one["unusable"], one)
        equal(Directory(image).file.data[d.at + 15], AUTO | IN_USE, "the flags")
    before = Directory(image).at
    tool("bitmap-add", image, "two", 512, "enabled")
    d = Directory(image)
    check(d.at != before, "the directory did not move")
    equal(bytes(d.file.data[d.at + 24:d.at + 35]), b"extra---one", "extra data and name")


if __name__ == "__main__":
    main()
