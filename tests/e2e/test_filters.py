#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Filters in --image-opts, with real clients. What each does in detail is tested in tests/unit."""
import json
import time

from evnbd_test import KIB, MIB, cases, check, content, equal, main, need, qemu_img, qemu_img_check, \
    qemu_io, read_file, refused, run, same_bytes
from nbd_raw import CMD_WRITE

RAW = "file.driver=raw,file.file.filename={t}/disk.raw"
QCOW2 = "file.driver=qcow2,file.file.filename={t}/disk.qcow2"


def make(t):
    """disk.raw, and disk.qcow2 over it, which has 64 KiB of its own."""
    t.file("disk.raw", content(1, MIB))
    qemu_img("create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", t.path("disk.qcow2"))
    qemu_io(t.path("disk.qcow2"), "write -P 9 64k 64k", arguments=("-f", "qcow2"))


def serve(t, options, *more):
    return t.serve(options.format(t=t.dir), "--image-opts", *more)


# Filters that show the disk as it is and take writes.
PASSING = {
    "delay": "driver=delay,flush-ms=1," + QCOW2,
    "error": "driver=error,operation=read,offset=1G," + QCOW2,
    "two": "driver=delay,file.driver=error,file.operation=write,file.offset=1G,"
           "file.file.driver=qcow2,file.file.file.filename={t}/disk.qcow2",
}


@cases(*PASSING)
def test_clients_see_the_disk(t, name):
    need("nbdinfo", "qemu-io")
    make(t)
    server = serve(t, PASSING[name], "-A")
    info = json.loads(run("nbdinfo", "--json", server.uri).stdout)
    equal(info["exports"][0]["export-size"], MIB, "size of the export")
    extents = json.loads(run("nbdinfo", "--json", "--map=qemu:allocation-depth", server.uri).stdout)
    equal([(e["length"], e["type"]) for e in extents],
          [(64 * KIB, 2), (64 * KIB, 1), (MIB - 128 * KIB, 2)], "allocation depth")
    qemu_io(server.uri, "read -P 9 64k 64k", "write -P 5 300k 100k", "write -z 500k 10k", "discard 0 64k",
            "flush", "read -P 5 300k 100k", "read -P 0 500k 10k", arguments=("-f", "raw"))
    wanted = bytearray(content(1, MIB))
    wanted[64 * KIB:128 * KIB] = b"\x09" * 64 * KIB
    wanted[300 * KIB:400 * KIB] = b"\x05" * 100 * KIB
    wanted[500 * KIB:510 * KIB] = bytes(10 * KIB)
    with server.client() as client:
        same_bytes(client.read_all(), bytes(wanted), "the disk")
    t.stop_servers()
    qemu_img_check(t.path("disk.qcow2"))


def test_a_format_grows_through_filters(t):
    make(t)
    server = serve(t, "driver=qcow2,file.driver=delay,file.file.filename={t}/disk.qcow2")
    with server.client() as client:
        client.write(0, content(2, MIB))
        client.flush()
    t.stop_servers()
    qemu_img_check(t.path("disk.qcow2"))
    raw = t.path("copy.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", t.path("disk.qcow2"), raw)
    same_bytes(read_file(raw), content(2, MIB), "the disk")


def test_a_delay_is_felt(t):
    make(t)
    with serve(t, "driver=delay,read-ms=300," + RAW).client() as client:
        begin = time.monotonic()
        same_bytes(client.read(0, 4 * KIB), content(1, MIB)[:4 * KIB], "what was read")
        check(time.monotonic() - begin >= 0.3, "the read did not wait")


def test_errors_reach_clients(t):
    need("qemu-io")
    make(t)
    server = serve(t, "driver=error,operation=write,errno=ENOSPC,after=1," + RAW)
    with server.client() as client:
        client.write(0, b"x" * 512)
        equal(client.command(CMD_WRITE, 0, 512, payload=b"y" * 512), 28, "the second write")
        equal(client.read(0, 1), b"x", "what the failed write left")
    done = qemu_io(server.uri, "write 0 4k", arguments=("-f", "raw"), status=1)
    check("No space left on device" in done.stdout + done.stderr, done.stdout + done.stderr)


@cases(("no-driver", "driver=delay,file.filename={t}/disk.raw", "file.driver=raw, or"),
       ("no-file", "driver=error,operation=read", "needs to know the driver of its 'file'"),
       ("delay", "driver=delay,read-ms=x," + RAW, "'read-ms' of driver 'delay'"),
       ("delay-key", "driver=delay,read=1," + RAW, "'read'"),
       ("operation", "driver=error,operation=erase," + RAW, "must be one of read, write, zero"),
       ("below", "driver=raw,file.driver=error,file.foo=1,file.file.filename={t}/disk.raw", "'foo'"))
def test_refusals(t, _, options, says):
    make(t)
    refused(t, options.format(t=t.dir), "--image-opts", says=[says])


def test_a_filter_is_no_format(t):
    make(t)
    refused(t, t.path("disk.raw"), "-f", "delay", says=["Unknown driver 'delay'"])


if __name__ == "__main__":
    main()
