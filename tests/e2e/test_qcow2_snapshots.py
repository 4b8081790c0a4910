#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Internal snapshots of qcow2: made, listed, applied, deleted and exported by us and by QEMU."""
import json
import os
import random
import struct

from evnbd_test import (HELPERS, KIB, MIB, SANITIZER, cases, check, digest, equal, main, qemu_img,
                        qemu_img_check, qemu_io, read_file, refused, run, same_bytes)
from nbd_raw import FLAG_READ_ONLY
from qcow2_file import OFFSET_MASK, Qcow2File

TOOL = os.path.join(HELPERS, "..", "tools", "qcow2_tool")
SIZE = 3 * MIB
KINDS = (("compat=1.1,cluster_size=4k",), ("compat=1.1,cluster_size=64k",),
         ("compat=1.1,cluster_size=512",), ("compat=0.10,cluster_size=4k",), ("compat=0.10",),
         ("refcount_bits=64,cluster_size=512",), ("refcount_bits=8,cluster_size=2M",))
QCOW2 = ("-f", "qcow2")


def tool(*words, status=0):
    done = run(TOOL, *words, status=None)
    check(not SANITIZER.search(done.stderr), done.stderr)
    check(done.returncode == status, f"{words}: status {done.returncode}: {done.stderr}")
    return done


def our_list(image):
    return [json.loads(line) for line in tool("snapshot-list", image).stdout.splitlines()]


def their_list(image):
    return json.loads(qemu_img("info", *QCOW2, "--output=json", image).stdout).get("snapshots", [])


def compare_lists(image):
    ours, theirs = our_list(image), their_list(image)
    for row in theirs:
        row["vm-clock-nsec"] += row.pop("vm-clock-sec") * 1000000000
        row.setdefault("icount", -1)
    for row in ours:
        del row["disk-size"]
    equal(ours, theirs, "our list of snapshots and qemu-img's")


def make(t, options, name="disk.qcow2", size=SIZE):
    image = t.path(name)
    qemu_img("create", "-q", *QCOW2, "-o", options, image, size)
    return image


def guest(t, image, snapshot=None):
    path = t.path("guest.raw")
    qemu_img("convert", *QCOW2, *(["-l", f"snapshot.name={snapshot}"] if snapshot else []), "-O", "raw", image, path)
    return read_file(path)


