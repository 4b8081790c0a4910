#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Images described by options: --image-opts and json: names, compared with qemu-nbd."""
import os
import subprocess

from evnbd_test import HANG, KIB, MIB, cases, check, content, equal, main, need, qemu_img, \
    qemu_io, read_file, refused, same_bytes, wait_for
from nbd_raw import CMD_TRIM, CMD_WRITE, RawClient


def make(t):
    """disk.qcow2 over base.raw; other.raw could be its backing file too."""
    t.file("base.raw", content(1, MIB))
    t.file("other.raw", content(2, MIB))
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", t.path("disk.qcow2"))
    qemu_io(t.path("disk.qcow2"), "write -P 9 64k 64k", arguments=("-f", "qcow2"))


# name: (options of the program, the image); {t} is the directory of the test. Both programs open
# them, and show the same.
TREES = {
    "path": (["--image-opts"], "driver=qcow2,file.driver=file,file.filename={t}/disk.qcow2"),
    "probed": (["--image-opts"], "file.filename={t}/disk.qcow2"),
    "file": (["--image-opts"], "driver=file,filename={t}/base.raw"),
    "window": (["--image-opts"], "driver=raw,offset=4096,size=64k,file.filename={t}/base.raw"),
    "nested": (["--image-opts", "-r"], "driver=raw,offset=1k,file.driver=qcow2,file.file.driver=file,"
                                       "file.file.filename={t}/disk.qcow2"),
    "backing": (["--image-opts"], "driver=qcow2,file.filename={t}/disk.qcow2,backing.driver=raw,"
                                  "backing.file.driver=file,backing.file.filename={t}/other.raw"),
    "backing-probed": (["--image-opts"], "driver=qcow2,file.filename={t}/disk.qcow2,"
                                         "backing.file.filename={t}/other.raw"),
    "no-backing": (["--image-opts"], "driver=qcow2,file.filename={t}/disk.qcow2,backing="),
    "commas": (["--image-opts"], "driver=raw,file.filename={t}/a,,b.raw"),
    "json": ([], 'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{t}/disk.qcow2"}}}}'),
    "json-dotted": ([], 'json:{{"driver":"raw","offset":512,"file.filename":"{t}/base.raw"}}'),
    "json-null": ([], 'json:{{"file":{{"filename":"{t}/disk.qcow2"}},"backing":null}}'),
    "json-as-raw": (["-f", "raw"], 'json:{{"driver":"qcow2","file.filename":"{t}/disk.qcow2"}}'),
    "caches": (["--image-opts"], "driver=qcow2,l2-cache-size=1M,refcount-cache-size=256k,"
                                 "cache.direct=off,cache.no-flush=on,discard=unmap,node-name=top,"
                                 "file.filename={t}/disk.qcow2,file.aio=threads,file.discard=unmap"),
    "qcow2": (["--image-opts"], "driver=qcow2,lazy-refcounts=on,pass-discard-request=on,pass-discard-snapshot=off,"
                                "pass-discard-other=on,overlap-check=constant,cache-size=1M,l2-cache-size=512k,"
                                "l2-cache-entry-size=4096,file.filename={t}/disk.qcow2"),
    "overlap-check": (["--image-opts"], "driver=qcow2,cache-size=1M,overlap-check.template=all," + ",".join(
        f"overlap-check.{name}=off" for name in ("main-header", "active-l1", "active-l2", "refcount-table",
                                                 "refcount-block", "snapshot-table", "inactive-l1", "inactive-l2",
                                                 "bitmap-directory")) + ",file.filename={t}/disk.qcow2"),
    "zeroes": (["--image-opts", "--discard=unmap"],
               "driver=qcow2,detect-zeroes=unmap,file.filename={t}/disk.qcow2"),
    "read-only": (["--image-opts", "-r"], "driver=qcow2,read-only=on,force-share=on,"
                                          "file.filename={t}/disk.qcow2"),
}


def listens(path):
    """Whether a server takes connections: one that comes and goes does not end qemu-nbd."""
    try:
        RawClient(path).close()
        return True
    except OSError:
        return False


