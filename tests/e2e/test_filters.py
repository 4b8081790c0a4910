#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Filters in --image-opts, with real clients. What each does in detail is tested in tests/unit."""
import json
import subprocess
import time

from evnbd_test import HANG, KIB, MIB, cases, check, content, equal, main, need, qemu_img, qemu_img_check, \
    qemu_io, read_file, refused, run, same_bytes
from nbd_raw import CMD_READ, CMD_WRITE

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
    "cache": "driver=cache,limit=128k,block-size=4k," + QCOW2,
    "delay": "driver=delay,flush-ms=1," + QCOW2,
    "detect-zeroes": "driver=detect-zeroes," + QCOW2,
    "error": "driver=error,operation=read,offset=1G," + QCOW2,
    "two": "driver=delay,file.driver=error,file.operation=write,file.offset=1G,"
           "file.file.driver=qcow2,file.file.file.filename={t}/disk.qcow2",
    "throttle": "driver=throttle,limits.iops-total=1000000,limits.bps-write=1T," + QCOW2,
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


def test_bitmaps_below_a_filter(t):
    make(t)
    qemu_img("bitmap", "--add", "-g", "64k", t.path("disk.qcow2"), "b0")
    server = serve(t, "driver=throttle," + QCOW2, "-B", "b0")
    with server.client() as client:
        client.write(128 * KIB, b"x")
    extents = json.loads(run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b0", server.uri).stdout)
    equal([(e["length"], e["type"]) for e in extents][:2], [(128 * KIB, 0), (64 * KIB, 1)], "bitmap")


def test_copy_on_read_copies(t):
    """What was read does not need the backing file any more."""
    make(t)
    server = serve(t, "driver=copy-on-read," + QCOW2, "-A")
    wanted = bytearray(content(1, MIB))
    wanted[64 * KIB:128 * KIB] = b"\x09" * 64 * KIB
    with server.client() as client:
        same_bytes(client.read_all(), bytes(wanted), "the disk")
    extents = json.loads(run("nbdinfo", "--json", "--map=qemu:allocation-depth", server.uri).stdout)
    equal([(e["length"], e["type"]) for e in extents], [(MIB, 1)], "allocation depth")
    t.stop_servers()
    qemu_img_check(t.path("disk.qcow2"))
    t.file("disk.raw", bytes(MIB))
    raw = t.path("copy.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", t.path("disk.qcow2"), raw)
    same_bytes(read_file(raw), bytes(wanted), "the disk without its backing file")


def test_a_throttle_is_felt(t):
    make(t)
    with serve(t, "driver=throttle,limits.bps-read=1M," + RAW).client() as client:
        begin = time.monotonic()
        for _ in range(3):
            same_bytes(client.read(0, 256 * KIB), content(1, MIB)[:256 * KIB], "what was read")
        check(time.monotonic() - begin >= 0.25, "the reads did not wait")


def test_null(t):
    need("nbdinfo", "qemu-io")
    server = serve(t, "driver=null-co,size=3G,read-zeroes=on")
    extents = json.loads(run("nbdinfo", "--json", "--map", server.uri).stdout)
    equal([(e["length"], e["type"]) for e in extents], [(3 << 30, 3)], "the map")
    qemu_io(server.uri, "write -P 5 1G 1M", "read -P 0 1G 1M", "discard 0 1G", "flush",
            arguments=("-f", "raw"))


def test_a_partition(t):
    """The tree shows what --partition exports."""
    need("sfdisk")
    image = t.file("parts.raw", content(3, 4 * MIB))
    subprocess.run(["sfdisk", "-q", image], input="label: gpt\nstart=2048,size=1M,name=one\nname=two\n", text=True,
                   check=True, timeout=HANG, capture_output=True)
    with t.serve(image, "-f", "raw", "-P", "label=two").client() as client:
        wanted = client.read_all()
    t.stop_servers()
    disk = f"file.driver=raw,file.file.filename={image}"
    for choice in ("2", "label=two"):
        with serve(t, f"driver=partition,partition={choice},{disk}").client() as client:
            same_bytes(client.read_all(), wanted, choice)
        t.stop_servers()
    with serve(t, f"driver=throttle,file.driver=partition,file.partition=1,"
                  f"file.file.driver=raw,file.file.file.filename={image}").client() as client:
        client.write(0, b"first")
    t.stop_servers()
    equal(read_file(image)[MIB:MIB + 5], b"first", "the start of partition 1")
    refused(t, f"driver=partition,partition=9,{disk}", "--image-opts", says=["Could not find partition 9"])
    refused(t, f"driver=partition,partition=x,{disk}", "--image-opts", says=["Invalid partition 'x'"])
    refused(t, f"driver=partition,{disk}", "--image-opts", says=["needs the option 'partition'"])


def test_a_delay_is_felt(t):
    make(t)
    with serve(t, "driver=delay,read-ms=300," + RAW).client() as client:
        begin = time.monotonic()
        same_bytes(client.read(0, 4 * KIB), content(1, MIB)[:4 * KIB], "what was read")
        check(time.monotonic() - begin >= 0.3, "the read did not wait")


@cases(("delay", "driver=delay,read-ms=3600000," + RAW),
       ("throttle", "driver=throttle,limits.bps-read=1," + RAW))
def test_nothing_waits_when_the_server_ends(t, _, options):
    make(t)
    server = serve(t, options, "-e", "2")
    with server.client() as client:
        for _ in range(3):
            client.start(CMD_READ, 0, 4 * KIB)
        with server.client() as other:  # served behind the reads, so these have been taken
            other.write(0, b"x")
        server.stop()


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
       ("cache", "driver=cache,limit=1k," + RAW, "'limit' of driver 'cache' is 1024"),
       ("throttle", "driver=throttle,limits.bps-total=1,x-bps-read=2," + RAW, "cannot be used together"),
       ("throttle-key", "driver=throttle,throttle-group=g0," + RAW, "'throttle-group'"),
       ("copy", "driver=copy-on-read," + RAW, "needs an image with a backing file"),
       ("detect", "driver=detect-zeroes,unmap=on," + RAW, "needs discard=unmap"),
       ("null", "driver=null-co,size=x", "'size'"),
       ("below", "driver=raw,file.driver=error,file.foo=1,file.file.filename={t}/disk.raw", "'foo'"))
def test_refusals(t, _, options, says):
    make(t)
    refused(t, options.format(t=t.dir), "--image-opts", says=[says])


def test_copying_needs_writing(t):
    make(t)
    refused(t, ("driver=copy-on-read," + QCOW2).format(t=t.dir), "--image-opts", "-r",
            says=["leave out --read-only"])


def test_a_filter_is_no_format(t):
    make(t)
    refused(t, t.path("disk.raw"), "-f", "delay", says=["Unknown driver 'delay'"])


if __name__ == "__main__":
    main()
