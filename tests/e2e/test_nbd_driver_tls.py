#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Disks of NBD servers over TLS, by certificates and by pre-shared keys."""
import os

from evnbd_test import (KIB, MIB, cases, content, equal, free_port, main, read_file, refused, same_bytes, wait_for,
                        write_file)
from nbd_raw import CMD_READ, EIO
from nbd_servers import need_driver
from test_process import Background
from tls_pki import Pki, need_tls, psk_file


def disk_of(t):
    need_driver(t)
    need_tls(t)
    return t.file("disk", content(1, MIB))


def use(t, disk, *words):
    """The disk is read and written through another evnbd."""
    front = t.serve(None, *words)
    with front.client() as client:
        same_bytes(client.read_all(), read_file(disk), "the disk")
        client.write(5 * KIB, b"over TLS" * KIB)
        client.flush()
        same_bytes(client.read(0, 64 * KIB), read_file(disk)[:64 * KIB], "the start of the disk")
    front.stop()


def psk_folder(t, **users):
    folder = t.path(f"psk{t.number()}")
    os.mkdir(folder)
    os.rename(psk_file(t, "keys.psk", **users), os.path.join(folder, "keys.psk"))
    return folder


def psk_object(folder, *more):
    return ["--object", ",".join([f"tls-creds-psk,id=c,endpoint=client,dir={folder}", *more])]


def test_psk(t):
    """Keys by an object, by its default name too, and by a URI."""
    disk = disk_of(t)
    folder = psk_folder(t, alice="0011223344556677", qemu="8899aabbccddeeff")
    server = t.serve(disk, "-f", "raw", "-e", "8", f"--tls-psk={folder}/keys.psk", port=free_port())
    where = f"driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={server.port},file.tls-creds=c"
    use(t, disk, *psk_object(folder, "username=alice"), "--image-opts", where)
    use(t, disk, *psk_object(folder), "--image-opts", where)
    use(t, disk, "-f", "raw", f"nbds://alice@127.0.0.1:{server.port}/?tls-psk-file={folder}/keys.psk")
    refused(t, None, *psk_object(folder, "username=nobody"), "--image-opts", where, says=["no key of the user"])
    refused(t, None, *psk_object(psk_folder(t, qemu="ffffffffffffffff")), "--image-opts", where, says=["127.0.0.1", "TLS|handshake"])
    refused(t, f"nbd://127.0.0.1:{server.port}", "-f", "raw", says=["TLS"])


def test_psk_over_unix(t):
    disk = disk_of(t)
    folder = psk_folder(t, qemu="8899aabbccddeeff")
    server = t.serve(disk, "-f", "raw", "-e", "8", f"--tls-psk={folder}/keys.psk")
    use(t, disk, *psk_object(folder), "--image-opts",
        f"driver=raw,file.driver=nbd,file.path={server.unix},file.tls-creds=c")


def x509_object(folder, *more, kind="x509"):
    return ["--object", ",".join([f"tls-creds-{kind},id=c,endpoint=client,dir={folder}", *more])]


def serve_x509(t, **folder):
    disk, pki = disk_of(t), Pki(t)
    server = t.serve(disk, "-f", "raw", "-e", "8", f"--tls-certificates={pki.folder(**folder)}",
                     "--tls-verify-peer", port=free_port())
    return disk, pki, server


def test_certificates(t):
    """Both sides prove who they are."""
    disk, pki, server = serve_x509(t)
    client = pki.folder("client")
    where = f"driver=raw,file.driver=nbd,file.host=localhost,file.port={server.port},file.tls-creds=c"
    use(t, disk, *x509_object(client), "--image-opts", where)
    use(t, disk, *x509_object(client), "--image-opts", where + ",file.tls-hostname=localhost")
    use(t, disk, "-f", "raw", f"nbds://localhost:{server.port}/?tls-certificates={client}")
    refused(t, None, *x509_object(client), "--image-opts", where + ",file.tls-hostname=elsewhere",
            says=["tls-hostname=elsewhere is not supported", "localhost"])


