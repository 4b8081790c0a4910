#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""evnbd --list over TLS: everybody's servers, URIs, and servers that must not be believed."""
import json
import os
import re
import shutil
import ssl
import struct

from evnbd_test import EVNBD, MIB, cases, check, equal, free_port, main, need, refused_command, run, wait_for
from nbd_raw import REPLY_MAGIC
from test_list import (ERR, GREETING, OLDSTYLE, SESSION, Fake, Peer, directory, listing, reply, says, where_is)
from tls_pki import FUTURE, KEY, PAST, Pki, need_tls, psk_file

STARTTLS = 5


def unix_of(where):
    return where[where.index("-k") + 1]


def x509(folder, **more):
    words = "".join(f",{key.replace('_', '-')}={value}" for key, value in more.items())
    return ["--object", f"tls-creds-x509,id=tls0,endpoint=client,dir={folder}{words}", "--tls-creds=tls0"]


def psk(keys, user):
    return ["--object", f"tls-creds-psk,id=tls0,endpoint=client,dir={os.path.dirname(keys)},username={user}",
            "--tls-creds=tls0"]


def shows_disk(output, size=4 * MIB):
    check(f"\n  size:  {size}\n" in output, output)


# ---- Servers ----

def disk(t):
    return t.sparse_file(f"disk{t.number()}.raw", 4 * MIB)


def own(t, *options, **keywords):
    return where_is(t.serve(disk(t), "-f", "raw", "-e", "0", *options, **keywords))


def qemu(t, creds, *options):
    need("qemu-nbd")
    unix = t.path(f"qemu{t.number()}.sock")
    return Peer(t, ["qemu-nbd", "-t", "-e", "0", "-f", "raw", "-k", unix, "--object", f"{creds},id=tls0,endpoint=server",
                    "--tls-creds=tls0", *options, disk(t)], unix=unix).where


def nbdkit(t, *options, plugin=("memory", "4M")):
    need("nbdkit")
    unix = t.path(f"nbdkit{t.number()}.sock")
    return Peer(t, ["nbdkit", "-f", "-U", unix, "--tls=require", *options, *plugin], unix=unix).where


def certified(t, name, folder, verify):
    """A server with the certificate of the folder, which wants one of its clients or does not."""
    if name == "evnbd":
        return own(t, f"--tls-certificates={folder}", *(["--tls-verify-peer"] if verify else []))
    if name == "qemu-nbd":
        return qemu(t, f"tls-creds-x509,dir={folder},verify-peer={'on' if verify else 'off'}")
    return nbdkit(t, f"--tls-certificates={folder}", *(["--tls-verify-peer"] if verify else []))


def keyed(t, name, keys):
    if name == "evnbd":
        return own(t, f"--tls-psk={keys}")
    if name == "qemu-nbd":
        return qemu(t, f"tls-creds-psk,dir={os.path.dirname(keys)}")
    return nbdkit(t, f"--tls-psk={keys}")


SERVERS = ("evnbd", "qemu-nbd", "nbdkit")


# ---- Certificates ----

@cases(*SERVERS)
def test_certificates(t, name):
    pki = Pki(t)
    where = certified(t, name, pki.folder(), False)
    shows_disk(listing([*where, *x509(pki.dir), "--tls-hostname=localhost"]))
    shows_disk(listing([*where, f"--tls-certificates={pki.dir}", "--tls-hostname=127.0.0.1"]))
    shows_disk(listing([f"nbds+unix:///?socket={unix_of(where)}&tls-certificates={pki.dir}&tls-hostname=localhost"]))
    refused_command([EVNBD, "-L", *where], [r"the server wants TLS first \(ERR_TLS_REQD\)"])


# What is seen of a refusal: TLS 1.3 lets the client go on before the server has looked at its certificate.
GONE = "the server closed the connection right after the TLS handshake; perhaps it does not accept"
SAYS = {"evnbd": "the server ended the TLS session with the alert '", "qemu-nbd": GONE, "nbdkit": GONE}


