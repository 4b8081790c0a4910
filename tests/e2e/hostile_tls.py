# SPDX-License-Identifier: BSD-3-Clause
"""Rows A42 to A59 of the table of hostile inputs: STARTTLS, and what is wrong inside of TLS."""
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess

from evnbd_test import HANG, HELPERS, SANITIZED, check, equal, read_file, same_bytes, skip, write_file
from hostile import (DATA, HEAD, check_good_client, check_text, expect_closed, expect_refused, resident_kib, row)
from nbd_raw import (CMD_WRITE, ERR, FLAG_C_FIXED_NEWSTYLE, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO,
                     OPT_INFO, OPT_LIST, OPT_SET_META, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK,
                     REP_ERR_INVALID, REP_ERR_TLS_REQD, Closed, go_data, meta_data, option_bytes)
from tls_pki import KEY, PAST, Pki, client_context, psk_file

NUISANCE = os.path.join(HELPERS, "tls_nuisance")
USABLE, CLOSED, NO_SESSION = 0, 3, 4


def serve(stage, *options, mode="require", folder=None, context=None, **keywords):
    """A server with TLS by a certificate, whose good clients use it."""
    folder = folder or Pki(stage.t).folder()
    return stage.serve(f"--tls={mode}", f"--tls-certificates={folder}", *options,
                       tls=context or client_context(), **keywords)


def at_tls(stage, server):
    """A client whose STARTTLS was acknowledged: the next byte belongs to TLS."""
    client = stage.haggler(server)
    equal(client.option(OPT_STARTTLS), [(REP_ACK, b"")], "replies to STARTTLS")
    return client


def inside(stage, server, context=None):
    client = stage.haggler(server)
    client.starttls(context or client_context())
    return client


def nuisance(server, *words, name=b""):
    """The exit status of tls_nuisance."""
    if not os.path.exists(NUISANCE):
        skip("tls_nuisance is not built")
    done = subprocess.run([NUISANCE, server.unix, *words], input=name, capture_output=True, timeout=HANG,
                          check=False)
    check(done.returncode in (USABLE, CLOSED, NO_SESSION), f"tls_nuisance {words}: {done.stderr.decode()}")
    return done.returncode


