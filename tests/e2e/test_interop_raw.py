#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Raw images, with other people's clients: nbdinfo, nbdcopy, qemu-img, qemu-io."""
import json
import os

from evnbd_test import (GIB, KIB, MIB, cases, check, content, digest, equal, free_port, have_ipv6, main,
                        need, qemu_img, qemu_io, read_file, refused, run, same_bytes, skip)
from nbd_raw import (CMD_CACHE, CMD_FLAG_FUA, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, ENOSPC,
                     EPERM)

TRANSPORTS = ("unix", "ipv4", "ipv6")


def serve_on(t, transport, image, *options):
    if transport == "unix":
        return t.serve(image, *options)
    if transport == "ipv6" and not have_ipv6():
        skip("no IPv6 here")
    return t.serve(image, *options, host="127.0.0.1" if transport == "ipv4" else "::1",
                   port=free_port())


def nbdinfo(server):
    need("nbdinfo")
    listed = json.loads(run("nbdinfo", "--json", server.uri).stdout)
    return listed["exports"][0]


@cases(*TRANSPORTS)
def test_nbdinfo(t, transport):
    image = t.file("disk.raw", content(1, 3 * MIB))
    server = serve_on(t, transport, image, "-f", "raw")
    info = nbdinfo(server)
    equal(info["export-size"], 3 * MIB, "size")
    equal(info["is_read_only"], False, "read-only")
    for ability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_cache"):
        equal(info[ability], True, ability)
    equal(info["block_size_minimum"], 1, "minimum block size")
    equal(info["block_size_maximum"], 32 * MIB, "maximum block size")


def test_nbdinfo_list_of_a_named_export(t):
    need("nbdinfo")
    image = t.file("disk.raw", content(1, MIB))
    server = t.serve(image, "-f", "raw", "-D", "a disk, described", export="hdä/0")
    listed = json.loads(run("nbdinfo", "--json", "--list", f"nbd+unix://?socket={server.unix}").stdout)
    equal([e["export-name"] for e in listed["exports"]], ["hdä/0"], "names of the exports")
    equal(listed["exports"][0]["description"], "a disk, described", "description")
    equal(listed["exports"][0]["export-size"], MIB, "size")


@cases(*TRANSPORTS)
def test_copy_out_and_in(t, transport):
    need("nbdcopy")
    data = content(2, 5 * MIB + 512)
    server = serve_on(t, transport, t.file("disk.raw", data), "-f", "raw", "-e", "0")
    run("nbdcopy", server.uri, t.path("out.raw"))
    same_bytes(read_file(t.path("out.raw")), data, "what nbdcopy read")
    other = content(3, len(data))
    run("nbdcopy", "--flush", t.file("in.raw", other), server.uri)
    same_bytes(read_file(t.path("disk.raw")), other, "what nbdcopy wrote")


@cases(0, 1, 511, 513, 4095, 4097, MIB + 1, 3 * MIB - 1)
def test_every_byte_of_an_odd_size(t, size):
    data = content(4, size)
    image = t.file("disk.raw", data)
    server = t.serve(image, "-f", "raw", "-e", "0")
    with server.client() as client:
        equal(client.export.size, size, "size of the export")
        same_bytes(client.read_all(64 * KIB), data, "the export")
        if size:
            client.write(size - 1, b"\xa5")
            client.write(0, b"\x5a")
            same_bytes(client.read_all(), read_file(image), "the export after writes")
            equal(client.read(size - 1, 1), b"\xa5" if size > 1 else b"\x5a", "last byte")
        equal(client.command(CMD_WRITE, size, 1, 0, b"x"), ENOSPC, "error of a write at the end")
        equal(client.read_error(size, 1)[0], EINVAL, "error of a read at the end")
    equal(os.path.getsize(image), size, "size of the file")
    if size:
        need("nbdcopy")
        run("nbdcopy", server.uri, t.path("out.raw"))
        same_bytes(read_file(t.path("out.raw")), read_file(image), "what nbdcopy read")


@cases(*TRANSPORTS)
def test_qemu_img(t, transport):
    image = t.file("disk.raw", content(5, 2 * MIB) + bytes(2 * MIB) + content(6, MIB))
    server = serve_on(t, transport, image, "-f", "raw", "-e", "0")
    info = json.loads(qemu_img("info", "--output=json", server.uri).stdout)
    equal(info["virtual-size"], 5 * MIB, "size that qemu-img sees")
    qemu_img("compare", "-f", "raw", "-F", "raw", server.uri, image)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", server.uri, t.path("out.qcow2"))
    qemu_img("compare", "-f", "qcow2", "-F", "raw", t.path("out.qcow2"), image)
    other = t.file("other.raw", content(7, 5 * MIB))
    qemu_img("convert", "-n", "-f", "raw", "-O", "raw", other, server.uri)
    equal(digest(image), digest(other), "hash of the image after qemu-img convert into it")