@cases("other-ca", "other-name")
def test_wrong_server(t, what):
    """A server that does not prove to be the one that is meant is not used."""
    lines = ("tls_www_server", "signing_key", 'dns_name = "elsewhere.example"')
    _, pki, server = serve_x509(t, **({"lines": lines, "name": "elsewhere.example"} if what == "other-name" else {}))
    client = pki.folder("client")
    if what == "other-ca":
        os.replace(Pki(t, "other").ca, os.path.join(client, "ca-cert.pem"))
    where = f"driver=raw,file.driver=nbd,file.host=localhost,file.port={server.port},file.tls-creds=c"
    refused(t, None, *x509_object(client, "sanity-check=off"), "--image-opts", where,
            says=["cannot open|Failed to open", "nbds://localhost", "perhaps the server's certificate is not of"])
    front = t.serve(None, *x509_object(client, "sanity-check=off", "verify-peer=off"), "--image-opts", where)
    front.stop()


@cases("no-directory", "empty-directory", "a-file", "ca-is-a-directory", "relative", "none")
def test_no_ca(t, what):
    """Nobody is believed to be the server where there is no certificate to verify it by."""
    _, _, server = serve_x509(t)
    folder = t.path("trust")
    if what == "a-file":
        write_file(folder, b"no directory")
    elif what != "no-directory":
        os.makedirs(os.path.join(folder, "ca-cert.pem" if what == "ca-is-a-directory" else ""))
    where = {"relative": "?tls-certificates=no/such/directory", "none": ""}.get(what, f"?tls-certificates={folder}")
    refused(t, f"nbds://localhost:{server.port}/{where}", "-f", "raw",
            says=["TLS needs credentials" if what == "none" else "cannot be verified.*ca-cert.pem"])


@cases("impostor", "ca-vanishes", "same-server")
def test_server_is_verified_again(t, what):
    """--fork leaves the directory; a later server at the address has to prove itself all the same."""
    lines = ("tls_www_server", "signing_key", 'dns_name = "localhost"')
    disk = disk_of(t)
    pki, other = Pki(t), Pki(t, "other")
    client, port = pki.folder("client"), free_port()
    words = ("-f", "raw", "-e", "8")
    server = t.serve(disk, *words, f"--tls-certificates={pki.folder(lines=lines)}", port=port)
    where = f"nbds://localhost:{port}/?tls-certificates={os.path.basename(client)}"
    front = Background(t, where, "-t", "-v", "-f", "raw", cwd=os.path.dirname(client))
    with front.client() as peer:
        same_bytes(peer.read(0, KIB), read_file(disk)[:KIB], "the disk")
        server.stop()
        if what == "ca-vanishes":
            os.unlink(os.path.join(client, "ca-cert.pem"))
        signer = other if what == "impostor" else pki
        t.serve(disk, *words, f"--tls-certificates={signer.folder(lines=lines)}", port=port)
        expected = {"impostor": "certificate verification", "ca-vanishes": "cannot be verified", "same-server": "connected to 'nbds"}[what]
        wait_for(lambda: expected in front.log, "a word about the new server")
        if what == "same-server":
            same_bytes(peer.read(0, KIB), read_file(disk)[:KIB], "the disk")
        else:
            equal(peer.command(CMD_READ, 0, KIB), EIO, "a read of an unknown server")


def test_what_cannot_be_done(t):
    """Instead of doing less than was asked for, the driver refuses."""
    disk_of(t)
    pki = Pki(t)
    client = pki.folder("client")
    unix = "driver=nbd,path=/nowhere,tls-creds=c"
    refused(t, None, *x509_object(client), "--image-opts", unix, says=["behind a Unix socket cannot be verified"])
    refused(t, None, *x509_object(client, "priority=NORMAL"), "--image-opts", unix,
            says=["credentials 'c'", "'priority' is not supported"])
    refused(t, None, *x509_object(client, "passwordid=p"), "--object", "secret,id=p,data=x", "--image-opts", unix,
            says=["'passwordid' is not supported"])
    refused(t, None, "--object", "tls-creds-anon,id=c,endpoint=client", "--image-opts", unix,
            says=["anonymous TLS is not supported"])
    refused(t, None, "--object", f"tls-creds-x509,id=c,endpoint=server,dir={pki.folder()}", "--image-opts", unix,
            says=["Expected TLS credentials for a client endpoint"])
    refused(t, None, "--object", "secret,id=c,data=x", "--image-opts", unix, says=["is not TLS credentials"])


if __name__ == "__main__":
    main()
