#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Ends that come while much is in flight, and disks that fail while they are served."""
import os
import signal

from evnbd_test import (KIB, MIB, cases, check, content, equal, main, qemu_img, qemu_img_check,
                        read_file, run, same_bytes, skip)
from nbd_raw import (CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, EIO, ENOSPC, ESHUTDOWN, Closed,
                     request_bytes)

DATA = content(1, MIB)


def disk(t, name="disk.raw"):
    return t.file(name, DATA)


def new_qcow2(t, size="64M", *options):
    image = t.path("disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", *options, image, size)
    return image


@cases("raw", "qcow2")
def test_stop_with_requests_in_flight(t, image_format):
    """What was answered as written is in the image; what was not is answered with an error or not."""
    size = 16 * MIB
    image = t.sparse_file("disk.raw", size) if image_format == "raw" else new_qcow2(t, size)
    server = t.serve(image, "-f", image_format)
    client = server.client()
    count = 400
    blocks = [content(number, 32 * KIB) for number in range(count)]
    try:
        for number, block in enumerate(blocks):
            client.send(request_bytes(CMD_WRITE, number * 32 * KIB, 32 * KIB, cookie=number) + block)
            if number == count // 2:
                os.kill(server.pid, signal.SIGTERM)
    except Closed:
        pass
    written = []
    try:
        while True:
            cookie, error = client.reply_header()
            check(error in (0, ESHUTDOWN), f"error {error}")
            if error == 0:
                written.append(cookie)
    except Closed:
        pass
    server.wait_end()
    if image_format == "qcow2":
        qemu_img_check(image)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, t.path("disk.raw"))
    data = read_file(t.path("disk.raw"))
    for number in written:
        same_bytes(data[number * 32 * KIB:][:32 * KIB], blocks[number], f"write {number}, answered")
    check(written, "nothing was written before the stop")


def test_stop_with_stalled_clients(t):
    """Neither a handshake that stands still nor half a write holds the end up."""
    server = t.serve(disk(t), "-f", "raw", "-e", "0")
    handshake = server.client(connect=False)
    half = server.client()
    half.send(request_bytes(CMD_WRITE, 0, MIB, cookie=1) + b"x" * 1000)
    unread = server.client()
    unread.send(request_bytes(CMD_READ, 0, MIB, cookie=1) * 30)
    server.stop()
    handshake.recv_until_closed()
    equal(read_file(t.path("disk.raw")), DATA, "the image after half a write")


def test_kill_and_start_again(t):
    """A killed server leaves its socket; the next one takes its place, and what was flushed is there."""
    image = new_qcow2(t, "16M")
    server = t.serve(image, "-f", "qcow2", unix=t.path("s.sock"))
    client = server.client()
    client.write(MIB, DATA)
    client.flush()
    client.send(request_bytes(CMD_WRITE, 4 * MIB, MIB, cookie=99) + DATA)
    server.kill()
    t.servers.remove(server)
    check(os.path.exists(server.unix), "a killed server could not take its socket away")
    with t.serve(image, "-f", "qcow2", unix=t.path("s.sock")).client() as client:
        same_bytes(client.read(MIB, MIB), DATA, "what was flushed")
    t.stop_servers()
    found = qemu_img("check", image, status=None)
    check(found.returncode in (0, 3), f"more than leaks after a kill: {found.stdout}")


def test_image_shrinks(t):
    """Reads past the new end fail; the export keeps its size and what is left is served."""
    image = disk(t)
    with t.serve(image, "-f", "raw").client() as client:
        client.read(0, MIB)
        os.truncate(image, 512 * KIB + 100)
        equal(client.read_error(768 * KIB, 4096)[0], EIO, "error past the new end")
        equal(client.read_error(512 * KIB, 4096)[0], EIO, "error of a read across the new end")
        same_bytes(client.read(0, 512 * KIB), DATA[:512 * KIB], "what is left")
        os.truncate(image, 4 * MIB)
        same_bytes(client.read(0, 512 * KIB), DATA[:512 * KIB], "what is left")
        client.flush()
    t.stop_servers()
    with t.serve(image, "-f", "raw").client() as client:
        equal(client.export.size, 4 * MIB, "size of an image that has grown")


