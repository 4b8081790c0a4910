#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Temporary overlays (-s, --snapshot-memory): what is written is lost, the image stays as it was."""
import os
import signal
import subprocess

from evnbd_test import KIB, MIB, cases, check, content, digest, equal, main, need, qemu_img, qemu_io, \
    refused, run, same_bytes, skip
from nbd_raw import CMD_FLUSH, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES

ENOSPC, EPERM = 28, 1
SIZE = 4 * MIB


def make(t, image_format):
    """An image with content 1, and its options."""
    path = t.file("disk.raw", content(1, SIZE))
    if image_format != "raw":
        qemu_img("convert", "-f", "raw", "-O", image_format, path, t.path("disk.img"))
        path = t.path("disk.img")
    return path


def write_error(client, offset, data):
    return client.command(CMD_WRITE, offset, len(data), payload=data)


def temporary(t, name="tmp"):
    """A directory for overlays, and the environment that says so."""
    directory = t.path(name)
    os.makedirs(directory, exist_ok=True)
    return directory, {**os.environ, "TMPDIR": directory}


PLACES = {"file": ["-s"], "memory": ["--snapshot-memory=64M"]}


@cases(*((f, p) for f in ("raw", "qcow2") for p in PLACES))
def test_writes_are_seen_and_lost(t, image_format, place):
    image, (directory, env) = make(t, image_format), temporary(t)
    before = digest(image)
    wanted = bytearray(content(1, SIZE))
    server = t.serve(image, "-f", image_format, *PLACES[place], "-e", "2", env=env)
    with server.client() as one, server.client() as two:
        one.write(MIB - 100, b"a" * 300)
        two.write(0, b"b" * 512)
        equal(one.command(CMD_WRITE_ZEROES, 2 * MIB, 100 * KIB), 0, "WRITE_ZEROES")
        one.flush()
        wanted[MIB - 100:MIB + 200] = b"a" * 300
        wanted[:512] = b"b" * 512
        wanted[2 * MIB:2 * MIB + 100 * KIB] = bytes(100 * KIB)
        same_bytes(two.read_all(), bytes(wanted), "the disk as the other client sees it")
        equal(os.listdir(directory), [], "files with names")
    with server.client() as later:
        same_bytes(later.read_all(), bytes(wanted), "the disk as a later client sees it")
    server.stop()
    equal(server.log, "", "log")
    equal(digest(image), before, "the image afterwards")


@cases("file", "memory")
def test_image_is_open_for_reading_only(t, place):
    image = make(t, "qcow2")
    os.chmod(image, 0o400)
    server = t.serve(image, "-f", "qcow2", *PLACES[place])
    modes = []
    for fd in os.listdir(f"/proc/{server.pid}/fd"):
        if os.readlink(f"/proc/{server.pid}/fd/{fd}") == image:
            with open(f"/proc/{server.pid}/fdinfo/{fd}", encoding="ascii") as lines:
                flags = next(line for line in lines if line.startswith("flags:"))
            modes.append(int(flags.split()[1], 8) & os.O_ACCMODE)
    equal(modes, [os.O_RDONLY], "how the image is open")


def test_two_servers_share_an_image(t):
    image = make(t, "qcow2")
    for mark in (b"x", b"y"):
        t.serve(image, "-f", "qcow2", "-s").client().write(0, mark * 512)
    for server, mark in zip(t.servers, (b"x", b"y")):
        equal(server.client().read(0, 2), mark * 2, "what this server's client wrote")


@cases(1, 511, 3 * KIB + 5)
def test_odd_sizes(t, size):
    image = t.file("disk", content(3, size))
    with t.serve(image, "-f", "raw", "-s").client() as client:
        equal(client.export.size, size, "size")
        client.write(size - 1, b"!")
        same_bytes(client.read_all(), content(3, size)[:-1] + b"!", "disk")


def test_offset(t):
    image = make(t, "raw")
    with t.serve(image, "-f", "raw", "-s", "-o", str(MIB)).client() as client:
        client.write(0, b"w" * 512)
        same_bytes(client.read_all(), b"w" * 512 + content(1, SIZE)[MIB + 512:], "disk")
    t.stop_servers()
    equal(digest(image), digest(t.file("copy", content(1, SIZE))), "the image afterwards")


def test_read_only_needs_no_overlay(t):
    image = make(t, "raw")
    server = t.serve(image, "-f", "raw", "-s", "-r", env={**os.environ, "TMPDIR": "/nowhere"})
    with server.client() as client:
        equal(write_error(client, 0, bytes(512)), EPERM, "a write")
        same_bytes(client.read_all(), content(1, SIZE), "disk")


def test_internal_snapshot_below(t):
    image = make(t, "qcow2")
    qemu_img("snapshot", "-c", "before", image)
    qemu_io(image, "write -P 7 0 1M", arguments=("-f", "qcow2"))
    with t.serve(image, "-f", "qcow2", "-s", "-l", "before").client() as client:
        same_bytes(client.read_all(), content(1, SIZE), "the disk of the snapshot")


def test_image_opts(t):
    image = make(t, "qcow2")
    before = digest(image)
    options = f"driver=qcow2,read-only=on,file.filename={image}"
    with t.serve(options, "--image-opts", "-s").client() as client:
        client.write(0, b"z" * 512)
        same_bytes(client.read_all(), b"z" * 512 + content(1, SIZE)[512:], "disk")
    t.stop_servers()
    equal(digest(image), before, "the image afterwards")