def fill(image, model, rng):
    """Data, compressed clusters and zeroes; `model` follows."""
    commands = []
    for _ in range(4):
        at, length = rng.randrange(0, len(model) - 200 * KIB) // 512 * 512, rng.randrange(1, 300) * 512
        byte = rng.randrange(1, 255)
        commands.append(f"write -P {byte} {at} {length}")
        model[at:at + length] = bytes([byte]) * length
    at = rng.randrange(0, len(model) // (64 * KIB)) * 64 * KIB
    commands.append(f"write -z {at} 64k")
    model[at:at + 64 * KIB] = bytes(64 * KIB)
    qemu_io(image, *commands, arguments=QCOW2)


def pack(image, model):
    qemu_io(image, "write -c -P 88 2M 64k", "write -c -P 89 2112k 64k", arguments=QCOW2)
    model[2 * MIB:2 * MIB + 128 * KIB] = b"\x58" * (64 * KIB) + b"\x59" * (64 * KIB)


def ours(verb):
    words = {"-c": "snapshot-create", "-a": "snapshot-apply", "-d": "snapshot-delete"}[verb]
    return lambda image, name: tool(words, image, name if verb == "-c" else f"snapshot.name={name}")


def theirs(verb):
    return lambda image, name: qemu_img("snapshot", verb, name, image)


def check_all(t, image, model, kept):
    qemu_img_check(image)
    equal(tool("check", image).stderr, "", "findings of our check")
    compare_lists(image)
    same_bytes(guest(t, image), bytes(model), "the disk")
    for name, data in kept.items():
        same_bytes(guest(t, image, name), data, f"snapshot {name}")


def series(t, options, hands, seed):
    """A series of verbs, each done by one of `hands`, against a model."""
    rng = random.Random(seed)
    image, model, kept = make(t, options), bytearray(SIZE), {}
    if "cluster_size=2M" not in options:
        pack(image, model)
    for number in range(14):
        hand = rng.choice(hands)
        verb = rng.choice(("fill", "fill", "-c", "-c", "-a", "-d"))
        name = rng.choice(list(kept)) if kept else None
        if verb == "fill":
            fill(image, model, rng)
        elif verb == "-c":
            name = f"s{number}"
            hand("-c")(image, name)
            kept[name] = bytes(model)
        elif name:
            hand(verb)(image, name)
            if verb == "-a":
                model[:] = kept[name]
            else:
                del kept[name]
        check_all(t, image, model, kept)
    for name in list(kept):
        hands[0]("-d")(image, name)
        del kept[name]
        check_all(t, image, model, kept)


@cases(*((*kind, seed) for kind in KINDS for seed in (1, 2)),
       sanitized=lambda options, seed: seed == 1 and "refcount_bits=64" not in options)
def test_ours_alone(t, options, seed):
    series(t, options, (ours,), seed)


@cases(*((*kind, seed) for kind in KINDS for seed in (3, 4)),
       sanitized=lambda options, seed: seed == 3 and options in (KINDS[0][0], KINDS[2][0], KINDS[6][0]))
def test_ours_and_theirs(t, options, seed):
    series(t, options, (ours, theirs), seed)


def test_backing(t):
    base = t.file("base.raw", bytes(range(256)) * (SIZE // 256))
    image = t.path("disk.qcow2")
    qemu_img("create", "-q", *QCOW2, "-b", base, "-F", "raw", image)
    before = guest(t, image)
    tool("snapshot-create", image, "one")
    qemu_io(image, "write -P 7 100k 1M", "write -z 2M 500k", arguments=QCOW2)
    same_bytes(guest(t, image, "one"), before, "the snapshot")
    tool("snapshot-apply", image, "one")
    same_bytes(guest(t, image), before, "the disk")
    qemu_img_check(image)


def test_ids(t):
    """The next id is one above the highest; an id is preferred to a name, and need not be unique."""
    image = make(t, "cluster_size=64k")
    for name in ("x", "1", "y", "y"):
        tool("snapshot-create", image, name)
    equal([(row["id"], row["name"]) for row in our_list(image)],
          [("1", "x"), ("2", "1"), ("3", "y"), ("4", "y")], "ids and names")
    tool("snapshot-delete", image, "2")
    tool("snapshot-delete", image, "snapshot.id=3,snapshot.name=y")
    tool("snapshot-create", image, "z")
    equal([row["id"] for row in our_list(image)], ["1", "4", "5"], "ids")
    tool("snapshot-delete", image, "1")
    equal([row["name"] for row in our_list(image)], ["y", "z"], "names")
    for choice in ("nosuch", "snapshot.id=y", "snapshot.name=4", "snapshot.id=4,snapshot.name=z", ""):
        done = tool("snapshot-apply", image, choice, status=1)
        check("Can't find snapshot" in done.stderr and "2 snapshots" in done.stderr, done.stderr)
    for choice in ("snapshot.foo=1", "snapshot.", "snapshot.id"):
        tool("snapshot-delete", image, choice, status=1)
    qemu_img_check(image)


@cases("refcount_bits=1", "refcount_bits=2")
def test_refcounts_too_narrow(t, options):
    image = make(t, options + ",cluster_size=4k")
    model = bytearray(SIZE)
    qemu_io(image, "write -P 1 0 1M", arguments=QCOW2)
    model[:MIB] = b"\x01" * MIB
    possible = {"refcount_bits=1": 0, "refcount_bits=2": 2}[options]
    for number in range(possible):
        tool("snapshot-create", image, str(number))
    before = digest(image)
    done = tool("snapshot-create", image, "more", status=1)
    check("refcounts of" in done.stderr and "bits" in done.stderr, done.stderr)
    equal(digest(image), before, "hash of the image")
    check_all(t, image, model, {})
    if possible:
        tool("snapshot-apply", image, "0", status=1)
        equal(digest(image), before, "hash of the image")


def test_sizes(t):
    """A snapshot has the size that the disk had."""
    image, model = make(t, "cluster_size=512"), bytearray(SIZE)
    fill(image, model, random.Random(1))
    tool("snapshot-create", image, "small")
    small = bytes(model)
    qemu_img("resize", "-q", *QCOW2, image, 40 * MIB)
    qemu_io(image, "write -P 3 30M 1M", "write -P 4 0 1M", arguments=QCOW2)
    tool("snapshot-create", image, "large")
    large = guest(t, image)
    equal([row["disk-size"] for row in our_list(image)], [SIZE, 40 * MIB], "sizes of the disk")
    for name, data in (("small", small), ("large", large)):
        with t.serve(image, *QCOW2, "-l", name).client() as client:
            same_bytes(client.read_all(), data, f"the export of {name}")
        t.stop_servers()
    for name, data in (("small", small), ("large", large), ("small", small)):
        tool("snapshot-apply", image, name)
        same_bytes(guest(t, image), data, f"the disk after {name} was applied")
        qemu_img_check(image)
        tool("check", image)


def test_vm_state(t):
    """What a machine's snapshot has besides is kept: sizes, clock, unknown extra data."""
    image = make(t, "cluster_size=4k")
    qemu_io(image, "write -P 1 0 64k", arguments=QCOW2)
    qemu_img("snapshot", "-c", "machine", image)
    tool("snapshot-create", image, "other")
    file = Qcow2File(image)
    at = file.get("snapshots_offset")
    entry = bytearray(file.data[at:at + 40])
    struct.pack_into(">IIQII", entry, 16, 1234, 5678, 99_000_000_123, 0, 32)
    entry += struct.pack(">QQQQ", 1 << 40, SIZE, 4711, 0xABCDEF) + b"1machine"
    other = file.data[at + 72:at + 144]
    file.data[at:at + 80 + 72] = entry + other
    file.save(image)
    equal(our_list(image)[0], {"id": "1", "name": "machine", "vm-state-size": 1 << 40, "date-sec": 1234,
                               "date-nsec": 5678, "vm-clock-nsec": 99_000_000_123, "icount": 4711,
                               "disk-size": SIZE}, "the machine's snapshot")
    compare_lists(image)
    tool("snapshot-create", image, "third")
    tool("snapshot-delete", image, "other")
    file = Qcow2File(image)
    at = file.get("snapshots_offset")
    same_bytes(bytes(file.data[at + 12:at + 80]), bytes(entry[12:]), "the entry in the new table")
    qemu_img_check(image)


def test_many(t):
    """A table of many clusters."""
    image = make(t, "cluster_size=512,refcount_bits=64", size=200 * KIB)
    qemu_io(image, "write -P 1 0 100k", arguments=QCOW2)
    names = [f"{number:03}" + "n" * 200 for number in range(60)]
    for name in names:
        tool("snapshot-create", image, name)
    equal([row["name"] for row in our_list(image)], names, "names")
    compare_lists(image)
    qemu_img_check(image)
    for name in names[10:50]:
        tool("snapshot-delete", image, f"snapshot.name={name}")
    equal([row["name"] for row in our_list(image)], names[:10] + names[50:], "names")
    qemu_img_check(image)
    done = tool("snapshot-create", image, "n" * 256, status=1)
    check("at most 255" in done.stderr, done.stderr)


def test_large_tables(t):
    """L1 tables of many clusters, for which no refcount block has room."""
    image = make(t, "cluster_size=512,refcount_bits=64", size="4G")
    qemu_io(image, "write -P 1 0 100k", "write -P 2 3G 100k", arguments=QCOW2)
    for name in "abc":
        tool("snapshot-create", image, name)
        qemu_io(image, "write -P 3 3G 50k", arguments=QCOW2)
        qemu_img_check(image)
    tool("snapshot-apply", image, "a")
    qemu_io(image, "read -P 1 0 100k", "read -P 2 3G 100k", arguments=QCOW2)
    for name in "bac":
        tool("snapshot-delete", image, name)
        qemu_img_check(image)
    tool("check", image)


def test_refused(t):
    raw = t.file("disk.raw", bytes(MIB))
    image = make(t, "cluster_size=64k,data_file=" + t.path("data.raw"))
    tool("snapshot-create", image, "x", status=1)
    refused(t, raw, "-f", "raw", "-l", "x", says=["Failed to load snapshot: .*raw"])


@cases(0, 8, 15)
def test_incomplete_entries(t, length):
    """Entries that do not tell the size of the disk, as version 3 wants: a repair completes them."""
    image, model = make(t, "cluster_size=4k"), bytearray(SIZE)
    fill(image, model, random.Random(length))
    qemu_img("snapshot", "-c", "first", image)
    qemu_img("snapshot", "-c", "second", image)
    before = [(row["id"], row["name"], row["date-nsec"]) for row in our_list(image)]
    file = Qcow2File(image)
    at = table_at(file)
    for entry in (at, at + 72):  # 40 bytes, 24 of extra data, id and name
        start = at if entry == at else at + (40 + length + 6 + 7) // 8 * 8
        name = bytes(file.data[entry + 64:entry + 64 + 7])
        file.data[start:start + 40 + length] = file.data[entry:entry + 40 + length]
        struct.pack_into(">I", file.data, start + 36, length)
        file.data[start + 40 + length:start + 40 + length + 7] = name
    file.save(image)
    equal(json.loads(run(TOOL, "check", image, status=2).stdout)["corruptions"], 2, "corruptions")
    equal(json.loads(tool("repair", image, "all").stdout)["corruptions-fixed"], 2, "repaired")
    equal([(row["id"], row["name"], row["date-nsec"]) for row in our_list(image)], before, "the list")
    check_all(t, image, model, {"first": bytes(model), "second": bytes(model)})


# What broken and hostile tables do: refused, nothing is changed (but for the corrupt bit).

def l1_of_snapshot(file):
    return file.u64(file.get("snapshots_offset"))


def table_at(file):
    return file.get("snapshots_offset")


def count_too_large(file):
    file.set("snapshots", 65537)


def count_huge(file):
    file.set("snapshots", 0xFFFFFFFF)


def count_past_table(file):
    file.set("snapshots", 40000)


def table_beyond(file):
    file.set("snapshots_offset", 1 << 40)


def table_unaligned(file):
    file.set("snapshots_offset", table_at(file) + 8)


def id_too_long(file):
    struct.pack_into(">H", file.data, table_at(file) + 12, 65535)


def name_too_long(file):
    struct.pack_into(">H", file.data, table_at(file) + 14, 65535)


def extra_huge(file):
    struct.pack_into(">I", file.data, table_at(file) + 36, 0xFFFFFFFF)


def l1_huge(file):
    struct.pack_into(">I", file.data, table_at(file) + 8, 0xFFFFFFFF)


def l1_unaligned(file):
    file.set_u64(table_at(file), l1_of_snapshot(file) + 512)


def l1_far(file):
    file.set_u64(table_at(file), 1 << 60)


def l1_beyond(file):
    file.set_u64(table_at(file), 1 << 40)


def l1_longer(file):
    struct.pack_into(">I", file.data, table_at(file) + 8, 4 << 20)


def l1_is_active(file):
    file.set_u64(table_at(file), file.get("l1_offset"))


def l1_is_header(file):
    file.set_u64(table_at(file), 0)


def l1_is_reftable(file):
    file.set_u64(table_at(file), file.get("reftable_offset"))


def l1_entry_broken(file):
    file.set_u64(l1_of_snapshot(file), 0x7F00000000000123)


def l1_entry_beyond(file):
    file.set_u64(l1_of_snapshot(file), 1 << 50)


def l1_entry_on_reftable(file):
    file.set_u64(l1_of_snapshot(file), file.get("reftable_offset"))


def l1_entry_on_itself(file):
    file.set_u64(l1_of_snapshot(file), l1_of_snapshot(file))


def disk_huge(file):
    file.set_u64(table_at(file) + 48, (1 << 64) - 1)


def disk_too_large(file):
    file.set_u64(table_at(file) + 48, 1 << 60)


def l2_entry_on_l1(file):
    file.set_u64(file.u64(l1_of_snapshot(file)) & OFFSET_MASK, file.get("l1_offset"))


def l2_entry_unaligned(file):
    file.set_u64(file.u64(l1_of_snapshot(file)) & OFFSET_MASK, 0x10200)


def l2_entry_free(file):
    file.set_u64(file.u64(l1_of_snapshot(file)) & OFFSET_MASK, 1 << 40)


AT_OPEN = (count_too_large, count_huge, count_past_table, table_beyond, table_unaligned, id_too_long,
           name_too_long, extra_huge, l1_huge, l1_unaligned, l1_far)
AT_VERBS = (l1_beyond, l1_longer, l1_is_active, l1_is_header, l1_is_reftable, l1_entry_broken,
            l1_entry_beyond, l1_entry_on_reftable, l1_entry_on_itself, disk_huge, disk_too_large,
            l2_entry_on_l1, l2_entry_unaligned, l2_entry_free)


def hostile(t, damage):
    """Two snapshots; the first one is damaged."""
    image = make(t, "cluster_size=4k")
    qemu_io(image, "write -P 1 0 300k", arguments=QCOW2)
    tool("snapshot-create", image, "one")
    qemu_io(image, "write -P 2 0 300k", arguments=QCOW2)
    tool("snapshot-create", image, "two")
    file = Qcow2File(image)
    damage(file)
    return file.save(image)


@cases(*(damage.__name__ for damage in AT_OPEN))
def test_hostile_table(t, name):
    image = hostile(t, globals()[name])
    before = digest(image)
    for options in ((), ("-r",), ("-l", "two")):
        message = refused(t, image, *QCOW2, *options)
        check("snapshot" in message, message)
    for words in (("create", "x"), ("apply", "one"), ("delete", "one")):
        tool("snapshot-" + words[0], image, words[1], status=1)
    equal(digest(image), before, "hash of the image")


def without_marks(image):
    """The file without the corrupt bit, which a failed change may have set."""
    file = Qcow2File(image)
    file.set("incompatible", file.get("incompatible") & ~2)
    return bytes(file.data)


@cases(*((damage.__name__, verb) for damage in AT_VERBS for verb in ("apply", "delete")))
def test_hostile_verbs(t, name, verb):
    """What is refused has changed nothing; what is not has kept the disk and the other snapshot."""
    image = hostile(t, globals()[name])
    before = without_marks(image)
    done = run(TOOL, f"snapshot-{verb}", image, "one", status=None)
    check(not SANITIZER.search(done.stderr) and done.returncode in (0, 1), done.stderr)
    if done.returncode == 1:
        check("one" in done.stderr or "snapshot" in done.stderr, done.stderr)
        same_bytes(without_marks(image), before, "the refused image")
    elif verb == "delete":
        same_bytes(guest(t, image)[:300 * KIB], b"\x02" * (300 * KIB), "the disk")
    same_bytes(guest(t, image, "two")[:300 * KIB], b"\x02" * (300 * KIB), "the other snapshot")


@cases(*(damage.__name__ for damage in AT_VERBS))
def test_hostile_load(t, name):
    image = hostile(t, globals()[name])
    before = digest(image)
    done = run(TOOL, "map", image, status=0)
    check(not SANITIZER.search(done.stderr), done.stderr)
    try:
        server = t.serve(image, *QCOW2, "-l", "one")
    except AssertionError as reason:
        check("Failed to load snapshot" in str(reason), str(reason))
    else:
        with server.client() as client:
            for at in range(0, client.export.size, MIB):
                client.read_error(at, min(MIB, client.export.size - at))
        t.stop_servers()
    equal(digest(image), before, "hash of the image")


# Exporting snapshots.

def three(t):
    """Names that look like ids: QEMU prefers ids."""
    image = make(t, "cluster_size=64k")
    for number, name in enumerate(("x", "1", "second name")):
        qemu_io(image, f"write -P {number + 1} 0 {SIZE}", arguments=QCOW2)
        qemu_img("snapshot", "-c", name, image)
    qemu_io(image, f"write -P 9 0 {SIZE}", arguments=QCOW2)
    return image


@cases(("1", 1), ("2", 2), ("x", 1), ("3", 3), ("second name", 3), ("snapshot.id=2", 2),
       ("snapshot.name=1", 2), ("snapshot.id=1,snapshot.name=x", 1))
def test_export(t, choice, byte):
    image = three(t)
    before = digest(image)
    for options in (("-l", choice), (f"--load-snapshot={choice}", "-r"), ("-l", choice, "-o", "1048576")):
        with t.serve(image, *QCOW2, *options).client() as client:
            data = client.read_all()
            equal(data[:4096], bytes([byte]) * 4096, f"what {options} exports")
            equal(len(data), SIZE - (MIB if "-o" in options else 0), "size")
            check(client.export.flags & FLAG_READ_ONLY, "the export is not read-only")
        t.stop_servers()
    equal(digest(image), before, "hash of the image")


@cases("nosuch", "", "snapshot.id=x", "snapshot.name=2", "snapshot.id=1,snapshot.name=1")
def test_export_of_nothing(t, choice):
    refused(t, three(t), *QCOW2, "-l", choice, says=["Failed to load snapshot: Can't find snapshot"])


@cases("snapshot.foo=1", "snapshot.", "snapshot.id=1,name=x", "snapshot.id=1,snapshot.id=2")
def test_bad_choice(t, choice):
    refused(t, three(t), *QCOW2, "-l", choice, says=["Failed in parsing snapshot param `snapshot"])


def test_writes_keep_snapshots(t):
    """Clients write while nothing of the snapshots may change."""
    image = make(t, "cluster_size=4k")
    qemu_io(image, f"write -P 1 0 {SIZE}", arguments=QCOW2)
    tool("snapshot-create", image, "kept")
    rng, model = random.Random(5), bytearray(b"\x01" * SIZE)
    with t.serve(image, *QCOW2, "--discard=unmap").client() as client:
        for _ in range(200):
            at, length = rng.randrange(SIZE - 40000), rng.randrange(1, 40000)
            data = rng.randbytes(length)
            client.write(at, data)
            model[at:at + length] = data
        same_bytes(client.read_all(), bytes(model), "the disk")
    t.stop_servers()
    check_all(t, image, model, {"kept": b"\x01" * SIZE})


if __name__ == "__main__":
    main()