def test_qcow2_shrinks(t):
    image = new_qcow2(t, "8M")
    with t.serve(image, "-f", "qcow2").client() as client:
        client.write(0, DATA * 4)
        client.flush()
        os.truncate(image, 2 * MIB)
        for at in range(0, 4 * MIB, 64 * KIB):
            error, data = client.read_error(at, 64 * KIB)
            check(error in (0, EIO), f"error {error} at {at}")
            check(error or data in (bytes(64 * KIB), (DATA * 4)[at:at + 64 * KIB]), f"invented data at {at}")


def test_image_vanishes(t):
    image = disk(t)
    with t.serve(image, "-f", "raw").client() as client:
        os.unlink(image)
        client.write(100, b"still there")
        client.flush()
        equal(client.read(99, 13), DATA[99:100] + b"still there" + DATA[111:112], "data")
    check(not os.path.exists(image), "the image came back")


def serve_on_a_small_disk(t, image, image_format, *options):
    """Runs evnbd in a mount name space of its own, where small/ is a file system of 5 MiB.

    1 MiB of it is taken by a file `ballast`.  The image is copied to out/ when the server has ended.
    """
    os.mkdir(t.path("small"))
    os.mkdir(t.path("out"))
    small = os.path.join(t.path("small"), os.path.basename(image))
    script = ('mount -t tmpfs -o size=5m none "$1" && cp "$2" "$1" && '
              'head -c 1048576 /dev/zero >"$1/ballast" && shift 2 || exit 77; '
              'out=$1 image=$2; shift 2; "$@"; status=$?; cp "$image" "$out"; exit $status')
    isolate = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if run(*isolate, "sh", "-c", f"mount -t tmpfs -o size=1m none {t.path('small')}",
           status=None).returncode:
        skip("no small file system can be mounted here")
    return t.serve(small, "-f", image_format, *options,
                   prefix=[*isolate, "sh", "-c", script, "sh", t.path("small"), image, t.path("out"), small])


@cases("raw", "qcow2")
def test_disk_full(t, image_format):
    """ENOSPC is told to the client, who can go on; nothing that was written before is hurt."""
    if image_format == "raw":
        image = t.sparse_file("disk.raw", 16 * MIB)
    else:
        image = new_qcow2(t, "16M", "-o", "cluster_size=4k")
    server = serve_on_a_small_disk(t, image, image_format, "--discard=unmap")
    blocks = [content(number, 64 * KIB) for number in range(96)]
    errors = []
    client = server.client()
    for number, block in enumerate(blocks):
        errors.append(client.command(CMD_WRITE, number * 64 * KIB, 64 * KIB, 0, block))
    equal(set(errors), {0, ENOSPC}, "errors of writes until the disk is full")
    written = [number for number, error in enumerate(errors) if error == 0]
    check(len(written) > 20, f"only {len(written)} writes fitted")
    for number in written:
        same_bytes(client.read(number * 64 * KIB, 64 * KIB), blocks[number], f"block {number}")
    client.write(written[0] * 64 * KIB, blocks[-1])
    check(client.command(CMD_FLUSH) in (0, ENOSPC), "error of FLUSH on a full disk")
    # When there is room again all goes on, and what was answered is there.
    os.unlink(f"/proc/{server.pid}/root{t.path('small')}/ballast")
    client.flush()
    again = errors.index(ENOSPC)
    client.write(again * 64 * KIB, blocks[again])
    equal(client.command(CMD_TRIM, written[0] * 64 * KIB, 64 * KIB), 0, "error of TRIM")
    client.flush()
    for number in [*written[1:], again]:
        same_bytes(client.read(number * 64 * KIB, 64 * KIB), blocks[number], f"block {number}")
    client.close()
    server.stop()
    if image_format == "qcow2":
        qemu_img_check(os.path.join(t.path("out"), os.path.basename(image)))


def test_fault_of_a_file_size_limit(t):
    """A limit on the size of files (EFBIG) is an error to the client, not the end of the server."""
    image = new_qcow2(t, "16M")
    server = t.serve(image, "-f", "qcow2", prefix=("prlimit", f"--fsize={2 * MIB}:{2 * MIB}"))
    client = server.client()
    errors = {client.command(CMD_WRITE, at, MIB, 0, DATA) for at in range(0, 8 * MIB, MIB)}
    check(0 in errors and len(errors) > 1, f"errors of writes: {errors}")
    same_bytes(client.read(0, MIB), DATA, "the first write")
    client.close()
    server.stop()
    found = qemu_img("check", image, status=None)
    check(found.returncode in (0, 3), f"the image is damaged: {found.stdout}{found.stderr}")


if __name__ == "__main__":
    main()