def client_hello(context=None):
    """The bytes of a ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = (context or client_context()).wrap_bio(incoming, outgoing)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def records(data, size):
    """A message of a handshake in records of `size` bytes."""
    return b"".join(struct.pack(">BHH", 22, 0x0301, len(data[at:at + size])) + data[at:at + size]
                    for at in range(0, len(data), size))


@row("A42", "options before TLS where it is required")
def _(stage):
    server = serve(stage)
    client = stage.haggler(server)
    for option, data in ((OPT_LIST, b""), (OPT_INFO, go_data()), (OPT_GO, go_data()), (OPT_GO, go_data(b"nothere")),
                         (OPT_GO, b"\xff" * 9), (OPT_STRUCTURED_REPLY, b""), (OPT_EXTENDED_HEADERS, b""),
                         (OPT_SET_META, meta_data(b"", [b"base:allocation"])), (77, b""), (77, bytes(4096)),
                         (OPT_LIST, b"data")):
        replies = client.option(option, data)
        equal([kind for kind, _ in replies], [REP_ERR_TLS_REQD], f"replies to option {option} with {data[:20]!r}")
        check_text(replies[0][1])
    client.starttls(client_context())
    client.go()
    same_bytes(client.read(0, 512), DATA[:512], "data")
    for flags in (0, FLAG_C_FIXED_NEWSTYLE, 3):
        client = stage.client(server)
        client.greeting()
        client.client_flags(flags)
        client.send(option_bytes(OPT_EXPORT_NAME))
        expect_closed(client)


@row("A44", "an option of 4 GiB before TLS where it is required (CVE-2017-15119)")
def _(stage):
    server = serve(stage)
    for length in (0xFFFFFFFF, 1 << 31):
        client = stage.haggler(server)
        client.send(option_bytes(OPT_GO, length=length))
        expect_closed(client, at_most=20 + 512)


@row("A45", "STARTTLS with data")
def _(stage):
    server = serve(stage, mode="on")
    client = stage.haggler(server)
    for data in (b"x", bytes(4096), client_hello()):
        expect_refused(client, OPT_STARTTLS, data, REP_ERR_INVALID)
    client.starttls(client_context())
    equal([kind for kind, _ in client.option(OPT_STARTTLS)], [REP_ERR_INVALID], "replies to STARTTLS inside of TLS")
    client.go()


@row("A46", "plain text in the same segment as STARTTLS (CVE-2021-3716 and its like)")
def _(stage):
    for mode in ("on", "require"):
        server = serve(stage, mode=mode, folder=Pki(stage.t, f"pki-{mode}").folder())
        for injected in (option_bytes(OPT_STRUCTURED_REPLY), option_bytes(OPT_LIST), b"I", client_hello()):
            client = stage.haggler(server)
            client.send(option_bytes(OPT_STARTTLS) + injected)
            # The acknowledgment at most, and never an answer to what was put in.
            equal(len(client.recv_until_closed()) <= 20, True, "only STARTTLS was answered")
        # A little later it is what TLS begins with, and is no TLS.
        client = at_tls(stage, server)
        client.send(option_bytes(OPT_STRUCTURED_REPLY))
        expect_closed(client, at_most=64)


@row("A47", "what was negotiated before STARTTLS (CVE-2021-3716)")
def _(stage):
    server = serve(stage, mode="on")
    for option in (OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS):
        client = stage.haggler(server)
        equal(client.option(option), [(REP_ACK, b"")], f"replies to option {option}")
        check(client.contexts(b"", [b"base:allocation"]), "the context was not selected")
        client.starttls(client_context())
        export = client.go()
        equal(export.flags & (1 << 7 | 1 << 12), 0, "flags that need structured or extended replies")
        # read() takes simple replies only.
        same_bytes(client.read(0, 4096), DATA[:4096], "data")
        error = client.command(7, 0, 4096)
        check(error != 0, "BLOCK_STATUS was answered without a context")
    client = inside(stage, server)
    equal(client.option(OPT_STRUCTURED_REPLY), [(REP_ACK, b"")], "replies inside")


def shake_hands_in_pieces(client, size):
    """A TLS handshake whose hello comes in records of `size` bytes, all in one."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = client_context().wrap_bio(incoming, outgoing)
    begun = False
    while True:
        try:
            session.do_handshake()
            return
        except ssl.SSLWantReadError:
            data = outgoing.read()
        client.send(data if begun else records(data[5:], size))
        begun = True
        incoming.write(client.sock.recv(1 << 16) or b"")
        check(incoming.pending, "the server ended the handshake")


@row("A49", "something else than TLS behind STARTTLS")
def _(stage):
    server = serve(stage, "--handshake-limit=1")
    sslv2 = bytes.fromhex("802e0100020015000000100700c0030080010080060040040080020080") + bytes(20)
    for garbage in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", sslv2, bytes(64), b"\xff" * 4096,
                    b"\x16\x03\x01\xff\xff" + bytes(70000), b"\x16\x03\x01\x00\x00" * 1000,
                    b"\x17\x03\x03\x00\x20" + bytes(32), b"\x15\x03\x01\x00\x02\x02\x28",
                    b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"):
        client = at_tls(stage, server)
        try:
            client.send(garbage)
        except Closed:
            pass
        expect_closed(client, at_most=64)
    # Silence, and half a hello: the time limit is that of the whole handshake.
    for start in (b"", client_hello()[:40], client_hello()[:4]):
        client = at_tls(stage, server)
        client.send(start)
        expect_closed(client, at_most=64)

    # A hello in many records is strange, and allowed.
    server = serve(stage, folder=Pki(stage.t, "pieces").folder())
    for size in (1000, 100, 1):
        shake_hands_in_pieces(at_tls(stage, server), size)