@cases(*TRANSPORTS)
def test_qemu_io_patterns(t, transport):
    image = t.sparse_file("disk.raw", 8 * MIB)
    server = serve_on(t, transport, image, "-f", "raw", "-e", "0")
    qemu_io(server.uri,
            "write -P 0x11 0 1M", "write -P 0x22 1234567 34567", "write -f -P 0x33 7M 1M",
            "write -z 512k 128k", "write -z -u 7M 64k", "discard 2M 1M", "flush",
            "aio_write -P 0x44 3M 64k", "aio_write -P 0x55 3200k 64k", "aio_flush",
            "read -P 0x11 0 512k", "read -P 0 512k 128k", "read -P 0x11 640k 384k",
            "read -P 0x22 1234567 34567", "read -P 0 7M 64k", "read -P 0x33 7232k 960k",
            "read -P 0x44 3M 64k", "read -P 0x55 3200k 64k", arguments=("-f", "raw"))
    data = read_file(image)
    equal(len(data), 8 * MIB, "size of the file")
    for start, length, byte in ((0, 512 * KIB, 0x11), (512 * KIB, 128 * KIB, 0),
                                (1234567, 34567, 0x22), (7 * MIB, 64 * KIB, 0)):
        same_bytes(data[start:start + length], bytes([byte]) * length, f"the file at {start}")


@cases(0, 1, 512, 4097, MIB)
def test_offset(t, offset):
    data = content(8, 2 * MIB + 77)
    image = t.file("disk.raw", data)
    server = t.serve(image, "-f", "raw", "-o", offset)
    with server.client() as client:
        equal(client.export.size, len(data) - offset, "size of the export")
        same_bytes(client.read_all(), data[offset:], "the export")
        client.write(3, b"here")
    same_bytes(read_file(image), data[:offset + 3] + b"here" + data[offset + 7:], "the file")


def test_read_only(t):
    data = content(10, MIB)
    image = t.file("disk.raw", data)
    server = t.serve(image, "-f", "raw", "-r", "-e", "0")
    equal(nbdinfo(server)["is_read_only"], True, "read-only")
    with server.client() as client:
        equal(client.command(CMD_WRITE, 0, 70000, 0, bytes(70000)), EPERM, "error of WRITE")
        equal(client.command(CMD_WRITE_ZEROES, 0, 512), EPERM, "error of WRITE_ZEROES")
        equal(client.command(CMD_TRIM, 0, 512), EPERM, "error of TRIM")
        same_bytes(client.read_all(), data, "the export")
    qemu_io(server.uri, "write 0 4k", arguments=("-f", "raw"), status=1)
    qemu_io(server.uri, "read 0 4k", arguments=("-r", "-f", "raw"))
    same_bytes(read_file(image), data, "the file")


CACHES = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")


@cases(*((aio, cache) for aio in ("threads", "io_uring") for cache in CACHES))
def test_aio_and_cache(t, aio, cache):
    need("nbdcopy")
    size = 3 * MIB + 4096
    image = t.sparse_file("disk.raw", size)
    if cache in ("none", "off", "directsync") and not direct_io_works(image):
        skip("the file system of the temporary directory has no O_DIRECT")
    data = content(12, size)
    server = t.serve(image, "-f", "raw", f"--aio={aio}", f"--cache={cache}", "-e", "0")
    run("nbdcopy", "--flush", t.file("in.raw", data), server.uri)
    same_bytes(read_file(image), data, "the file")
    with server.client() as client:
        client.write(4097, b"unaligned")
        client.write(size - 3, b"end", CMD_FLAG_FUA)
        equal(client.read(4096, 11), data[4096:4097] + b"unaligned" + data[4106:4107], "bytes read")
        same_bytes(client.read_all(1000001), read_file(image), "the export")
        equal(client.command(CMD_WRITE_ZEROES, 8191, 4099), 0, "error of WRITE_ZEROES")
        equal(client.read(8190, 4101), data[8190:8191] + bytes(4099) + data[12290:12291], "zeroes")
        equal(client.command(CMD_CACHE, 0, size), 0, "error of CACHE")