@cases(*SERVERS)
def test_certificate_of_the_client(t, name):
    pki = Pki(t)
    where = certified(t, name, pki.folder(), True)
    client = pki.folder("client")
    shows_disk(listing([*where, *x509(client), "--tls-hostname=localhost"]))
    shows_disk(listing([*where, f"--tls-certificates={client}", "--tls-hostname=localhost"]))
    bad = [pki.dir, Pki(t, "stranger").folder("client")]  # none, and one of another CA
    shutil.copy(pki.ca, bad[1])
    for folder in bad:
        refused_command([EVNBD, "-L", *where, *x509(folder, sanity_check="off"), "--tls-hostname=localhost"],
                        [SAYS[name]])


@cases(*SERVERS)
def test_wrong_name(t, name):
    pki = Pki(t)
    where = certified(t, name, pki.folder(), False)
    for hostname in ("example.com", "127.0.0.2", "localhos", "localhost.", "LOCALHOST.example.com"):
        refused_command([EVNBD, "-L", *where, *x509(pki.dir), f"--tls-hostname={hostname}"],
                        [f"exports of '{re.escape(unix_of(where))}': no TLS: the peer's certificate is not "
                         f"accepted: it is not for the name '{re.escape(hostname)}'$"])


def test_name_of_a_tcp_server(t):
    """The name is the one by which the server was called."""
    pki, port = Pki(t), free_port()
    own(t, f"--tls-certificates={pki.folder()}", port=port)
    creds = [f"--tls-certificates={pki.dir}"]
    shows_disk(listing(["-p", str(port), *creds]))
    shows_disk(listing(["-b", "localhost", "-p", str(port), *creds]))
    shows_disk(listing(["-b", "127.0.0.1", "-p", str(port), *creds]))
    shows_disk(listing([f"nbds://localhost:{port}/", *creds]))
    shows_disk(listing([f"nbds://127.0.0.1:{port}?tls-certificates={pki.dir}"]))
    refused_command([EVNBD, "-L", "-b", "127.0.0.2", "-p", str(port), *creds, "--tls-hostname=other"],
                    ["Connection refused|not for the name 'other'"])
    lines = ("tls_www_server", "signing_key", 'dns_name = "example.com"')
    port = free_port()
    own(t, f"--tls-certificates={pki.folder(lines=lines, name='example.com')}", port=port)
    refused_command([EVNBD, "-L", "-p", str(port), *creds], ["it is not for the name 'localhost'"])
    shows_disk(listing(["-p", str(port), *creds, "--tls-hostname=example.com"]))


def test_name_is_needed_on_a_unix_socket(t):
    pki = Pki(t)
    where = own(t, f"--tls-certificates={pki.folder()}")
    for creds in ([f"--tls-certificates={pki.dir}"], x509(pki.dir)):
        refused_command([EVNBD, "-L", *where, *creds], ["No hostname for certificate validation: give --tls-hostname"])
    shows_disk(listing([*where, *x509(pki.dir, verify_peer="off")]))


DEFECTS = {
    "another CA": "issuer is unknown|not trusted",
    "expired": "expired",
    "not yet valid": "not yet",
    "a client's": "purpose|usage",
    "revoked": "revoked",
}


@cases(*DEFECTS)
def test_certificates_of_servers(t, defect):
    """CVE-2024-7383: shown by a server that does not look at its own certificate."""
    pki = Pki(t)
    trust = pki.folder("client")
    lines, dates = None, ("expiration_days = 5",)
    if defect == "expired":
        dates = PAST
    elif defect == "not yet valid":
        dates = FUTURE
    elif defect == "a client's":
        lines = ("tls_www_client", "signing_key", 'dns_name = "localhost"')
    bad = (Pki(t, "stranger") if defect == "another CA" else pki).folder(lines=lines, dates=dates)
    if defect == "revoked":
        pki.revoke(trust, os.path.join(bad, "server-cert.pem"))
    with TlsFake(t, bad) as fake:
        refused_command([EVNBD, "-L", "-k", fake.path, f"--tls-certificates={trust}", "--tls-hostname=localhost"],
                        [r"no TLS: the peer's certificate is not accepted: .*(" + DEFECTS[defect] + ")"])
        equal(fake.asked, [], "options that were asked inside of TLS")
    with TlsFake(t, pki.folder()) as fake:
        output = listing(["-k", fake.path, f"--tls-certificates={pki.dir}", "--tls-hostname=localhost"])
        check(" export: 'a'\n" in output and fake.asked, output)


# ---- Keys ----