def test_probed_image_may_look_like_another_format(t):
    """Nothing of it reaches the image, so there is neither a warning nor a refusal."""
    server = t.serve(make(t, "raw"), "-s")
    with server.client() as client:
        client.write(0, b"QFI\xfb\0\0\0\3" + bytes(504))
    equal(server.log, "", "log")


def test_kill_leaves_nothing(t):
    image, (directory, env) = make(t, "raw"), temporary(t)
    before = digest(image)
    server = t.serve(image, "-f", "raw", "-s", env=env)
    server.client().write(0, b"k" * MIB)
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    t.servers.remove(server)
    equal(os.listdir(directory), [], "files left behind")
    equal(digest(image), before, "the image afterwards")


def test_where_it_is(t):
    """TMPDIR, but never /tmp: as qemu-nbd."""
    image = make(t, "raw")
    for given, wanted in ((None, "/var/tmp/"), ("/tmp", "/var/tmp/"), ("", "/var/tmp/"),
                          (t.path("d"), t.path("d") + "/")):
        os.makedirs(t.path("d"), exist_ok=True)
        env = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
        server = t.serve(image, "-f", "raw", "-s", env={**env, **({} if given is None else
                                                                  {"TMPDIR": given})})
        links = [os.readlink(f"/proc/{server.pid}/fd/{fd}")
                 for fd in os.listdir(f"/proc/{server.pid}/fd")]
        overlay = [link for link in links if link.endswith(" (deleted)") and "memfd" not in link]
        check(len(overlay) == 1 and overlay[0].startswith(wanted), f"TMPDIR={given}: {links}")
        server.stop()


def test_no_such_directory(t):
    refused(t, make(t, "raw"), "-f", "raw", "-s", env={**os.environ, "TMPDIR": "/nowhere"},
            says=["cannot make a temporary overlay", "'/nowhere' \\(TMPDIR", "No such file"])


def fill(client):
    """Writes until there is no space left; returns how many pieces of 64 KiB were taken."""
    for number in range(SIZE // (64 * KIB)):
        error = write_error(client, number * 64 * KIB, b"f" * 64 * KIB)
        if error:
            equal(error, ENOSPC, "error when the storage is full")
            return number
    raise AssertionError("the storage was never full")


def check_full(server, make_room):
    """The server lives on, shows what was taken, and takes more when there is room again."""
    with server.client() as client:
        taken = fill(client)
        check(taken >= 4, f"only {taken} pieces fit")
        equal(client.read(0, taken * 64 * KIB), b"f" * (taken * 64 * KIB), "what was taken")
        at = (taken + 1) * 64 * KIB
        same_bytes(client.read(at, 64 * KIB), content(1, SIZE)[at:at + 64 * KIB], "what was not")
        equal(client.command(CMD_FLUSH), 0, "FLUSH of what will be lost anyway")
        make_room(client)
        equal(write_error(client, taken * 64 * KIB, b"g" * 64 * KIB), 0,
              "a write when there is room again")
        equal(client.read(taken * 64 * KIB, 64 * KIB), b"g" * (64 * KIB), "what was written then")
    server.stop()
    check("failed" not in server.log, server.log)


def test_memory_is_limited(t):
    def trim(client):
        equal(client.command(CMD_TRIM, 0, 128 * KIB), 0, "TRIM")
        client.flush()
    check_full(t.serve(make(t, "raw"), "-f", "raw", "--snapshot-memory=1M", "--discard=unmap"), trim)


def test_too_little_memory(t):
    refused(t, make(t, "raw"), "-f", "raw", "--snapshot-memory=64k",
            says=["cannot make a temporary overlay", "No space left"])


# In namespaces of its own, a small file system is mounted where the overlay goes, half of it in use.
SMALL = 'mount -t tmpfs -o size=2M small "$TMPDIR" && head -c 1M /dev/zero >"$TMPDIR/used" && exec "$@"'


def test_full_disk(t):
    need("unshare")
    directory, env = temporary(t)
    prefix = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-m", "sh", "-c", SMALL, "sh"]
    if subprocess.run([*prefix, "true"], env=env, capture_output=True, check=False).returncode:
        skip("no file system can be mounted here")
    server = t.serve(make(t, "raw"), "-f", "raw", "-s", "--discard=unmap", prefix=prefix, env=env)
    check_full(server, lambda _: os.unlink(f"/proc/{server.pid}/root{directory}/used"))


def test_what_qemu_nbd_shows(t):
    """The same bytes, size and writability as qemu-nbd -s."""
    need("qemu-nbd", "nbdinfo")
    image = make(t, "qcow2")
    t.serve(image, "-f", "qcow2", "-s")
    for options in ([], ["-r"]):
        ours = t.serve(image, "-f", "qcow2", "-s", *options)
        theirs = run("nbdinfo", "--", "[", "qemu-nbd", "-s", "-f", "qcow2", *options, image, "]")
        mine = run("nbdinfo", ours.uri)
        for key in ("export-size", "is_read_only"):
            lines = [next(line for line in done.stdout.splitlines() if key in line)
                     for done in (mine, theirs)]
            equal(lines[0], lines[1], f"{key} with {options}")


if __name__ == "__main__":
    main()