def qemu_nbd_content(t, options, image):
    need("qemu-nbd")
    where = t.path("qemu.sock")
    server = subprocess.Popen(["qemu-nbd", "-k", where, *options, image], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: listens(where) or server.poll() is not None, "qemu-nbd")
        check(server.poll() is None, f"qemu-nbd refuses {image}")
        with RawClient(where).connect() as client:
            data = client.read_all()
            client.disconnect()
        equal(server.wait(HANG), 0, "exit status of qemu-nbd")
        return data
    finally:
        server.kill()
        server.communicate()


@cases(*TREES)
def test_trees_mean_what_they_mean_to_qemu(t, name):
    make(t)
    t.file("a,b.raw", content(3, MIB))
    options, image = TREES[name]
    image = image.format(t=t.dir)
    with t.serve(image, *options).client() as client:
        got = client.read_all()
    t.stop_servers()
    same_bytes(got, qemu_nbd_content(t, options, image), name)


# name: (options, image, what both refuse it with)
BAD = {
    "format": (["--image-opts", "-f", "raw"], "driver=raw,file.filename={t}/base.raw",
               "--image-opts and -f are mutually exclusive"),
    "word": (["--image-opts"], "base.raw", "Cannot find|no node"),
    "no-driver": (["--image-opts"], "filename={t}/base.raw", "Must specify either driver or file"),
    "driver": (["--image-opts"], "driver=none,file.filename={t}/base.raw", "Unknown driver 'none'"),
    "key": (["--image-opts"], "driver=raw,foo=1,file.filename={t}/base.raw", "'foo'"),
    "file-key": (["--image-opts"], "driver=raw,file.foo=1,file.filename={t}/base.raw", "'foo'"),
    "bool": (["--image-opts"], "driver=raw,cache.direct=7,file.filename={t}/base.raw",
             "'cache.direct'"),
    "size": (["--image-opts"], "driver=raw,offset=x,file.filename={t}/base.raw", "'offset'"),
    "window": (["--image-opts"], "driver=raw,size=2M,file.filename={t}/base.raw", "2097152"),
    "read-only": (["--image-opts"], "driver=raw,read-only=on,file.filename={t}/base.raw",
                  "Block node is read-only"),
    "force-share": (["--image-opts"], "driver=raw,force-share=on,file.filename={t}/base.raw",
                    "force-share=on can only be used with read-only images"),
    "zeroes": (["--image-opts"], "driver=raw,detect-zeroes=unmap,file.filename={t}/base.raw",
               "setting detect-zeroes to unmap is not allowed"),
    "native": (["--image-opts"], "driver=raw,file.aio=native,file.filename={t}/base.raw",
               "aio=native was specified, but it requires cache.direct=on"),
    "lazy": (["--image-opts"], "driver=qcow2,lazy-refcounts=maybe,file.filename={t}/disk.qcow2", "'lazy-refcounts'"),
    "overlap": (["--image-opts"], "driver=qcow2,overlap-check=bad,file.filename={t}/disk.qcow2", "none, constant"),
    "caches": (["--image-opts"], "driver=qcow2,cache-size=1M,l2-cache-size=2M,file.filename={t}/disk.qcow2",
               "l2-cache-size may not exceed cache-size"),
    "three-caches": (["--image-opts"], "driver=qcow2,cache-size=2M,l2-cache-size=1M,refcount-cache-size=1M,"
                                       "file.filename={t}/disk.qcow2", "may not be set at the same time"),
    "entry": (["--image-opts"], "driver=qcow2,l2-cache-entry-size=128k,file.filename={t}/disk.qcow2", "65536"),
    "json": ([], 'json:{{"driver":', "JSON"),
    "json-empty": ([], "json:{{}}", "Must specify either driver or file"),
    "empty": (["--image-opts"], "", "''"),
}


