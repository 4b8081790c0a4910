#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""TLS with other people's clients: who gets in, who must not, and credentials that change."""
import os
import re
import shutil
import signal

from evnbd_test import (EVNBD, MIB, cases, check, content, equal, free_port, main, need, qemu_img, qemu_io,
                        read_file, refused, refused_command, run, same_bytes, wait_for, write_file)
from nbd_raw import Closed
from tls_pki import BAD_LISTS, FUTURE, KEY, PAST, RSA, Pki, client_context, need_tls, psk_file

SIZE = 4 * MIB
DATA = content(3, SIZE)


def disk(t, name="disk"):
    return t.file(name, DATA)


def tls_uri(server, **query):
    """The URI of a server for libnbd."""
    user = query.pop("user", None)
    where = (f"{user}@" if user else "") + ("" if server.unix else f"{server.host}:{server.port}")
    words = {"socket": server.unix, **query} if server.unix else query
    text = "&".join(f"{key.replace('_', '-')}={value}" for key, value in words.items())
    return f"nbds{'+unix' if server.unix else ''}://{where}/?{text}"


def read_by_libnbd(t, uri):
    need("nbdcopy")
    out = t.path(f"copy{t.number()}")
    run("nbdcopy", uri, out)
    same_bytes(read_file(out), DATA, "what nbdcopy has read")


def refused_by_libnbd(uri, says=""):
    need("nbdinfo")
    done = run("nbdinfo", "--size", uri, status=None)
    check(done.returncode == 1, f"nbdinfo {uri} ended with {done.returncode}: {done.stdout}")
    check(re.search(says, done.stderr, re.I), f"nbdinfo does not say /{says}/: {done.stderr}")


def qemu_arguments(server, creds, **more):
    where = f"path={server.unix}" if server.unix else f"host={server.host},port={server.port}"
    words = ",".join(f"{key.replace('_', '-')}={value}" for key, value in more.items())
    return ["--object", f"{creds},id=tls0,endpoint=client", "--image-opts",
            f"driver=nbd,{where},tls-creds=tls0" + (f",{words}" if words else "")]


# ---- Who gets in ----

@cases(("ecdsa", "unix"), ("rsa", "tcp"))
def test_certificates(t, key, transport):
    pki = Pki(t, key=RSA if key == "rsa" else ("--key-type=ecdsa", "--curve=secp256r1"))
    where = {"host": "127.0.0.1", "port": free_port()} if transport == "tcp" else {}
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", f"--tls-certificates={pki.folder()}",
                     "--tls-verify-peer", **where)
    client = pki.folder("client")
    read_by_libnbd(t, tls_uri(server, tls_certificates=client))
    done = run("nbdinfo", tls_uri(server, tls_certificates=client))
    check("with TLS" in done.stdout, done.stdout)
    wait_for(lambda: "as 'CN=test client'" in server.log, "the log to name the client")
    check("TLS1.3" in server.log and "AES-128-GCM" in server.log, server.log)
    creds = qemu_arguments(server, f"tls-creds-x509,dir={client}", tls_hostname="localhost")
    equal("4 MiB" in qemu_img("info", *creds).stdout, True, "what qemu-img tells of the size")
    qemu_io(creds[-1], "write -P 7 1M 1M", "read -P 7 1M 1M", "flush", arguments=creds[:-1])
    with open(t.path("disk"), "rb") as image:
        image.seek(MIB)
        same_bytes(image.read(MIB), b"\7" * MIB, "what qemu-io has written")