def direct_io_works(path):
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
        return True
    except OSError:
        return False


def allocated(path):
    return os.stat(path).st_blocks * 512


def holes_work(t):
    """Whether the file system of the temporary directory makes holes with fallocate."""
    probe = t.file("probe", bytes(MIB))
    before = allocated(probe)
    run("fallocate", "--punch-hole", "--offset", 0, "--length", MIB, probe, status=None)
    return allocated(probe) < before


@cases(("unmap", True), ("on", True), ("ignore", False), ("off", False))
def test_discard(t, mode, gives_back):
    if not holes_work(t):
        skip("the file system of the temporary directory makes no holes")
    data = content(13, 4 * MIB)
    image = t.file("disk.raw", data)
    before = allocated(image)
    with t.serve(image, "-f", "raw", f"--discard={mode}").client() as client:
        equal(client.command(CMD_TRIM, MIB, 2 * MIB), 0, "error of TRIM")
        client.flush()
        after = allocated(image)
        wanted = data[:MIB] + bytes(2 * MIB) + data[3 * MIB:] if gives_back else data
        same_bytes(client.read_all(), wanted, "the export after TRIM")
    check((after <= before - 2 * MIB) == gives_back, f"{before} bytes were allocated, now {after}")


@cases(("off", False), ("on", False), ("unmap", True))
def test_detect_zeroes(t, mode, gives_back):
    if not holes_work(t):
        skip("the file system of the temporary directory makes no holes")
    image = t.file("disk.raw", content(14, 4 * MIB))
    before = allocated(image)
    options = ["--discard=unmap"] if gives_back else []
    with t.serve(image, "-f", "raw", *options, f"--detect-zeroes={mode}").client() as client:
        client.write(MIB, bytes(2 * MIB))
        client.flush()
        check((allocated(image) <= before - 2 * MIB) == gives_back,
              f"{before} bytes were allocated, now {allocated(image)}")
        equal(client.read(MIB, 2 * MIB), bytes(2 * MIB), "what was written")
    refused(t, image, "-f", "raw", "--detect-zeroes=unmap", says=["detect-zeroes", "discard"])


def test_sparse_tebibytes(t):
    """Offsets beyond 32 bits, in a file that is all hole."""
    size = 9 * 1024 * GIB
    try:
        image = t.sparse_file("disk.raw", size)
    except OSError as problem:
        skip(f"no such large file here: {problem}")
    with t.serve(image, "-f", "raw", "--discard=unmap").client() as client:
        equal(client.export.size, size, "size")
        client.write(size - 6, b"at end")
        client.write(5 * GIB + 1, b"beyond 4 GiB")
        equal(client.read(size - 7, 7), b"\0at end", "end")
        equal(client.read(5 * GIB, 14), b"\0beyond 4 GiB\0", "middle")
        equal(client.command(CMD_WRITE_ZEROES, 4 * GIB, 0xFFFFF000), 0, "error of 4 GiB of zeroes")
        equal(client.command(CMD_TRIM, 0, 0xFFFFFE00), 0, "error of 4 GiB of TRIM")
        equal(client.read(5 * GIB, 14), bytes(14), "zeroes")


def test_direct_io_with_4k_sectors(t):
    """A device whose blocks are larger than what the client writes; part of it has no storage yet."""
    if os.geteuid() != 0:
        skip("attaching a loop device needs root")
    need("losetup")
    backing = t.sparse_file("backing", 8 * MIB)
    attached = run("losetup", "-f", "--show", "--sector-size", "4096", backing, status=None)
    if attached.returncode != 0:
        skip(f"no loop device can be had here: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        server = t.serve(device, "-f", "raw", "--cache=none")
        with server.client() as client:
            model = bytearray(MIB)
            for offset, length in ((512, 512), (4096, 4096), (10000, 5000), (65535, 2)):
                data = content(offset, length)
                client.write(offset, data)
                model[offset:offset + length] = data
            equal(client.command(CMD_WRITE_ZEROES, 11000, 513), 0, "error of zeroing")
            model[11000:11513] = bytes(513)
            client.flush()
            same_bytes(client.read(0, MIB), bytes(model), "through the server")
            equal(client.read(700, 300), bytes(model[700:1000]), "a part")
        server.stop()
        same_bytes(read_file(backing)[:MIB], bytes(model), "on the device")
    finally:
        run("losetup", "-d", device, status=None)


if __name__ == "__main__":
    main()
