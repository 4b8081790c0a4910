#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
qcow2 images on a file system that is full: writes fail with ENOSPC and later ones may succeed, FLUSH
succeeds, and what was acknowledged is there after a restart.
"""
import os
import random
import subprocess

from evnbd_test import KIB, MIB, cases, check, equal, main, need, qemu_img, qemu_img_check, \
    same_bytes, skip
from nbd_raw import CMD_FLUSH, CMD_TRIM, CMD_WRITE, ENOSPC

SIZE, BLOCK = 64 * MIB, 16 * KIB
ROOM = 3 * MIB
IMAGES = {
    "default": "",
    "c4k": "cluster_size=4k",
    "c512": "cluster_size=512",
    "extended": "extended_l2=on,cluster_size=16k",
}


def small_file_system(t):
    """A directory of ROOM bytes."""
    need("mount", "umount")
    directory = t.path("small")
    os.mkdir(directory)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", directory],
                          check=False, capture_output=True)
    if done.returncode:
        skip("a small file system cannot be mounted here")
    return directory


def fill(client, disk, rng):
    """Writes all over the disk, until a hundred writes found no room. Keeps in `disk` what is there."""
    full = 0
    while full < 100:
        offset = rng.randrange(SIZE // BLOCK) * BLOCK
        data = rng.randbytes(BLOCK)
        if full % 10 == 9:
            equal(client.command(CMD_TRIM, offset, BLOCK), 0, "TRIM")
            client.flush()
            disk.pop(offset, None)
        error = client.command(CMD_WRITE, offset, BLOCK, payload=data)
        check(error in (0, ENOSPC), f"WRITE ended with error {error}")
        full += error == ENOSPC
        # Of a write that failed, any part may be there.
        disk[offset] = data if error == 0 else client.read(offset, BLOCK)
        if rng.randrange(50) == 0:
            equal(client.command(CMD_FLUSH), 0, "FLUSH")
    equal(client.command(CMD_FLUSH), 0, "FLUSH on the full disk")


def compare(client, disk):
    for offset, data in disk.items():
        same_bytes(client.read(offset, BLOCK), data, f"the bytes at {offset}")


def play(t, image, disk):
    server = t.serve(image, "-f", "qcow2", "--discard=unmap")
    with server.client() as client:
        fill(client, disk, random.Random(1))
        compare(client, disk)
    # Whatever is not on the disk by now is lost.
    server.kill()
    t.servers.remove(server)
    qemu_img_check(image)
    server = t.serve(image, "-f", "qcow2")
    with server.client() as client:
        compare(client, disk)
    server.stop()
    equal(server.log, "", "log")


@cases(*IMAGES)
def test_acknowledged_is_kept(t, name):
    directory = small_file_system(t)
    try:
        image = os.path.join(directory, "disk.qcow2")
        options = ["-o", IMAGES[name]] if IMAGES[name] else []
        qemu_img("create", "-q", "-f", "qcow2", *options, image, str(SIZE))
        play(t, image, {})
    finally:
        for server in t.servers:
            server.kill()
        subprocess.run(["umount", directory], check=True)


if __name__ == "__main__":
    main()