def test_keys(t):
    keys = psk_file(t, alice=KEY, bob=KEY[::-1])
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", f"--tls-psk={keys}")
    read_by_libnbd(t, tls_uri(server, user="alice", tls_psk_file=keys))
    wait_for(lambda: "as 'alice'" in server.log, "the log to name the client")
    # What makes it fast: not ChaCha20, to which GnuTLS's own order comes with such keys.
    check("AES-128-GCM" in server.log or "aes" not in read_file("/proc/cpuinfo").decode(), server.log)
    creds = qemu_arguments(server, f"tls-creds-psk,dir={os.path.dirname(keys)},username=bob")
    equal("4 MiB" in qemu_img("info", *creds).stdout, True, "what qemu-img tells of the size")
    qemu_io(creds[-1], "write -P 9 0 64k", "read -P 9 0 64k", arguments=creds[:-1])


def test_writing_by_libnbd(t):
    need("nbdcopy")
    keys = psk_file(t, alice=KEY)
    server = t.serve(t.sparse_file("empty", SIZE), "-f", "raw", "-e", "0", f"--tls-psk={keys}")
    run("nbdcopy", disk(t), tls_uri(server, user="alice", tls_psk_file=keys))
    same_bytes(read_file(t.path("empty")), DATA, "what nbdcopy has written")


@cases("certificates", "keys")
def test_nbdkit_as_a_client(t, kind):
    """Its plugin nbd serves what it gets from us."""
    need("nbdkit", "nbdcopy")
    if kind == "keys":
        keys = psk_file(t, alice=KEY)
        ours, theirs = [f"--tls-psk={keys}"], ["tls-username=alice", f"tls-psk={keys}"]
        bad = ["tls-username=alice", f"tls-psk={psk_file(t, alice=KEY[::-1])}"]
    else:
        pki = Pki(t)
        ours = [f"--tls-certificates={pki.folder()}", "--tls-verify-peer"]
        theirs, bad = [f"tls-certificates={pki.folder('client')}"], [f"tls-certificates={pki.dir}"]
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", *ours)
    nbdkit = ["nbdkit", "-U", "-", "nbd", f"socket={server.unix}", "tls=require"]
    out = t.path("copy")
    run(*nbdkit, *theirs, "--run", f'nbdcopy "$uri" {out}')
    same_bytes(read_file(out), DATA, "what came through nbdkit")
    wait_for(lambda: "as 'alice'" in server.log or "as 'CN=test client'" in server.log, "the client's name")
    run(*nbdkit, *theirs, "--run", f'nbdcopy {t.file("new", content(9, SIZE))} "$uri"')
    same_bytes(read_file(t.path("disk")), content(9, SIZE), "what was written through nbdkit")
    for options in (["tls=require", *bad], ["tls=off"]):
        done = run("nbdkit", "-U", "-", "nbd", f"socket={server.unix}", *options, "--run", 'nbdinfo "$uri"', status=None)
        check(done.returncode != 0 and "export-size" not in done.stdout, f"{options}: {done.stdout} {done.stderr}")


def test_many_requests_in_flight(t):
    """Replies that do not fit the socket, requests that go on meanwhile: all of it right."""
    pki = Pki(t)
    server = t.serve(disk(t), "-f", "raw", "-e", "0", f"--tls-certificates={pki.folder()}",
                     tls=client_context())
    with server.client(mode="structured") as client:
        wanted = {}
        for number in range(60):
            offset, length = number * 65521 % (3 * MIB), 1 + number * 17389
            wanted[client.start(0, offset, length)] = (offset, length)
        for cookie, answer in client.answers(wanted).items():
            offset, length = wanted[cookie]
            same_bytes(answer.content(offset, length), DATA[offset:offset + length], f"read {cookie}")
        for number in range(30):
            client.ask(1, number * 100003, 100003, payload=DATA[number:number + 100003])
        answer = client.ask(0, 29 * 100003, 100003)
        same_bytes(answer.content(29 * 100003, 100003), DATA[29:29 + 100003], "what was written")
        client.disconnect()


def test_clients_may_choose(t):
    pki = Pki(t)
    server = t.serve(disk(t), "-f", "raw", "-e", "0", "--tls=on", f"--tls-certificates={pki.folder()}")
    read_by_libnbd(t, server.uri)
    read_by_libnbd(t, tls_uri(server, tls_certificates=pki.dir))