def bloated_hello(extensions):
    """A ClientHello with these (type, data) appended to its extensions."""
    message = client_hello()[5:]
    head = 4 + 2 + 32
    head += 1 + message[head]
    head += 2 + struct.unpack(">H", message[head:head + 2])[0]
    head += 1 + message[head]
    old = message[head + 2:]
    new = old + b"".join(struct.pack(">HH", kind, len(data)) + data for kind, data in extensions)
    body = message[4:head] + struct.pack(">H", len(new)) + new
    return b"\1" + struct.pack(">I", len(body))[1:] + body


@row("A50", "messages of a TLS handshake that are too large")
def _(stage):
    pki = Pki(stage.t)
    server = serve(stage, "--tls-verify-peer", "--handshake-limit=5", folder=pki.folder(),
                   context=client_context(pki.folder("client")))
    for hello in (bloated_hello([(0xFF00, bytes(60000))]),
                  bloated_hello([(0x4000 + number, b"") for number in range(1000)]),
                  bloated_hello([(35, bytes(50000))]),
                  b"\1\xff\xff\xff" + bytes(200000)):
        before = resident_kib(server)
        crowd = [at_tls(stage, server) for _ in range(20)]
        for client in crowd:
            try:
                client.send(records(hello, 16384))
            except Closed:
                pass
        grown = resident_kib(server) - before
        check(SANITIZED or grown <= 20 * 256, f"twenty handshakes took {grown} KiB")
        for client in crowd:
            client.close()
    # A chain of ten certificates, each with a name of 16 KiB.
    folder = pki.folder("client")
    chain = read_file(os.path.join(folder, "client-cert.pem"))
    fat = pki.folder("client", lines=("tls_www_client", "signing_key",
                                      *[f'dns_name = "{"a" * 60}.{number}.example.com"' for number in range(200)]))
    chain += read_file(os.path.join(fat, "client-cert.pem")) * 10
    write_file(os.path.join(folder, "client-cert.pem"), chain)
    client = stage.haggler(server)
    try:
        client.starttls(client_context(folder))
        client.option(OPT_LIST)
        raise AssertionError("a chain of 160 KiB was taken")
    except Closed:
        pass


