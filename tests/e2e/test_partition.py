#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""--partition: tables of sfdisk, fdisk, parted and sgdisk, and tables that lie.  What is exported is
compared with what lies there in the image, by the numbers of another program."""
import hashlib
import json
import os
import re
import struct
import subprocess
import zlib

from evnbd_test import (EVNBD, HANG, MIB, SHARED, cases, check, content, equal, main, need, qemu_img,
                        read_file, refused, run, same_bytes, skip, write_file)
from nbd_raw import CMD_WRITE, EPERM

SIZE = 32 * MIB


def disk(t, seed=1, size=SIZE):
    return t.file("disk.raw", content(seed, MIB) * (size // MIB))


def fill_partitions(image, parts):
    """Gives each partition bytes of its own, at both ends."""
    with open(image, "r+b") as file:
        for number, start, size in parts:
            file.seek(start)
            file.write(content(number, 512))
            file.seek(start + size - 512)
            file.write(content(1000 + number, 512))


def sfdisk(image, script):
    need("sfdisk")
    with open(image, "r+b") as file:  # what is not a table is random
        file.write(bytes(MIB))
    done = subprocess.run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", image], input=script,
                          text=True, capture_output=True, timeout=HANG, check=False)
    equal(done.returncode, 0, f"exit status of sfdisk ({done.stderr})")


def sfdisk_parts(image):
    """(number, start, size in bytes) as sfdisk reads them; without extended ones."""
    table = json.loads(run("sfdisk", "--json", image).stdout)["partitiontable"]
    unit = table.get("sectorsize", 512)
    return [(int(re.search(r"\d+$", part["node"]).group()), part["start"] * unit, part["size"] * unit)
            for part in table["partitions"] if part["type"] not in ("5", "f", "85")]


def listed(image, *options, says=None):
    done = run(EVNBD, "-f", "raw", *options, "-P", "list", image)
    if says is None:
        equal(done.stderr, "", "what is said beside the list")
    else:
        check(re.search(says, done.stderr), f"does not say /{says}/: {done.stderr}")
    rows = done.stdout.splitlines()
    equal(rows[0].split(), ["number", "start", "size", "type", "label", "uuid"], "heading")
    return [row.split() for row in rows[1:]]


def exported(t, image, choice, *options):
    server = t.serve(image, "-f", "raw", "-P", str(choice), *options)
    with server.client() as client:
        data = client.read_all(MIB)
        equal(len(data), client.export.size, "size")
    server.stop()
    return data


def compare_all(t, image, parts):
    """The list, and each partition byte for byte with what dd takes out."""
    check(parts, "no partitions")
    rows = listed(image)
    for number, start, size in parts:
        check([str(number), str(start), str(size)] in [row[:3] for row in rows],
              f"partition {number} at {start}, {size} bytes, is not listed: {rows}")
        run("dd", f"if={image}", f"of={t.path('part')}", "bs=512", f"skip={start // 512}",
            f"count={size // 512}")
        same_bytes(exported(t, image, number, "-r"), read_file(t.path("part")), f"partition {number}")


TEN_LOGICAL = "label: dos\nlabel-id: 0x12345678\nstart=2048, size=4096, type=83\n" \
    "start=8192, size=53248, type={}\nstart=61442, size=1001, type=82\n" + "".join(
        f"start={10240 + 4096 * i}, size={1500 + i}, type=83\n" for i in range(10))


@cases("5", "f", "85")
def test_sfdisk_mbr_with_ten_logical(t, kind):
    image = disk(t)
    sfdisk(image, TEN_LOGICAL.format(kind))
    parts = sfdisk_parts(image)
    equal([part[0] for part in parts], [1, 3, *range(5, 15)], "what sfdisk made")
    fill_partitions(image, parts)
    compare_all(t, image, parts)


def test_sfdisk_deleted_logical_in_the_middle(t):
    image = disk(t)
    sfdisk(image, TEN_LOGICAL.format("f"))
    run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "--delete", image, "8")
    parts = sfdisk_parts(image)
    equal(len(parts), 11, "partitions that are left")
    fill_partitions(image, parts)
    compare_all(t, image, parts)


def test_sgdisk_gpt_with_128_entries(t):
    need("sgdisk", "sfdisk")
    image = disk(t)
    words = [f"--new={n}:{2048 + 64 * n}:+{32 + n % 7}" for n in range(1, 129)]
    run("sgdisk", "-Z", "-a", "1", image, status=None)
    run("sgdisk", "-o", "-a", "1", *words, "--change-name=77:The löng name", image)
    parts = sfdisk_parts(image)
    equal(len(parts), 128, "partitions that sgdisk made")
    fill_partitions(image, parts)
    rows = listed(image)
    equal([tuple(map(int, row[:3])) for row in rows], parts, "the list")
    data = read_file(image)
    for number, start, size in parts[::25] + parts[-1:]:
        same_bytes(exported(t, image, number, "-r"), data[start:start + size], f"partition {number}")
    number, start, size = parts[76]
    uuid = next(row[-1] for row in rows if row[0] == "77")
    for choice in ("label=The löng name", f"uuid={uuid}", f"uuid={uuid.lower()}"):
        same_bytes(exported(t, image, choice, "-r"), data[start:start + size], choice)
    refused(t, image, "-f", "raw", "-P", "129", says=[r"Could not find partition 129: the GPT has .*1, 2, 3"])
    refused(t, image, "-f", "raw", "-P", "label=nope", says=["Could not find partition with the label 'nope': .*löng"])


@cases("msdos", "gpt")
def test_parted(t, kind):
    need("parted", "sfdisk")
    image = disk(t)
    first = ["primary"] if kind == "msdos" else ["first"]
    run("parted", "-s", image, "mklabel", kind, "mkpart", *first, "1MiB", "5MiB",
        "mkpart", *first, "7MiB", "8MiB")
    parts = sfdisk_parts(image)
    equal([part[1:] for part in parts], [(MIB, 4 * MIB), (7 * MIB, MIB)], "what parted made")
    fill_partitions(image, parts)
    compare_all(t, image, parts)


@cases("gpt", "dos")
def test_sectors_of_4096_bytes(t, kind):
    need("fdisk")
    image = disk(t)
    with open(image, "r+b") as file:
        file.write(bytes(MIB))
    orders = {"gpt": "g\nn\n1\n256\n1279\nn\n9\n2048\n2048\nw\n",
              "dos": "o\nn\np\n1\n256\n1279\nn\ne\n2\n2048\n8000\nn\nl\n2304\n2310\nn\nl\n2600\n2600\nw\n"}
    done = subprocess.run(["fdisk", "-b", "4096", image], input=orders[kind], text=True, env={**os.environ, "LC_ALL": "C"},
                          capture_output=True, timeout=HANG, check=False)
    wanted = {"gpt": [(1, 256, 1024), (9, 2048, 1)],
              "dos": [(1, 256, 1024), (5, 2304, 7), (6, 2600, 1)]}[kind]
    parts = [(number, 4096 * first, 4096 * count) for number, first, count in wanted]
    check("altered" in done.stdout, done.stdout + done.stderr)
    fill_partitions(image, parts)
    compare_all(t, image, parts)


def sample_rows():
    path = os.path.join(SHARED, "samples", "partitions.tsv")
    if not os.path.exists(path):
        skip("the shared sample images are not here (EVNBD_SHARED)")
    with open(path, encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t") for line in lines if not line.startswith("#")]


def test_samples(t):
    need("xz")
    rows = sample_rows()
    check(rows, "no samples are listed")
    for name in sorted({row[0] for row in rows}):
        with open(t.path("sample.raw"), "wb") as out:
            subprocess.run(["xz", "-dc", os.path.join(SHARED, "samples", name)], stdout=out,
                           check=True, timeout=HANG)
        for _, _, number, _, _, _, digest in [row for row in rows if row[0] == name]:
            data = exported(t, t.path("sample.raw"), number, "-r")
            equal(hashlib.sha256(data).hexdigest(), digest, f"partition {number} of {name}")


def test_writes_stay_inside(t):
    image = disk(t)
    sfdisk(image, "label: dos\nstart=2048, size=100\nstart=2148, size=100\n")
    before = read_file(image)
    server = t.serve(image, "-f", "raw", "-P", "1")
    with server.client() as client:
        equal(client.export.size, 51200, "size")
        client.write(0, b"a" * 512)
        client.write(51200 - 512, b"z" * 512)
        check(client.command(CMD_WRITE, 51200 - 511, 512, 0, b"x" * 512) != 0, "a write left the partition")
    server.stop()
    wanted = bytearray(before)
    wanted[MIB:MIB + 512] = b"a" * 512
    wanted[MIB + 51200 - 512:MIB + 51200] = b"z" * 512
    same_bytes(read_file(image), bytes(wanted), "the image")


def test_in_qcow2(t):
    raw = disk(t)
    sfdisk(raw, TEN_LOGICAL.format("5"))
    image = t.path("disk.qcow2")
    qemu_img("convert", "-O", "qcow2", raw, image)
    number, start, size = sfdisk_parts(raw)[-1]
    server = t.serve(image, "-f", "qcow2", "-r", "-P", str(number))
    with server.client() as client:
        same_bytes(client.read_all(MIB), read_file(raw)[start:start + size], f"partition {number}")


def test_extended_is_read_only(t):
    image = disk(t)
    sfdisk(image, TEN_LOGICAL.format("5"))
    server = t.serve(image, "-f", "raw", "-P", "2")
    check("served read-only" in server.log, server.log)
    with server.client() as client:
        equal(client.export.size, 53248 * 512, "size")
        equal(client.command(CMD_WRITE, 0, 1, 0, b"x"), EPERM, "error of a write")


def test_command_line(t):
    image = disk(t)
    sfdisk(image, "label: dos\nlabel-id: 0xfeedf00d\nstart=2048, size=100\nstart=4096, size=8\n")
    for bad in ("0", "-1", "x", "", "1x", "label=", "uuid=", "99999999999", "List"):
        refused(t, image, "-f", "raw", f"--partition={bad}", says=[re.escape(f"Invalid partition '{bad}'")])
    refused(t, image, "-P", "1", "-o", "512", says=["Cannot request partition and offset together"])
    refused(t, image, "-P", "list", "-o", "512", says=["Cannot request partition and offset together"])
    refused(t, image, "-f", "raw", "-P", "3", says=["Could not find partition 3: the MBR has the partitions 1, 2$"])
    equal(len(exported(t, image, "uuid=FEEDF00D-02", "-r")), 4096, "size of the one with a UUID")
    refused_list = run(EVNBD, "-L", "-P", "1", status=1).stderr
    check("per-device" in refused_list, refused_list)


def entry(kind, first, sectors, status=0):
    return struct.pack("<B3xB3xII", status, kind, first, sectors)


def record(*entries):
    return (bytes(446) + b"".join(entries)).ljust(510, b"\0") + b"\x55\xaa"


def poke(image, sector, data):
    with open(image, "r+b") as file:
        file.seek(sector * 512)
        file.write(data)


def hand_made(t, *sectors):
    image = t.sparse_file("disk.raw", SIZE)
    for sector, data in sectors:
        poke(image, sector, data)
    return image


def test_hostile_loops(t):
    extended = (0, record(entry(0x83, 64, 8), entry(5, 1000, 5000)))
    logical = entry(0x83, 1, 1)
    itself = hand_made(t, extended, (1000, record(logical, entry(5, 0, 1))))
    equal([row[0] for row in listed(itself, says="comes back")], ["1", "2", "5"], "a record that follows itself")
    ring = hand_made(t, extended, (1000, record(logical, entry(5, 100, 2))),
                     (1100, record(logical, entry(5, 200, 2))), (1200, record(logical, entry(5, 100, 2))))
    equal([row[0] for row in listed(ring, says="comes back")], ["1", "2", "5", "6", "7"], "a ring")
    many = hand_made(t, extended, *((1000 + 2 * i, record(logical, entry(5, 2 * i + 2, 2)))
                                    for i in range(300)))
    equal(len(listed(many, says="too long")), 2 + 256, "partitions of a chain that is too long")


def test_hostile_links(t):
    extended = (0, record(entry(5, 1000, 5000)))
    logical = entry(0x83, 1, 1)
    for link, says in ((entry(5, 5000, 1), "leaves the extended"), (entry(5, 0xFFFFFFFF, 1), "leaves the extended"),
                       (entry(0x83, 8, 1), "not of an extended type"), (entry(5, 8, 1), "no signature")):
        image = hand_made(t, extended, (1000, record(logical, link)))
        equal([row[0] for row in listed(image, says=says)], ["1", "5"], says)
    outside = hand_made(t, (0, record(entry(0x83, 64, 8), entry(5, 0xFFFFFFF0, 0xFFFFFFFF))))
    equal(len(listed(outside, says="cannot be read")), 2, "partitions")


def test_hostile_sizes(t):
    image = hand_made(t, (0, record(entry(0x83, 64, 0xFFFFFFFF), entry(0x83, 0xFFFFFFFF, 1), entry(0x83, 65535, 2),
                                    entry(0x83, 65535, 1))))
    for number in (1, 2, 3):
        refused(t, image, "-f", "raw", "-P", number,
                says=[f"Discovered partition {number} at offset \\d+ size \\d+, but size exceeds file length {SIZE}"])
    equal(len(exported(t, image, 4)), 512, "size of the last sector")


def test_hostile_overlaps(t):
    logical = (record(entry(0x83, 0, 9)), record(entry(0x83, 1, 50), entry(5, 20, 9)))
    own = hand_made(t, (0, record(entry(5, 1000, 100), entry(0x83, 900, 200))), (1000, logical[0]))
    other = t.path("other.raw")
    os.rename(own, other)
    following = hand_made(t, (0, record(entry(5, 1000, 100))), (1000, logical[1]), (1020, record(entry(0x83, 1, 1))))
    for image, number in ((other, 5), (other, 2), (following, 5)):
        server = t.serve(image, "-f", "raw", "-P", str(number))
        check("holds a part of the partition table" in server.log, server.log)
        with server.client() as client:
            equal(client.command(CMD_WRITE, 0, 1, 0, b"x"), EPERM, "error of a write")
        server.stop()


@cases("fat", "empty", "status", "short", "unsigned")
def test_no_table(t, kind):
    boot = bytearray(record())
    boot[:11] = b"\xeb\x3c\x90MSDOS5.0"
    boot[446:462] = b"ot disk. Press a"
    data = {"fat": bytes(boot), "empty": record(), "status": record(entry(0x83, 64, 8, 0x7F)), "short": b"x",
            "unsigned": record(entry(0x83, 64, 8))[:510] + b"\0\0"}[kind]
    image = write_file(t.path("disk.raw"), data if kind == "short" else data + bytes(MIB))
    refused(t, image, "-f", "raw", "-P", "1", says=["Could not find partition 1: .*has no partition table"])
    equal(run(EVNBD, "-f", "raw", "-P", "list", image, status=1).stdout, "", "output")


def gpt_disk(t):
    need("sgdisk", "sfdisk")
    image = t.sparse_file("disk.raw", SIZE)
    run("sgdisk", "-o", "--new=1:2048:4095", "--change-name=1:one", "--new=2:8192:+1M", "--change-name=2:one", image)
    fill_partitions(image, sfdisk_parts(image))
    return image


def flip(image, at):
    with open(image, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def rewrite_header(image, at, value, form="<I", table=False):
    """Changes a field of the primary header and mends its checksums."""
    data = bytearray(read_file(image)[:34 * 512])
    struct.pack_into(form, data, (2 if table else 1) * 512 + at, value)
    struct.pack_into("<I", data, 512 + 88, zlib.crc32(data[1024:1024 + 128 * 128]))
    if not table and at == 88:
        struct.pack_into(form, data, 512 + 88, value)
    struct.pack_into("<I", data, 512 + 16, 0)
    struct.pack_into("<I", data, 512 + 16, zlib.crc32(data[512:512 + 92]))
    poke(image, 0, bytes(data))


BROKEN = {"header": (lambda image: flip(image, 512 + 56), "wrong checksum"),
          "signature": (lambda image: flip(image, 512), "is not there"),
          "table": (lambda image: flip(image, 1024 + 60), "table with a wrong checksum"),
          "place": (lambda image: rewrite_header(image, 24, 2, "<Q"), "belongs elsewhere"),
          "entries": (lambda image: rewrite_header(image, 80, 0xFFFFFFFF), "number of entries"),
          "no_entries": (lambda image: rewrite_header(image, 80, 0), "number of entries"),
          "entry_size": (lambda image: rewrite_header(image, 84, 130), "size of entries"),
          "table_outside": (lambda image: rewrite_header(image, 72, 1 << 63, "<Q"), "outside of the disk"),
          "table_checksum": (lambda image: rewrite_header(image, 88, 1), "table with a wrong checksum")}


@cases(*BROKEN)
def test_gpt_backup(t, how):
    image = gpt_disk(t)
    parts, data = sfdisk_parts(image), read_file(image)
    harm, says = BROKEN[how]
    harm(image)
    equal([tuple(map(int, row[:3])) for row in listed(image, says=f"{says}; the backup is used")], parts, "the list")
    number, start, size = parts[1]
    same_bytes(exported(t, image, number), data[start:start + size], "partition 2")
    flip(image, SIZE - 512 + 56)
    refused(t, image, "-f", "raw", "-P", "1", says=[f"{says}, and there is no intact backup"])


def test_gpt_backup_of_a_grown_disk(t):
    image = gpt_disk(t)
    os.truncate(image, SIZE + MIB)
    equal(len(listed(image)), 2, "partitions of a grown disk")
    flip(image, 1024 + 60)
    equal(len(listed(image, says="backup is used")), 2, "partitions of a grown disk with a broken table")


def test_gpt_and_mbr(t):
    image = gpt_disk(t)
    poke(image, 0, bytes(512))
    equal(len(listed(image, says="is blank")), 2, "partitions without a protective MBR")
    poke(image, 0, record(entry(0x83, 100, 7)))
    equal([row[:3] for row in listed(image)], [["1", "51200", "3584"]], "a leftover GPT")
    poke(image, 0, record(entry(0x83, 100, 7), entry(0xEE, 1, 33)))
    equal(len(listed(image)), 2, "partitions of a hybrid MBR")


def test_gpt_entries_that_lie(t):
    image = gpt_disk(t)
    refused(t, image, "-f", "raw", "-P", "label=one", says=["1 and 2 are such; choose one by its number"])
    rewrite_header(image, 40, 2047, "<Q", table=True)  # the last sector before the first
    equal([row[0] for row in listed(image, says="partition 1 .* is ignored")], ["2"], "the list")
    rewrite_header(image, 40, (1 << 64) - 1, "<Q", table=True)
    equal([row[0] for row in listed(image, says="partition 1 .* is ignored")], ["2"], "the list")
    rewrite_header(image, 40, 1 << 40, "<Q", table=True)
    refused(t, image, "-f", "raw", "-P", "1", says=["Discovered partition 1 .*exceeds"])
    rewrite_header(image, 40, 3000, "<Q", table=True)
    rewrite_header(image, 32, 33, "<Q", table=True)  # begins in the table
    server = t.serve(image, "-f", "raw", "-P", "1")
    check("leaves the part" in server.log and "served read-only" in server.log, server.log)


if __name__ == "__main__":
    main()