def test_off(t):
    pki = Pki(t)
    server = t.serve(disk(t), "-f", "raw", "-e", "0", "--tls=off", f"--tls-certificates={pki.folder()}")
    read_by_libnbd(t, server.uri)
    refused_by_libnbd(tls_uri(server, tls_certificates=pki.dir), "tls")


def test_stop_is_told(t):
    """A session that the server ends is ended with close_notify, which OpenSSL asks for."""
    pki = Pki(t)
    server = t.serve(disk(t), "-f", "raw", "-e", "0", f"--tls-certificates={pki.folder()}",
                     tls=client_context())
    client = server.client()
    client.sock.suppress_ragged_eofs = False
    server.stop()
    t.servers.remove(server)
    equal(client.sock.recv(1), b"", "the end")
    client.close()


# ---- Who must not ----

def test_plain_clients_where_tls_is_required(t):
    pki = Pki(t)
    server = t.serve(disk(t), "-f", "raw", "-e", "0", f"--tls-certificates={pki.folder()}")
    refused_by_libnbd(server.uri)
    done = qemu_img("info", "--image-opts", f"driver=nbd,path={server.unix}", status=1)
    check("TLS" in done.stderr, done.stderr)
    refused_command([EVNBD, "-L", "-k", server.unix], ["TLS"])


@cases("no certificate", "another CA", "expired", "not yet valid", "a server's", "revoked", "self-signed")
def test_clients_certificates(t, defect):
    pki = Pki(t)
    folder = pki.folder()
    good = pki.folder("client")
    bad = None
    if defect == "another CA":
        bad = Pki(t, "stranger").folder("client")
    elif defect == "expired":
        bad = pki.folder("client", dates=PAST)
    elif defect == "not yet valid":
        bad = pki.folder("client", dates=FUTURE)
    elif defect == "a server's":
        bad = pki.folder("client", lines=("tls_www_server", "signing_key"))
    elif defect == "revoked":
        bad = pki.folder("client")
        pki.revoke(folder, os.path.join(bad, "client-cert.pem"))
    elif defect == "self-signed":
        bad = pki.folder("client")
        run("certtool", "--generate-self-signed", "--load-privkey", os.path.join(bad, "client-key.pem"),
            "--outfile", os.path.join(bad, "client-cert.pem"),
            "--template", pki.template(['cn = "me"', "tls_www_client", "signing_key", "expiration_days = 5"]))
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", f"--tls-certificates={folder}", "--tls-verify-peer")
    with server.client(connect=False) as client:
        client.greeting()
        client.client_flags()
        try:
            client.starttls(client_context(bad))
            # In TLS 1.3 the client is done before it is verified.
            client.go()
            raise AssertionError(f"a client was let in whose certificate was: {defect}")
        except Closed:
            pass
    wait_for(lambda: "no TLS: " in server.log, "the log to tell why")
    says = {"no certificate": "no certificate", "expired": "expired", "not yet valid": "not yet",
            "revoked": "revoked", "a server's": "purpose|usage|unexpected"}.get(defect, "issuer|not trusted|unknown")
    check(re.search(says, server.log), f"the log does not say /{says}/: {server.log}")
    read_by_libnbd(t, tls_uri(server, tls_certificates=good))


@cases("wrong key", "unknown user", "no key")
def test_clients_keys(t, defect):
    keys = psk_file(t, alice=KEY)
    server = t.serve(disk(t), "-f", "raw", "-e", "0", f"--tls-psk={keys}")
    if defect == "no key":
        refused_by_libnbd(tls_uri(server, tls_certificates=Pki(t).dir))
    else:
        name = "alice" if defect == "wrong key" else "mallory"
        bad = psk_file(t, **{name: KEY[::-1]})
        refused_by_libnbd(tls_uri(server, user=name, tls_psk_file=bad))
    read_by_libnbd(t, tls_uri(server, user="alice", tls_psk_file=keys))


