#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Disks that another NBD server exports, as images and below formats."""
import json
import os

from evnbd_test import (HELPERS, KIB, MIB, SANITIZED, cases, check, content, equal,
                        free_port, main, need, qemu_img, qemu_img_check, read_file, refused,
                        run, same_bytes, skip)
from nbd_raw import CMD_CACHE
from nbd_servers import nbd_server, nbdkit, need_driver, qemu_nbd

SIZE = 5 * MIB
OPERATIONS = 150 if SANITIZED else 300


def make(t):
    need_driver(t)
    return t.file("disk.raw", content(1, MIB) + bytes(2 * MIB) + content(2, SIZE - 3 * MIB))


def below(t, kind, image):
    """A server of the image; evnbd itself is one, too."""
    if kind == "evnbd":
        return t.serve(image, "-f", "raw", "-e", "8", "--discard=unmap")
    if kind == "evnbd-one":
        return t.serve(image, "-f", "raw")
    if kind == "qemu":
        return qemu_nbd(t, image, "--discard=unmap")
    if kind == "nbdkit":
        return nbdkit(t, "file", image)
    if kind == "nbdkit-plain":
        return nbdkit(t, "--filter=nozero", "--filter=noextents", "file", image)
    if kind == "nbdkit-blocks":
        return nbdkit(t, "--filter=blocksize-policy", "file", image, "blocksize-minimum=512",
                      "blocksize-maximum=64k", "blocksize-error-policy=error")
    return nbd_server(t, image)


KINDS = ("evnbd", "evnbd-one", "qemu", "nbdkit", "nbdkit-plain", "nbdkit-blocks", "nbd-server")


def uri_of(server):
    return server.uri.replace("///", "///disk", 1) if getattr(server, "export", "") == "disk" else server.uri


def random_writes(t, uri, model, seed, clients=3):
    program = os.path.join(HELPERS, "random_writes")
    if not os.path.exists(program):
        skip("random_writes was not built")
    run(program, uri, model, clients, 8, OPERATIONS, seed)
    return read_file(model)


@cases(*KINDS)
def test_random_writes(t, kind):
    """Reads, writes, zeroes and trims of three clients come to the file below."""
    disk = make(t)
    model = t.file("model", read_file(disk))
    server = below(t, kind, disk)
    front = t.serve(uri_of(server), "-f", "raw", "-e", "3", "--discard=unmap")
    wanted = random_writes(t, front.uri, model, 5)
    with front.client() as client:
        same_bytes(client.read_all(), wanted, "the export")
    front.stop()
    server.stop()
    same_bytes(read_file(disk), wanted, "the file")


@cases("evnbd", "qemu", "nbdkit")
def test_sparse_map(t, kind):
    """The holes of the remote disk are those of the export."""
    disk = t.sparse_file("disk.raw", SIZE)
    need_driver(t)
    with open(disk, "r+b") as file:
        for at in (64 * KIB, MIB, 3 * MIB):
            file.seek(at)
            file.write(content(at, 64 * KIB))
    server = below(t, kind, disk)
    front = t.serve(server.uri, "-f", "raw")

    def extents(uri):
        return json.loads(run("nbdinfo", "--map", "--json", uri).stdout)

    need("nbdinfo")
    wanted = [(e["offset"], e["length"], e["type"] & 2) for e in extents(server.uri)]
    equal([(e["offset"], e["length"], e["type"] & 2) for e in extents(front.uri)], wanted, "the map")
    check(len(wanted) >= 6, f"there are holes: {wanted}")


def test_names(t):
    """Every way to name the same disk."""
    disk = make(t)
    port = free_port()
    unix = t.serve(disk, "-f", "raw", "-e", "8", "-r", export="a b")
    tcp = t.serve(disk, "-f", "raw", "-e", "8", "-r", port=port, export="a b")
    names = [
        ([f"nbd+unix:///a%20b?socket={unix.unix}"]), [f"nbd://127.0.0.1:{port}/a%20b"],
        [f"nbd://localhost:{port}/a%20b"],
        [f"nbd:127.0.0.1:{port}:exportname=a b"], [f"nbd:unix:{unix.unix}:exportname=a b"],
        ["--image-opts", f"driver=nbd,server.type=unix,server.path={unix.unix},export=a b"],
        ["--image-opts", f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=a b,"
                         "connections=1,reconnect-delay=5,open-timeout=5,request-timeout=60"],
        ["--image-opts", f"file.filename=nbd://127.0.0.1:{port}/a%20b"],
        [f'json:{{"driver":"nbd","host":"127.0.0.1","port":"{port}","export":"a b"}}'],
    ]
    wanted = read_file(disk)
    for words in names:
        front = t.serve(None, "-r", *words)
        with front.client() as client:
            same_bytes(client.read_all(), wanted, f"the disk by the name {words}")
        front.stop()
    tcp.stop()