@row("A51", "old versions, and ciphers that protect nothing")
def _(stage):
    server = serve(stage)
    for version, ciphers in ((ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"), (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
                             (ssl.TLSVersion.TLSv1_2, "eNULL:@SECLEVEL=0"),
                             (ssl.TLSVersion.TLSv1_2, "aNULL:@SECLEVEL=0"),
                             (ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-SHA256:@SECLEVEL=0"),
                             (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"),
                             (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0")):
        client = stage.haggler(server)
        try:
            client.starttls(client_context(version=version, ciphers=ciphers))
            raise AssertionError(f"{client.sock.version()} with {client.sock.cipher()} was agreed on")
        except Closed:
            pass
    client = inside(stage, server, client_context(version=ssl.TLSVersion.TLSv1_2))
    equal(client.sock.version(), "TLSv1.2", "version")
    check("GCM" in client.sock.cipher()[0] or "CHACHA20" in client.sock.cipher()[0], client.sock.cipher())


@row("A52", "renegotiations, updates of keys and heartbeats without end")
def _(stage):
    server = serve(stage)
    check(nuisance(server, "renegotiate") in (USABLE, CLOSED), "a renegotiation")
    check(nuisance(server, "update") in (USABLE, CLOSED), "updates of keys")
    check(nuisance(server, "heartbeat") in (USABLE, CLOSED), "a heartbeat")


@row("A54", "pre-shared keys that are not known, and names that are none")
def _(stage):
    keys = psk_file(stage.t, alice=KEY)
    server = stage.serve("--tls=on", f"--tls-psk={keys}", "-v")
    equal(nuisance(server, "psk", KEY, name=b"alice"), USABLE, "the right key")
    for name in (b"mallory", b"alice\0", b"alice\nbob", b"alice\0mallory", b"a" * 129, b"a" * 16000, b"a" * 65000,
                 b"\xff\xfe", b"%s%n", b":"):
        status = nuisance(server, "psk", KEY, name=name)
        check(status in (CLOSED, NO_SESSION), f"the name {name[:20]!r} has come to {status}")
    check(nuisance(server, "psk", KEY[::-1], name=b"alice") in (CLOSED, NO_SESSION), "a wrong key")
    lines = set(re.findall(r"no TLS: (.*)", server.log))
    check(lines, server.log)
    equal(nuisance(server, "psk", KEY, name=b"alice"), USABLE, "the right key")


@row("A55", "the end without close_notify")
def _(stage):
    path = stage.t.file("written", bytes(len(DATA)))
    server = serve(stage, "-v", image=path, head=None)
    client = server.client()
    client.write(0, DATA[:512])
    client.sock.shutdown(socket.SHUT_RDWR)  # of the socket, under TLS
    client.close()
    # In the middle of a request: none of it is applied.
    client = server.client()
    client.send(client.request(CMD_WRITE, 4096, 65536, 0, 1) + DATA[:1000])
    client.sock.shutdown(socket.SHUT_WR)
    client.recv_until_closed()
    client.close()
    check_good_client(server, DATA[:512])
    with server.client() as client:
        same_bytes(client.read(4096, 65536), bytes(65536), "what half a request has written")
        client.disconnect()
    check("without closing its TLS session" in server.log, server.log)


@row("A56", "ends and resets inside of a TLS handshake, ten thousand times (CVE-2023-3354)")
def _(stage):
    count = 500 if SANITIZED else 10000
    server = serve(stage, tcp=True)
    hello = client_hello()
    before = 0
    for number in range(count):
        if number == count // 2:
            before = resident_kib(server)
        client = server.client(connect=False)
        # Not read: a client that does not care.
        client.send(struct.pack(">I", 3) + option_bytes(OPT_STARTTLS))
        client.recv(18 + 20)
        client.send(hello[:number % (len(hello) + 1)])
        if number % 3 == 0:
            client.reset()
        client.close()
    check_good_client(server, DATA[:HEAD])
    if not SANITIZED:
        grown = resident_kib(server) - before
        check(grown <= 2 << 10, f"the server has grown by {grown} KiB")


@row("A57", "plain text where clients may choose, and TLS beside it")
def _(stage):
    server = serve(stage, mode="on")
    plain, safe = stage.haggler(server), inside(stage, server)
    for client in (plain, safe):
        check(not any(kind & ERR for kind, _ in client.option(OPT_LIST)), "LIST")
        client.go()
        same_bytes(client.read(0, 512), DATA[:512], "data")
    server.tls = None
    check_good_client(server, DATA[:HEAD])
    server.tls = client_context()


@row("A59", "certificates that are replaced by bad ones")
def _(stage):
    pki = Pki(stage.t)
    folder = pki.folder(folder=pki.path("live"))
    server = serve(stage, "-v", folder=folder)

    def shown():
        with inside(stage, server) as client:
            return client.sock.getpeercert(binary_form=True)
    first = shown()
    certificate, key = os.path.join(folder, "server-cert.pem"), os.path.join(folder, "server-key.pem")
    expired = pki.folder(dates=PAST)
    for bad in (b"", b"garbage", read_file(certificate)[:300], bytes(2 << 20),
                read_file(os.path.join(expired, "server-cert.pem"))):
        write_file(certificate, bad)
        equal(shown(), first, "certificate")
    for path in (certificate, key):
        os.unlink(path)
        equal(shown(), first, "certificate")
    os.mkfifo(key)
    equal(shown(), first, "certificate")
    os.unlink(key)
    check(server.log.count("going on with those from before") >= 5, server.log)
    for name in os.listdir(fresh := pki.folder()):
        shutil.copy(os.path.join(fresh, name), folder)
    check(shown() != first, "the new certificate is not used")