@cases(*BAD)
def test_what_qemu_refuses_too(t, name):
    make(t)
    before = {file: read_file(t.path(file)) for file in ("base.raw", "disk.qcow2")}
    options, image, says = BAD[name]
    image = image.format(t=t.dir)
    refused(t, image, *options, says=[says]) if image else \
        refused(t, None, *options, "", says=[says])
    need("qemu-nbd")
    done = subprocess.run(["qemu-nbd", "-k", t.path("q.sock"), *options, image], timeout=HANG,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    equal(done.returncode, 1, "exit status of qemu-nbd")
    equal({file: read_file(t.path(file)) for file in before}, before, "the images afterwards")


# What is refused here only, with the reason in the message.
@cases(("twice", "driver=raw,driver=raw,file.filename={t}/base.raw", "'driver' is given twice"),
       ("both", "driver=raw,file=x,file.filename={t}/base.raw", "value and as a parent"),
       ("deep", ".".join(["file"] * 70) + ".filename=x", "nest|deep|level"),
       ("many", "driver=raw" + "".join(f",{'file.' * n}driver=raw" for n in range(1, 12)) +
        f",{'file.' * 12}filename={{t}}/base.raw", "nested"),
       ("below", "driver=raw,file.detect-zeroes=on,file.filename={t}/base.raw",
        "'detect-zeroes' is for the node that is exported"),
       ("name", "driver=qcow2,file.filename={t}/disk.qcow2,backing=base", "'backing'"))
def test_refusals(t, _, image, says):
    make(t)
    refused(t, image.format(t=t.dir), "--image-opts", says=[says])


def test_writes_go_where_the_tree_says(t):
    make(t)
    image = f"driver=raw,offset=64k,size=128k,file.filename={t.path('base.raw')}"
    with t.serve(image, "--image-opts").client() as client:
        client.write(4 * KIB, b"x" * KIB)
        equal(client.command(CMD_WRITE, 128 * KIB, 512, payload=b"y" * 512), 28, "a write past the end")
        client.flush()
    t.stop_servers()
    wanted = bytearray(content(1, MIB))
    wanted[68 * KIB:69 * KIB] = b"x" * KIB
    same_bytes(read_file(t.path("base.raw")), bytes(wanted), "base.raw")


def test_zeroes_are_detected_where_the_options_say(t):
    path = t.file("disk", content(1, MIB))
    image = f"driver=raw,discard=unmap,detect-zeroes=unmap,file.filename={path}"
    with t.serve(image, "--image-opts").client() as client:
        before = os.stat(path).st_blocks
        client.write(0, bytes(512 * KIB))
        check(os.stat(path).st_blocks <= before // 2 + 64, "written zeroes take space")


@cases("on", "off")
def test_what_is_freed_may_stay_in_the_file(t, given_back):
    path = t.path("disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", path, MIB)
    qemu_io(path, "write -P 9 0 1M", arguments=("-f", "qcow2"))
    before = os.stat(path).st_blocks
    image = f"driver=qcow2,discard=unmap,pass-discard-request={given_back},file.filename={path}"
    with t.serve(image, "--image-opts").client() as client:
        equal(client.command(CMD_TRIM, 0, MIB), 0, "TRIM")
        client.flush()
    t.stop_servers()
    equal(os.stat(path).st_blocks < before // 2, given_back == "on", "whether the file became smaller")


def test_a_guessed_format_stays_what_it_is(t):
    path = t.file("disk", content(1, MIB))
    server = t.serve(f"file.filename={path}", "--image-opts")
    check("probing guessed raw" in server.log, server.log)
    with server.client() as client:
        equal(client.command(CMD_WRITE, 0, 512, payload=b"QFI\xfb\0\0\0\3" + bytes(504)), 1,
              "a write that makes a qcow2 image of it")


def test_locks_of_a_tree(t):
    """force-share reads an image that is in use; without it that is refused."""
    make(t)
    t.serve(t.path("disk.qcow2"), "-f", "qcow2")
    image = f"driver=qcow2,file.filename={t.path('disk.qcow2')}"
    refused(t, image, "--image-opts", "-r", says=["another process"])
    with t.serve(image + ",force-share=on", "--image-opts", "-r").client() as client:
        equal(client.read(64 * KIB, 4), b"\x09" * 4, "bytes of the image in use")


if __name__ == "__main__":
    main()