@cases(*SERVERS)
def test_keys(t, name):
    keys = psk_file(t, alice=KEY)
    where = keyed(t, name, keys)
    shows_disk(listing([*where, *psk(keys, "alice")]))
    shows_disk(listing([*where, f"--tls-psk={keys}"]))
    shows_disk(listing([f"nbds+unix://alice@/?socket={unix_of(where)}&tls-psk-file={keys}"]))
    shows_disk(listing([f"nbds+unix:///?socket={unix_of(where)}", *psk(keys, "alice")]))
    for user, key in (("alice", KEY[::-1]), ("mallory", KEY)):
        bad = psk_file(t, **{user: key})
        refused_command([EVNBD, "-L", *where, *psk(bad, user)],
                        ["no TLS: the peer (closed|gave up).*; perhaps the server does not know the name"])
    refused_command([EVNBD, "-L", *where, *psk(keys, "bob")], ["There is no key of the user 'bob' in '"])
    shows_disk(listing([*where, *psk(keys, "alice")]))


def test_which_key(t):
    """Of several keys the one of the user that is named, else qemu's."""
    keys = psk_file(t, alice=KEY, bob=KEY[::-1])
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", f"--tls-psk={keys}", "--allow=psk=bob")
    where = f"nbds+unix://%s/?socket={server.unix}&tls-psk-file={keys}"
    shows_disk(listing([where % "bob@"]))
    equal(listing([where % "alice@"]), "exports available: 0\n", "the list for alice")
    refused_command([EVNBD, "-L", where % ""], ["There is no key of the user 'qemu' in '"])


def test_keys_for_certificates(t):
    """Server and client agree on nothing."""
    pki = Pki(t)
    where = own(t, f"--tls-certificates={pki.folder()}")
    refused_command([EVNBD, "-L", *where, f"--tls-psk={psk_file(t, alice=KEY)}"], ["no TLS: "])
    where = own(t, f"--tls-psk={psk_file(t, alice=KEY)}")
    refused_command([EVNBD, "-L", *where, f"--tls-certificates={pki.dir}", "--tls-hostname=localhost"], ["no TLS: "])


@cases("evnbd", "qemu-nbd")
def test_anonymous(t, name):
    need_tls(t)
    server = ["--object", "tls-creds-anon,id=tls0,endpoint=server", "--tls-creds=tls0"]
    where = own(t, *server) if name == "evnbd" else qemu(t, "tls-creds-anon")
    shows_disk(listing([*where, "--object", "tls-creds-anon,id=tls0,endpoint=client", "--tls-creds=tls0"]))


# ---- More of what servers do ----

def test_same_as_qemu_nbd(t):
    need("qemu-nbd")
    keys = psk_file(t, alice=KEY)
    where = keyed(t, "nbdkit", keys)
    theirs = run("qemu-nbd", "--list", *where, *psk(keys, "alice")).stdout
    ours = "".join(line for line in listing([*where, *psk(keys, "alice")]).splitlines(keepends=True)
                   if not line.startswith("  transaction size: "))
    equal(ours, theirs, "the list")


def test_many_exports(t):
    """nbdkit hangs up after so many options, and each connection begins with a handshake."""
    keys = psk_file(t, alice=KEY)
    where = nbdkit(t, f"--tls-psk={keys}", plugin=("file", f"dir={directory(t, 200)}"))
    top = json.loads(listing([*where, f"--tls-psk={keys}"], "--json"))
    equal(sorted(export["name"] for export in top["exports"]), sorted(f"file{n}" for n in range(200)), "exports")
    check(all("size" in export for export in top["exports"]), top)


def test_server_without_tls(t):
    """CVE-2019-14842: a dialect without TLS is no way around it."""
    need_tls(t)
    keys = psk_file(t, alice=KEY)
    for options, pattern in (([], r"refuses to use TLS \(ERR_POLICY\)|does not support TLS \(ERR_UNSUP\)"),
                             (["--oldstyle"], "does not support TLS: it speaks an older dialect")):
        refused_command([EVNBD, "-L", *own(t, *options), f"--tls-psk={keys}"], [pattern])
    need("nbdkit")
    unix = t.path("plain.sock")
    where = Peer(t, ["nbdkit", "-f", "-U", unix, "memory", "1M"], unix=unix).where
    refused_command([EVNBD, "-L", *where, f"--tls-psk={keys}"], [r"(refuses to use|does not support) TLS \(ERR_"])


