#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Other people's clients negotiate and use everything they know: libnbd and its tools, QEMU's."""
import hashlib
import json
import os
import struct
import subprocess
import sys

from evnbd_test import (GIB, KIB, MIB, cases, check, content, digest, equal, main, need, qemu_img, qemu_io,
                        read_file, run, same_bytes, skip)
from nbd_raw import CMD_BLOCK_STATUS, CMD_CACHE, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EIO
from qcow2_file import COPIED, Qcow2File

HOLE, ZERO = 1, 2
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
ALLOCATION, DEPTH = "base:allocation", "qemu:allocation-depth"


def libnbd_python():
    """A Python that has libnbd's module; not in a directory that has something else of that name."""
    for python in (sys.executable, "/usr/bin/python3"):
        if os.path.exists(python) and subprocess.run(
                [python, "-c", "import nbd; nbd.NBD"], cwd="/", capture_output=True, check=False).returncode == 0:
            return python
    return skip("python3-libnbd is not installed")


def libnbd(server, *steps, contexts=()):
    """What came of each step, see libnbd_client.py."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libnbd_client.py")
    done = run(libnbd_python(), script, server.uri, json.dumps(contexts), json.dumps(steps), cwd="/")
    return json.loads(done.stdout)


def sparse_image(t, name="sparse.raw", size=16 * MIB):
    """Data at 1 MiB to 3 MiB and in the last 64 KiB; the rest is a hole."""
    path = t.sparse_file(name, size)
    with open(path, "r+b") as file:
        file.seek(MIB)
        file.write(content(1, 2 * MIB))
        file.seek(size - 64 * KIB)
        file.write(content(2, 64 * KIB))
    return path


SPARSE_MAP = [[MIB, HOLE | ZERO], [2 * MIB, 0], [13 * MIB - 64 * KIB, HOLE | ZERO], [64 * KIB, 0]]


def extents_of(uri, context):
    extents = json.loads(run("nbdinfo", f"--map={context}", "--json", uri).stdout)
    return [[extent["length"], extent["type"]] for extent in extents]


# nbdinfo

@cases((True,), (False,))
def test_nbdinfo_json(t, read_only):
    need("nbdinfo")
    options = ["-r"] if read_only else []
    server = t.serve(sparse_image(t), "-f", "raw", "-A", "-e", "5", "-D", "for all", *options, export="disk")
    told = json.loads(run("nbdinfo", "--json", server.uri).stdout)
    equal((told["protocol"], told["structured"]), ("newstyle-fixed", True), "protocol")
    export = told["exports"][0]
    wanted = {"export-name": "disk", "description": "for all", "export-size": 16 * MIB,
              "is_read_only": read_only, "can_df": True, "can_cache": True, "can_flush": True, "can_fua": True,
              "can_multi_conn": True, "can_trim": not read_only, "can_zero": not read_only,
              "can_fast_zero": not read_only, "block_size_minimum": 1, "block_size_maximum": 32 * MIB}
    equal({key: export.get(key) for key in wanted}, wanted, "what nbdinfo tells")
    equal(export["contexts"], [ALLOCATION, DEPTH], "contexts")


def test_nbdinfo_map(t):
    need("nbdinfo")
    server = t.serve(sparse_image(t), "-r", "-f", "raw", "-A")
    equal(extents_of(server.uri, ALLOCATION), SPARSE_MAP, "allocation")
    equal(extents_of(server.uri, DEPTH), [[16 * MIB, 1]], "depth")


def test_nbdinfo_map_of_a_chain(t):
    need("nbdinfo")
    base = sparse_image(t)
    top = t.path("top.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top, 20 * MIB)
    qemu_io(top, "write -P 1 2M 1M", "write -z 6M 1M", arguments=("-f", "qcow2"))
    server = t.serve(top, "-r", "-f", "qcow2", "-A")
    allocation = extents_of(server.uri, ALLOCATION)
    equal(sum(length for length, _ in allocation), 20 * MIB, "bytes in extents")
    at, data = 0, []
    for length, flags in allocation:
        if not flags & ZERO:
            data.append([at, length])
        at += length
    equal(data, [[MIB, 2 * MIB], [16 * MIB - 64 * KIB, 64 * KIB]], "data")
    depths = extents_of(server.uri, DEPTH)
    equal([depth for _, depth in depths][:4], [2, 1, 2, 1], "depths")


# nbdcopy and qemu-img

def blocks(path):
    return os.stat(path).st_blocks * 512


@cases((1,), (4,), (16,))
def test_nbdcopy_connections(t, connections):
    need("nbdcopy")
    size = 24 * MIB + 1
    source = t.file("source.raw", content(3, size))
    target = t.sparse_file("target.raw", size)
    read, write = t.serve(source, "-r", "-f", "raw", "-e", "0"), t.serve(target, "-f", "raw", "-e", "0")
    options = [f"--connections={connections}", "--requests=8"]
    run("nbdcopy", *options, read.uri, t.path("copy.raw"))
    same_bytes(read_file(t.path("copy.raw")), read_file(source), "the copy")
    run("nbdcopy", *options, "--flush", read.uri, write.uri)
    write.stop()
    same_bytes(read_file(target), read_file(source), "the copy from server to server")


def test_nbdcopy_is_sparse(t):
    need("nbdcopy")
    source = sparse_image(t)
    server = t.serve(source, "-r", "-f", "raw", "-e", "0")
    run("nbdcopy", server.uri, t.path("copy.raw"))
    equal(digest(t.path("copy.raw")), digest(source), "digest of the copy")
    check(blocks(t.path("copy.raw")) < 3 * MIB, f"{blocks(t.path('copy.raw'))} bytes are allocated")
    # Onto old data: what is a hole in the source must be zeroed in the target.
    target = t.file("target.raw", b"\xee" * (16 * MIB))
    write = t.serve(target, "-f", "raw", "-e", "0", "--discard=unmap")
    run("nbdcopy", "--flush", server.uri, write.uri)
    equal(digest(target), digest(source), "digest of the target")
    check(blocks(target) < 3 * MIB, f"{blocks(target)} bytes are allocated in the target")


def test_qemu_img_map(t):
    server = t.serve(sparse_image(t), "-r", "-f", "raw")
    told = json.loads(qemu_img("map", "-f", "raw", "--output=json", server.uri).stdout)
    equal([[extent["length"], extent["data"], extent["zero"]] for extent in told],
          [[length, not flags & HOLE, bool(flags & ZERO)] for length, flags in SPARSE_MAP], "map")


@cases(("raw",), ("qcow2",))
def test_qemu_img_convert(t, image_format):
    source = sparse_image(t)
    image = t.path("image." + image_format)
    qemu_img("convert", "-f", "raw", "-O", image_format, source, image)
    server = t.serve(image, "-r", "-f", image_format)
    qemu_img("convert", "-f", "raw", "-O", "raw", server.uri, t.path("copy.raw"))
    equal(digest(t.path("copy.raw")), digest(source), "digest of the copy")
    check(blocks(t.path("copy.raw")) < 4 * MIB, f"{blocks(t.path('copy.raw'))} bytes are allocated")
    target = t.path("target." + image_format)
    qemu_img("create", "-q", "-f", image_format, target, 16 * MIB)
    write = t.serve(target, "-f", image_format, "--discard=unmap")
    qemu_img("convert", "-n", "-f", "raw", "-O", "raw", source, write.uri)
    qemu_img("compare", "-f", "raw", "-F", "raw", source, write.uri)
    write.stop()
    qemu_img("compare", "-f", "raw", "-F", image_format, source, target)
    check(blocks(target) < 4 * MIB, f"{blocks(target)} bytes are allocated in the target")


@cases(("raw",), ("qcow2",))
def test_qemu_io(t, image_format):
    image = t.path("disk")
    qemu_img("create", "-q", "-f", image_format, image, 8 * MIB)
    server = t.serve(image, "-f", image_format, "--discard=unmap")
    qemu_io(server.uri, "write -P 0x11 0 4M", "write -f -P 0x22 1M 64k", "write -z 64k 64k", "write -z -u 1M 32k",
            "write -z -n 2M 64k", "discard 3M 1M", "flush", "read -P 0x11 0 64k", "read -P 0 64k 64k",
            "read -P 0 1M 32k", "read -P 0x22 1081344 32k", "read -P 0 2M 64k", "read -P 0x11 2162688 100",
            "read -P 0 7M 1M", "write -f -z 5M 1M", "read -P 0 4M 4M", arguments=("-f", "raw"))
    server.stop()
    qemu_io(image, "read -P 0x11 0 64k", "read -P 0 64k 64k", "read -P 0x22 1081344 32k",
            arguments=("-f", image_format))


@cases(("raw",), ("qcow2",))
def test_storage_of_zeroes(t, image_format):
    """NO_HOLE leaves storage, its absence gives it back."""
    image = t.path("disk")
    qemu_img("create", "-q", "-f", image_format, image, 8 * MIB)
    server = t.serve(image, "-f", image_format, "--discard=unmap")
    client = server.client()
    equal(client.command(CMD_WRITE_ZEROES, 0, 4 * MIB, NO_HOLE), 0, "error of zeroing without a hole")
    check(blocks(image) >= 4 * MIB, f"only {blocks(image)} bytes are allocated")
    same_bytes(client.read(0, 4 * MIB), bytes(4 * MIB), "the zeroes")
    equal(client.command(CMD_WRITE_ZEROES, 0, 4 * MIB), 0, "error of zeroing")
    client.flush()
    check(blocks(image) < MIB, f"{blocks(image)} bytes are still allocated")
    client.disconnect()


# libnbd

def test_libnbd_reads(t):
    source = sparse_image(t)
    data = read_file(source)
    server = t.serve(source, "-r", "-f", "raw")

    def sha(at, length):
        return hashlib.sha256(data[at:at + length]).hexdigest()

    small, hole, whole, unfragmented, all_hole = libnbd(
        server, ["pread_structured", 4096, MIB], ["pread_structured", 4096, 0],
        ["pread_structured", 16 * MIB, 0], ["pread_structured", 4 * MIB, 0, DF],
        ["pread_structured", 10 * MIB, 4 * MIB, DF])
    equal(small, {"chunks": [[MIB, 4096, "data"]], "digest": sha(MIB, 4096)}, "a small read")
    equal(hole, {"chunks": [[0, 4096, "hole"]], "digest": sha(0, 4096)}, "a small read of a hole")
    equal(whole["digest"], sha(0, 16 * MIB), "digest of the whole")
    kinds = [[length, 0 if kind == "data" else 3] for _, length, kind in whole["chunks"]]
    equal(sum(length for length, flags in kinds if flags), 14 * MIB - 64 * KIB, "bytes of holes")
    equal(unfragmented, {"chunks": [[0, 4 * MIB, "data"]], "digest": sha(0, 4 * MIB)}, "with DF")
    equal(all_hole["chunks"], [[4 * MIB, 10 * MIB, "hole"]], "a hole with DF")


def test_libnbd_status(t):
    server = t.serve(sparse_image(t), "-r", "-f", "raw", "-A")
    both, one, odd, refused = libnbd(
        server, ["block_status", 16 * MIB, 0], ["block_status", 15 * MIB - 5, MIB + 5, REQ_ONE],
        ["block_status", 2, MIB - 1], ["block_status", 1, 16 * MIB], contexts=[ALLOCATION, DEPTH])
    equal(both["ok"], {ALLOCATION: SPARSE_MAP, DEPTH: [[16 * MIB, 1]]}, "both contexts")
    equal(one["ok"], {ALLOCATION: [[2 * MIB - 5, 0]], DEPTH: [[15 * MIB - 5, 1]]}, "one extent")
    equal(odd["ok"][ALLOCATION], [[1, 3], [1, 0]], "odd bytes")
    equal(refused["errno"], "EINVAL", "past the end")


def test_libnbd_commands(t):
    image = t.path("disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, 4 * MIB)
    server = t.serve(image, "-f", "qcow2", "--discard=unmap")
    results = libnbd(
        server, ["pwrite", "\x11" * 8192, 0], ["pwrite", "\x22" * 512, 4096, FUA], ["zero", MIB, MIB, FAST_ZERO],
        ["zero", 100, 10, FAST_ZERO], ["zero", 100, 10], ["trim", MIB, 2 * MIB], ["cache", 4 * MIB, 0],
        ["flush"], ["pread", 8192, 0], ["zero", 4096, 0, NO_HOLE | FUA], ["pread", 4096, 0])
    expected = b"\x11" * 10 + bytes(100) + b"\x11" * 3986 + b"\x22" * 512 + b"\x11" * 3584
    equal([r.get("errno") for r in results], [None] * 3 + ["ENOTSUP"] + [None] * 7, "errors")
    equal(results[8]["ok"], hashlib.sha256(expected).hexdigest(), "what is read")
    equal(results[10]["ok"], hashlib.sha256(bytes(4096)).hexdigest(), "what is read in the end")


# Failures in the middle

def broken_qcow2(t):
    """2 MiB of data, of which the 64 KiB at 1 MiB cannot be read: their table entry is impossible."""
    image = t.path("broken.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, 2 * MIB)
    qemu_io(image, "write -P 0x55 0 2M", arguments=("-f", "qcow2"))
    damaged = Qcow2File(image)
    damaged.set_u64(damaged.l2_entry_at(MIB), COPIED | 0x200)
    return damaged.save(image)


def truncated_raw(t):
    return t.file("disk.raw", b"\x55" * (2 * MIB))


def serve_with_a_bad_place(t, image_format):
    """A server that cannot read from 1 MiB on (qcow2: the cluster there)."""
    if image_format == "qcow2":
        return t.serve(broken_qcow2(t), "-r", "-f", "qcow2")
    image = truncated_raw(t)
    server = t.serve(image, "-r", "-f", "raw")
    os.truncate(image, MIB)
    return server


@cases(("raw",), ("qcow2",))
def test_error_in_the_middle(t, image_format):
    server = serve_with_a_bad_place(t, image_format)
    failed, again, good = libnbd(
        server, ["pread_structured", 2 * MIB, 0], ["pread_structured", 2 * MIB, 0, DF],
        ["pread_structured", MIB, 0])
    equal(failed["errno"], "EIO", "error of the read")
    told = [chunk for chunk in failed["chunks"] if chunk[2] == "error"]
    equal([at for at, _, _ in told], [MIB], "places of errors")
    equal(sum(length for _, length, kind in failed["chunks"] if kind == "data"), MIB, "bytes that came before")
    equal(again["errno"], "EIO", "error of the read with DF")
    equal(good["digest"], hashlib.sha256(b"\x55" * MIB).hexdigest(), "what is read afterwards")


@cases(("simple",), ("structured",), ("extended",))
def test_error_in_every_mode(t, mode):
    server = serve_with_a_bad_place(t, "qcow2")
    client = server.client(connect=False).connect(mode=mode)
    for _ in range(3):
        answer = client.ask(CMD_READ, MIB - 64 * KIB, 128 * KIB)
        equal(answer.error, EIO, "error")
        if mode != "simple":
            same_bytes(b"".join(data for _, data in answer.data), b"\x55" * (64 * KIB), "what came before")
        same_bytes(b"".join(d for _, d in client.ask(CMD_READ, MIB + 64 * KIB, 100).data), b"\x55" * 100,
                   "what is behind")
    client.close()


def test_qemu_goes_on_after_an_error(t):
    need("qemu-io")
    server = serve_with_a_bad_place(t, "qcow2")
    done = run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x55 0 1M", "-c", "read 1M 64k", "-c",
               "read -P 0x55 1114112 64k", server.uri, status=None)
    equal(done.stdout.count("Input/output error") + done.stderr.count("Input/output error"), 1, "errors told")
    equal(done.stdout.count("bytes at offset"), 2, "reads that succeed")


# Extended headers, which these clients do not know

def extents_in(payload):
    """(context id, [[length, flags]]) of an extended status chunk."""
    context, count = struct.unpack(">II", payload[:8])
    extents = [list(struct.unpack_from(">QQ", payload, 8 + 16 * i)) for i in range(count)]
    equal(len(payload), 8 + 16 * count, "length of the chunk")
    return context, extents


def test_extended_lengths(t):
    size = 6 * 1024 * GIB
    image = t.sparse_file("huge.raw", size)
    with open(image, "r+b") as file:
        file.seek(5 * GIB)
        file.write(b"x" * 4096)
    server = t.serve(image, "-f", "raw", "--discard=unmap")
    client = server.client(connect=False).connect(mode="extended", contexts=(ALLOCATION.encode(),))
    cookie = client.start(CMD_BLOCK_STATUS, 0, size)
    got, flags, kind, payload = client.chunk()
    equal((got, flags, kind), (cookie, 1, 6), "the only chunk")
    equal(extents_in(payload), (0, [[5 * GIB, 3], [4096, 0], [size - 5 * GIB - 4096, 3]]), "status")
    equal(client.ask(CMD_CACHE, 0, size).error, 0, "error of CACHE")
    equal(client.ask(CMD_TRIM, 1, size - 1).error, 0, "error of TRIM")
    equal(client.ask(CMD_WRITE, 7, 5, payload=b"hello").error, 0, "error of WRITE")
    equal(client.ask(CMD_WRITE_ZEROES, 0, 5 * GIB, FAST_ZERO).error, 0, "error of WRITE_ZEROES")
    client.start(CMD_BLOCK_STATUS, 0, size)
    equal(extents_in(client.chunk()[3]), (0, [[size, 3]]), "status in the end")
    client.close()


if __name__ == "__main__":
    main()