BAD = {
    "nowhere": (["nbd+unix:///?socket=/nowhere/x"], ["/nowhere/x", "No such file"]),
    "scheme": (["nbd://host/?socket=/x"], ["socket' goes with"]),
    "old": (["nbd:host"], ["nbd:HOST:PORT"]),
    "ipv6": (["nbd:::1:10809"], [r"nbd:\[::1\]"]),
    "no-path": (["nbd:unix:"], ["path of the socket is missing"]),
    "two": (["--image-opts", "driver=nbd,host=h,path=/p"], ["path and host may not"]),
    "none": (["--image-opts", "driver=nbd"], ["one of path and host"]),
    "name-and-more": (["--image-opts", "driver=nbd,filename=nbd://h,export=x"], ["at the same time"]),
    "type": (["--image-opts", "driver=nbd,server.type=vsock,host=h"], ["server.type", "vsock", "inet"]),
    "type-needs": (["--image-opts", "driver=nbd,server.type=unix,host=h"], ["server.type=unix needs server.path"]),
    "long": ([f"nbd+unix:///?socket=/{'x' * 120}"], ["121 bytes", "107"]),
    "connections": (["--image-opts", "driver=nbd,host=h,connections=17"], ["connections=17", "1 to 16"]),
    "no-connections": (["--image-opts", "driver=nbd,host=h,connections=0"], ["connections=0"]),
    "delay": (["--image-opts", "driver=nbd,host=h,reconnect-delay=99999999"], ["reconnect-delay=99999999"]),
    "hostname": (["--image-opts", "driver=nbd,host=h,tls-hostname=x"], ["tls-hostname goes with tls-creds"]),
    "creds": (["--image-opts", "driver=nbd,host=h,tls-creds=x"], ["No TLS credentials with id 'x'"]),
    "unknown": (["--image-opts", "driver=nbd,host=h,exprot=x"], ["exprot", "export"]),
}


@cases(*BAD)
def test_bad_names(t, name):
    need_driver(t)
    words, says = BAD[name]
    refused(t, None, "-r", *words, says=says)


def test_refused_export(t):
    """What the server says is told, with the name of the disk."""
    disk = make(t)
    server = t.serve(disk, "-f", "raw", "-r", "-e", "4", export="there")
    uri = server.uri.replace("there", "other")
    refused(t, uri, "-f", "raw", "-r", says=["other", "unknown|not (found|known|available)|no export|requested"])
    refused(t, server.uri, "-f", "raw", says=["there", "read-only"])


def test_cache_is_passed_on(t):
    """CACHE moves no data: the server is asked to have it near."""
    disk = make(t)
    log = t.path("log")
    server = nbdkit(t, "--filter=log", "file", disk, f"logfile={log}")
    front = t.serve(server.uri, "-f", "raw", "-r")
    with front.client() as client:
        equal(client.command(CMD_CACHE, 4096, 100 * KIB), 0, "CACHE")
    front.stop()
    text = read_file(log).decode()
    check("Cache" in text and "offset=0x1000" in text, text)
    check(" Read " not in text, text)


def test_qcow2_over_nbd(t):
    """A format is found, read and written over NBD, and its image stays sound."""
    need_driver(t)
    image = t.path("disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, "4M")
    with open(image, "r+b") as file:  # an export does not grow
        file.truncate(8 * MIB)
    model = t.file("model", bytes(4 * MIB))
    server = qemu_nbd(t, image)
    front = t.serve(server.uri, "-e", "3", "--discard=unmap")
    wanted = random_writes(t, front.uri, model, 6)
    front.stop()
    server.stop()
    qemu_img_check(image)
    raw = t.path("out.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    same_bytes(read_file(raw), wanted, "the image")


@cases("name", "options")
def test_probing_keeps_the_connection(t, how):
    """A server that ends with its first client still serves the disk whose format was looked for."""
    need_driver(t)
    need("nbdkit")
    image = t.path("disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    server = nbdkit(t, "--filter=exitlast", "file", image)
    words = [server.uri] if how == "name" else ["--image-opts", f"file.filename={server.uri}"]
    front = t.serve(None, "-r", *words)
    with front.client() as client:
        equal(client.export.size, MIB, "size of the disk")


@cases("options", "policy")
def test_backing_over_nbd(t, how):
    """The backing file of a local image is a remote disk, when options or the policy say so."""
    disk = make(t)
    server = qemu_nbd(t, disk, "-r")
    top = t.path("top.qcow2")
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", server.uri, "-F", "raw", top, str(SIZE))
    refused(t, top, "-f", "qcow2", says=["nbd", "only plain paths"])
    if how == "policy":
        front = t.serve(top, "-f", "qcow2", "--backing-policy=any")
    else:
        front = t.serve(f"driver=qcow2,file.filename={top},backing.driver=raw,backing.file.filename={server.uri}",
                        "--image-opts")
    wanted = bytearray(read_file(disk))
    wanted[1000:6000] = b"x" * 5000
    with front.client() as client:
        client.write(1000, b"x" * 5000)
        same_bytes(client.read_all(), bytes(wanted), "the disk over the remote one")
    front.stop()
    qemu_img_check(top)
    same_bytes(read_file(disk), content(1, MIB) + bytes(2 * MIB) + content(2, SIZE - 3 * MIB), "the remote disk")


def test_remote_image_names_no_local_file(t):
    """An image on a server is in no directory: what it names by a relative path is not opened."""
    need_driver(t)
    t.file("base.raw", content(3, MIB))
    top = t.path("top.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top)
    server = qemu_nbd(t, top, "-r")
    refused(t, server.uri, "-f", "qcow2", "-r", says=["base.raw", "no directory of this machine"], cwd=t.dir)


if __name__ == "__main__":
    main()
