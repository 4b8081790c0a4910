# SPDX-License-Identifier: BSD-3-Clause
"""The helper program qcow2_tool, and what QEMU and we say of an image that it has changed."""
import json
import os

from evnbd_test import HELPERS, SANITIZER, check, equal, qemu_img, qemu_img_check, read_file, run

TOOL = os.path.join(HELPERS, "..", "tools", "qcow2_tool")


def tool(*words, status=0):
    done = run(TOOL, *words, status=status)
    check(not SANITIZER.search(done.stderr), done.stderr)
    return done


def disk(t, image):
    """All bytes of the disk, as qemu-img reads them."""
    flat = t.path("flat.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, flat)
    return read_file(flat)


def sound(image):
    """No errors and no leaks, by both checks. Returns what ours has found."""
    qemu_img_check(image)
    found = json.loads(tool("check", image).stdout)
    equal((found["corruptions"], found["leaks"]), (0, 0), "corruptions and leaks by our check")
    return found


def qemu_img_deriving(*arguments):
    """QEMU measures its CPU time to choose iterations, and gives up when it was interrupted."""
    for _ in range(60):
        done = qemu_img(*arguments, status=None)
        if "accurate CPU usage" not in done.stderr:
            break
    equal(done.returncode, 0, f"qemu-img {' '.join(map(str, arguments))}: {done.stderr}")
    return done