def test_the_server_sees_an_end_in_order(t):
    """A session that is left is closed with close_notify: the server would tell if not."""
    keys = psk_file(t, alice=KEY)
    server = t.serve(disk(t), "-v", "-f", "raw", "-e", "0", f"--tls-psk={keys}")
    listing([*where_is(server), f"--tls-psk={keys}"])
    server.stop()
    t.servers.remove(server)
    check("without closing" not in server.log, server.log)


def test_trace(t):
    keys = psk_file(t, alice=KEY)
    text = run(EVNBD, "-L", *own(t, f"--tls-psk={keys}"), f"--tls-psk={keys}", "-T", "nbd_tls").stderr
    check(re.search(r"nbd_tls server: TLS \(TLS1\.3\)", text), text)


# ---- Servers that must not be believed ----

class TlsFake(Fake):
    """A server in a thread that speaks TLS with OpenSSL; then it says `inside` and notes what it is asked."""

    def __init__(self, case, folder, inside=SESSION[len(GREETING):], outside=GREETING + reply(STARTTLS, 1)):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(os.path.join(folder, "server-cert.pem"), os.path.join(folder, "server-key.pem"))
        self.inside, self.outside, self.asked = inside, outside, []
        super().__init__(case, self.talk)

    def talk(self, connection, _number):
        connection.sendall(self.outside)
        connection.recv(4 + 16, 0x100)  # MSG_WAITALL: flags, STARTTLS
        with self.context.wrap_socket(connection, server_side=True) as inner:
            inner.sendall(self.inside)
            while data := inner.recv(65536):
                self.asked.append(data)


def tls_fake_says(t, pattern, **keywords):
    pki = Pki(t)
    with TlsFake(t, pki.folder(), **keywords) as fake:
        return refused_command([EVNBD, "-L", "-k", fake.path, f"--tls-certificates={pki.dir}",
                                "--tls-hostname=localhost", "--handshake-limit=20"], [pattern])


def test_injected_list(t):
    """Somebody on the way puts a list of his own behind the server's consent."""
    evil = SESSION[len(GREETING):].replace(b"\0\0\0\x01atext", b"\0\0\0\x01evil!")
    tls_fake_says(t, f"the server sent {len(evil)} bytes between its consent to TLS and TLS",
                  outside=GREETING + reply(STARTTLS, 1) + evil)


TALK = {
    "unsupported": (GREETING + reply(STARTTLS, ERR + 1), r"does not support TLS \(ERR_UNSUP\)"),
    "policy": (GREETING + reply(STARTTLS, ERR + 2, b"not \x1b[1mhere"), r"\(ERR_POLICY\): not \\x1b\[1mhere"),
    "a list instead": (SESSION, "but was asked STARTTLS"),
    "oldstyle": (OLDSTYLE, "it speaks an older dialect"),
    "not fixed": (GREETING[:16] + b"\0\0", "it speaks an older dialect"),
    "a long consent": (GREETING + struct.pack(">QIII", REPLY_MAGIC, STARTTLS, 1, 1 << 31), "2147483648 bytes"),
    "hangs up": (GREETING, "closed the connection when asked for STARTTLS"),
    "no TLS behind it": (GREETING + reply(STARTTLS, 1), "no TLS: the peer closed the connection"),
}


@cases(*TALK)
def test_talked_out_of_tls(t, name):
    """Whatever the server says, nothing is asked in the clear."""
    data, pattern = TALK[name]
    heard = []

    def behave(connection, _number):
        connection.sendall(data)
        connection.shutdown(1)
        while more := connection.recv(65536):
            heard.append(more)
    with Fake(t, behave) as fake:
        keys = psk_file(t, alice=KEY)
        refused_command([EVNBD, "-L", "-k", fake.path, f"--tls-psk={keys}"], [pattern])
        wait_for(lambda: heard or data[8:16] != GREETING[8:16] or data[17] == 0, "the client's words")
    words = b"".join(heard)
    check(struct.pack(">I", 3) not in words[4 + 16:4 + 32], f"LIST was asked in the clear: {words}")
    check(b"\0\0\0\x0b" not in words[:36], f"EXTENDED_HEADERS was asked in the clear: {words}")