@cases("another CA", "another name")
def test_servers_that_clients_refuse(t, defect):
    """Ours is to show the right certificate; libnbd refuses others."""
    pki = Pki(t)
    lines = ("tls_www_server", "signing_key", 'dns_name = "example.com"')
    folder = pki.folder(lines=lines, name="example.com") if defect == "another name" else pki.folder()
    trust = Pki(t, "stranger") if defect == "another CA" else pki
    port = free_port()
    server = t.serve(disk(t), "-f", "raw", "-e", "0", f"--tls-certificates={folder}", host="127.0.0.1", port=port)
    refused_by_libnbd(tls_uri(server, tls_certificates=trust.dir))


# ---- What evnbd refuses at the start ----

def bad_folder(t, pki, defect):
    folder = pki.folder()
    certificate, key = os.path.join(folder, "server-cert.pem"), os.path.join(folder, "server-key.pem")
    if defect == "no folder":
        return t.path("nothing-here")
    if defect in ("no certificate", "no key", "no CA"):
        os.unlink({"no certificate": certificate, "no key": key}.get(defect) or os.path.join(folder, "ca-cert.pem"))
    elif defect == "another key":
        shutil.copy(os.path.join(pki.folder(), "server-key.pem"), key)
    elif defect in ("expired", "not yet valid"):
        return pki.folder(dates=PAST if defect == "expired" else FUTURE)
    elif defect == "a client's":
        return pki.folder(lines=("tls_www_client", "signing_key"))
    elif defect == "a CA's":
        return pki.folder(lines=("ca", "cert_signing_key", "signing_key"))
    elif defect == "no signing":
        return pki.folder(lines=("tls_www_server", "encryption_key"), key=RSA)
    elif defect == "another CA":
        shutil.copy(Pki(t, "stranger").ca, os.path.join(folder, "ca-cert.pem"))
    elif defect == "CA is none":
        shutil.copy(certificate, os.path.join(folder, "ca-cert.pem"))
    elif defect == "CA expired":
        pki.make_ca("ca", "cert_signing_key", *PAST, out=os.path.join(folder, "ca-cert.pem"))
    elif defect == "garbage":
        write_file(certificate, content(5, 2000))
    elif defect == "empty key":
        write_file(key, b"")
    elif defect == "a directory":
        os.unlink(key)
        os.mkdir(key)
    elif defect == "garbage CRL":
        write_file(os.path.join(folder, "ca-crl.pem"), b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
    elif defect in BAD_LISTS:
        pki.bad_list(t, defect, folder, certificate)
    return folder


DEFECTS = {
    **BAD_LISTS,
    "no folder": "No such file",
    "no certificate": "Unable to access the certificate '.*server-cert.pem'",
    "no key": "Unable to access the private key '.*server-key.pem'",
    "no CA": "Unable to access the CA certificate '.*ca-cert.pem'",
    "another key": "does not belong to the certificate",
    "expired": "server-cert.pem': it has expired on 2020-02-01",
    "not yet valid": "server-cert.pem': it is not valid before 2120-01-01",
    "a client's": "its purpose does not allow a TLS server",
    "a CA's": "its basic constraints make it one of a CA",
    "no signing": "its key usage does not permit digital signatures",
    "another CA": "server-cert.pem' with the CA certificate .*issuer",
    "CA is none": "ca-cert.pem': its basic constraints do not make it one",
    "CA expired": "ca-cert.pem': it has expired",
    "garbage": "Unable to use the certificate",
    "empty key": "Unable to use the certificate '.*' with the key",
    "a directory": "server-key.pem' is not a regular file",
    "garbage CRL": "Unable to use the revocation list",
}


@cases(*DEFECTS)
def test_bad_credentials(t, defect):
    image = disk(t)
    folder = bad_folder(t, Pki(t), defect)
    refused(t, image, "-f", "raw", f"--tls-certificates={folder}", "--tls-verify-peer", says=[DEFECTS[defect]])


def test_bad_options(t):
    need_tls(t)
    image = disk(t)
    for options, says in (
            (["--tls=on"], "--tls needs something to prove"),
            (["--tls=require"], "--tls needs something to prove"),
            (["--tls=maybe"], "Invalid TLS mode 'maybe'"),
            (["--tls-verify-peer"], "--tls-verify-peer needs --tls-certificates"),
            (["--tls-psk=/x", "--tls-verify-peer"], "--tls-verify-peer needs --tls-certificates"),
            (["--tls-psk=/x", "--tls-certificates=/y"], "cannot be used together"),
            (["--tls-psk=/x", "--oldstyle"], "--oldstyle has no TLS"),
            (["--tls-psk=/nowhere/keys"], "Unable to access the pre-shared keys '/nowhere/keys'"),
            (["--tls-psk=" + t.file("bad", b"alice:12\n")], "Line 1 of the pre-shared keys")):
        refused(t, image, "-f", "raw", *options, says=[says])


def test_keys_that_others_can_read(t):
    keys = psk_file(t, alice=KEY)
    os.chmod(keys, 0o644)
    server = t.serve(disk(t), "-f", "raw", f"--tls-psk={keys}")
    check("is open to other users (mode 644)" in server.log, server.log)


def test_large_client_certificates(t):
    """Those that chains are made of, and one that would keep the server from others."""
    pki = Pki(t)
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", f"--tls-certificates={pki.folder()}", "--tls-verify-peer")
    for names, good in (70, True), (120, False):
        lines = [f'dns_name = "{"a" * 60}.{number}.example.com"' for number in range(names)]
        uri = tls_uri(server, tls_certificates=pki.folder("client", lines=("tls_www_client", "signing_key", *lines)))
        if good:
            read_by_libnbd(t, uri)
        else:
            refused_by_libnbd(uri)
    wait_for(lambda: "no TLS: a message of the peer's handshake is longer than 8192 bytes; perhaps its certificates"
             in server.log, "the log to tell why")


# ---- Credentials that change ----

def test_new_certificate(t):
    """Without a restart."""
    pki = Pki(t)
    folder = pki.folder(folder=pki.path("live"))
    server = t.serve(disk(t), "-f", "raw", "-e", "0", "-v", f"--tls-certificates={folder}",
                     tls=client_context())

    def serial():
        with server.client() as client:
            der = client.sock.getpeercert(binary_form=True)
            client.disconnect()
        return der
    first = serial()
    equal(serial(), first, "certificate without a change")
    # The files change one after the other, so for a moment they do not fit.
    fresh = pki.folder()
    shutil.copy(os.path.join(fresh, "server-cert.pem"), folder)
    equal(serial(), first, "certificate, when the key does not belong to the new one")
    check("does not belong to the certificate" in server.log, server.log)
    shutil.copy(os.path.join(fresh, "server-key.pem"), folder)
    second = serial()
    check(second != first, "the new certificate is not used")
    os.unlink(os.path.join(folder, "server-key.pem"))
    equal(serial(), second, "certificate, when the key is gone")
    shutil.copy(os.path.join(pki.folder(dates=PAST), "server-cert.pem"), folder)
    equal(serial(), second, "certificate, when the new one has expired")


def test_new_bundle(t):
    """One that is long enough to be parsed beside the loop: whoever comes next is judged by it."""
    ours, others = Pki(t), Pki(t, "others")
    folder, client = ours.folder(), ours.folder("client")
    bundle = os.path.join(folder, "ca-cert.pem")
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", f"--tls-certificates={folder}", "--tls-verify-peer")
    uri = tls_uri(server, tls_certificates=client)

    def put(text):
        write_file(bundle + ".new", text)
        os.rename(bundle + ".new", bundle)

    def load(count):
        wait_for(lambda: server.log.count("have changed; new clients get the new ones") == count, "the new bundle")
    good, bad = read_file(ours.ca), read_file(others.ca)
    many = bad * (80000 // len(bad))
    read_by_libnbd(t, uri)
    put(many + good)
    read_by_libnbd(t, uri)
    load(1)
    put(many)
    # The server's own certificate is not of these CAs: they are refused, the ones from before stay.
    read_by_libnbd(t, uri)
    wait_for(lambda: "cannot be used, going on with those from before" in server.log, "the bad bundle to be told")
    put(many + good + many)
    read_by_libnbd(t, uri)
    load(2)


def test_new_keys_in_the_background(t):
    """Where the path was relative to a directory that the process has left."""
    keys = psk_file(t, alice=KEY)
    socket, pid_file = t.path("forked.sock"), t.path("forked.pid")
    run(EVNBD, "--fork", "-t", "-e", "0", "-k", socket, f"--pid-file={pid_file}", "-f", "raw",
        f"--tls-psk={os.path.relpath(keys, t.dir)}", disk(t), cwd=t.dir)
    try:
        fresh = psk_file(t, bob=KEY)
        refused_by_libnbd(f"nbds+unix://bob@/?socket={socket}&tls-psk-file={fresh}")
        shutil.copy(fresh, keys)
        read_by_libnbd(t, f"nbds+unix://bob@/?socket={socket}&tls-psk-file={fresh}")
    finally:
        os.kill(int(read_file(pid_file)), signal.SIGTERM)
    wait_for(lambda: not os.path.exists(pid_file), "the server to end")


def test_new_revocation(t):
    pki = Pki(t)
    folder, client = pki.folder(), pki.folder("client")
    server = t.serve(disk(t), "-f", "raw", "-e", "0", f"--tls-certificates={folder}", "--tls-verify-peer")
    uri = tls_uri(server, tls_certificates=client)
    read_by_libnbd(t, uri)
    pki.revoke(folder, os.path.join(client, "client-cert.pem"))
    refused_by_libnbd(uri)
    others = tls_uri(server, tls_certificates=pki.folder("client"))
    read_by_libnbd(t, others)
    # A list that vanishes takes nothing back, also when something else is new; one that returns counts.
    crl = os.path.join(folder, "ca-crl.pem")
    os.rename(crl, crl + ".away")
    refused_by_libnbd(uri)
    pki.folder(folder=folder)
    refused_by_libnbd(uri)
    read_by_libnbd(t, others)
    wait_for(lambda: "ca-crl.pem' has vanished" in server.log, "the missing list to be told")
    os.rename(crl + ".away", crl)
    refused_by_libnbd(uri)
    read_by_libnbd(t, others)


def test_bad_revocation(t):
    """A list that is not the CA's says nothing about whom it has revoked; an old one of its own does."""
    pki = Pki(t)
    folder, client, other = pki.folder(), pki.folder("client"), pki.folder("client")
    certificate = os.path.join(client, "client-cert.pem")
    pki.revoke(folder, certificate)
    server = t.serve(disk(t), "-f", "raw", "-e", "0", f"--tls-certificates={folder}", "--tls-verify-peer")
    uri, others = tls_uri(server, tls_certificates=client), tls_uri(server, tls_certificates=other)
    for defect, says in BAD_LISTS.items():
        pki.bad_list(t, defect, folder, os.path.join(other, "client-cert.pem"))
        refused_by_libnbd(uri)
        read_by_libnbd(t, others)
        check(re.search(f"going on with those from before: .*{says}", server.log), server.log)
    pki.bad_list(t, "old list", folder, certificate)
    refused_by_libnbd(uri)
    read_by_libnbd(t, others)
    check("ca-crl.pem' should have been replaced by a newer one on 2020-02-01" in server.log, server.log)


if __name__ == "__main__":
    main()