def test_garbage_in_the_place_of_tls(t):
    keys = psk_file(t, alice=KEY)
    for garbage in (b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100), b"\x16\x03\x03\xff\xff" + bytes(70000)):
        def behave(connection, _number, garbage=garbage):
            connection.sendall(GREETING)
            connection.recv(4 + 16, 0x100)
            connection.sendall(reply(STARTTLS, 1))
            connection.recv(1)
            says(garbage)(connection, _number)
        with Fake(t, behave) as fake:
            refused_command([EVNBD, "-L", "-k", fake.path, f"--tls-psk={keys}"], ["no TLS: "])


def test_silence_in_the_place_of_tls(t):
    keys = psk_file(t, alice=KEY)

    def behave(connection, _number):
        connection.sendall(GREETING)
        connection.recv(4 + 16, 0x100)
        connection.sendall(reply(STARTTLS, 1))
        while connection.recv(65536):
            pass
    with Fake(t, behave) as fake:
        refused_command([EVNBD, "-L", "-k", fake.path, f"--tls-psk={keys}", "--handshake-limit=1"],
                        ["did not tell everything in time"])


def test_refusal_inside(t):
    tls_fake_says(t, r"the server refuses to list its exports \(ERR_POLICY\)",
                  inside=reply(11, ERR + 1) + reply(8, ERR + 1) + reply(3, ERR + 2))


# ---- What is refused before anything is asked ----

BAD = {
    "http": (["http://host/"], "List mode is incompatible with a file name"),
    "file": (["disk.img"], "List mode is incompatible with a file name"),
    "two": (["nbd://a", "nbd://b"], "List mode is incompatible with a file name"),
    "place twice": (["nbd://localhost", "-p", "1"], "The URI says where the server is"),
    "socket twice": (["nbd+unix:///?socket=/s", "-k", "/s"], "The URI says where the server is"),
    "relative socket": (["nbd+unix:///?socket=s"], "socket path must be absolute"),
    "port": (["nbd://localhost:65536"], "Invalid port '65536'"),
    "export": (["nbd://localhost/disk"], "leave the name 'disk' out of the URI"),
    "no credentials": (["nbds://localhost"], "The URI asks for TLS, which needs credentials"),
    "plain": (["nbd://localhost", "--tls-psk=/k"], "The URI asks for a connection without TLS"),
    "key twice": (["nbds://localhost?tls-psk-file=/k", "--tls-psk=/k"], "--tls-psk and the URI say the same"),
    "name twice": (["nbds://localhost?tls-psk-file=/k&tls-hostname=a", "--tls-hostname=b"],
                   "--tls-hostname and the URI say the same"),
    "user without keys": (["nbds://alice@localhost?tls-certificates=/c"], "is one of pre-shared keys"),
    "both": (["nbds://localhost?tls-certificates=/c&tls-psk-file=/k"], "cannot be used together"),
    "parameter": (["nbd://localhost?verbose=1"], "the parameter 'verbose' is not known"),
    "no folder": (["nbds://localhost?tls-certificates=/nowhere"], "ca-cert.pem.*No such file"),
    "no keys": (["--tls-psk=/nowhere"], "Unable to access the pre-shared keys '/nowhere'"),
    "server's": (["--object=tls-creds-anon,id=a,endpoint=server", "--tls-creds=a"],
                 "Expected TLS credentials for a client endpoint"),
    "mode": (["--tls=require"], "List mode is incompatible with per-device settings: leave out --tls$"),
    "verify": (["--tls-verify-peer"],
               "List mode is incompatible with per-device settings: leave out --tls-verify-peer"),
    "hostname alone": (["--tls-hostname=a"], "--tls-hostname is not permitted without"),
}


@cases(*BAD)
def test_bad_options(t, name):
    need_tls(t)
    options, pattern = BAD[name]
    refused_command([EVNBD, "-L", *options], [pattern])


def test_plain_uris(t):
    port = free_port()
    server = t.serve(disk(t), "-f", "raw", "-e", "0")
    own(t, port=port)
    shows_disk(listing([f"nbd+unix:///?socket={server.unix}"]))
    shows_disk(listing([f"nbd://localhost:{port}"]))
    shows_disk(listing([f"nbd://127.0.0.1:{port}/"]))


if __name__ == "__main__":
    main()
