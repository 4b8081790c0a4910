#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""evnbd --list: the same as qemu-nbd --list with everybody's servers, JSON, and servers that misbehave."""
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

from evnbd_test import (EVNBD, HANG, MIB, SANITIZER, cases, check, equal, free_port, have_ipv6, main,
                        need, qemu_img, read_file, refused_command, run, skip, wait_for)
from nbd_raw import IHAVEOPT, NBDMAGIC, OLDSTYLE_MAGIC, REPLY_MAGIC

BLOCK_STATUS_PAYLOAD = 1 << 12  # newer than some qemu-nbd
ERR = 1 << 31
LIST, INFO = 3, 6


class Peer:
    """A server that is not evnbd. `where` are the options with which a client finds it."""

    def __init__(self, case, command, unix=None, port=None, pid_file=None):
        self.command = [str(word) for word in command]
        self.pid_file = pid_file  # of a server that goes to the background
        self.where = ["-k", unix] if unix else ["-b", "127.0.0.1", "-p", str(port)]
        self.err = case.path(f"peer{case.number()}.err")
        with open(self.err, "wb") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        case.servers.append(self)
        address = unix or ("127.0.0.1", port)
        wait_for(lambda: self.answers(address), f"{self.command[0]} to listen")

    def answers(self, address):
        check(self.process.poll() is None or self.pid_file and self.process.poll() == 0,
              f"{' '.join(self.command)} has ended: {self.log}")
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
            return probe.connect_ex(address) == 0

    @property
    def log(self):
        with open(self.err, encoding="utf-8", errors="replace") as log:
            return log.read()

    def signal(self, signum):
        """Returns whether there was still a process."""
        try:
            if self.pid_file:
                os.kill(int(read_file(self.pid_file)), signum)
            elif self.process.poll() is None:
                self.process.send_signal(signum)
            else:
                return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def stop(self):
        self.signal(signal.SIGTERM)
        wait_for(lambda: not self.signal(0), f"{self.command[0]} to end")

    def kill(self):
        self.signal(signal.SIGKILL)


def where_is(server):
    """The options that tell a client where our own server is."""
    return ["-k", server.unix] if server.unix else ["-b", server.host, "-p", server.port]


def own(t, *options, size=4 * MIB, **keywords):
    server = t.serve(t.sparse_file("disk.raw", size), "-f", "raw", *options, **keywords)
    return where_is(server)


def qemu(t, *options, image=None):
    need("qemu-nbd")
    unix = t.path("qemu.sock")
    image = image or ["-f", "raw", t.sparse_file("disk.raw", 4 * MIB)]
    return Peer(t, ["qemu-nbd", "-t", "-e", "0", "-k", unix, *options, *image], unix=unix).where


def qemu_with_bitmap(t):
    need("qemu-nbd", "qemu-img")
    image = t.path("disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", image, "3M")
    qemu_img("bitmap", "--add", "--disable", image, "since-monday")
    return qemu(t, "-A", "-B", "since-monday", image=["-f", "qcow2", image])


def nbdkit(t, *arguments):
    need("nbdkit")
    unix = t.path("nbdkit.sock")
    return Peer(t, ["nbdkit", "-f", "-U", unix, *arguments], unix=unix).where


def directory(t, count=5):
    """A directory of files for nbdkit, some with names that a terminal could obey."""
    folder = t.path("files")
    os.mkdir(folder)
    for number in range(count):
        with open(os.path.join(folder, f"file{number}"), "wb") as file:
            file.truncate(1000 * number)
    return folder


def nbd_server(t, generic="allowlist = true"):
    need("nbd-server")
    port, config, pid_file = free_port(), t.path("nbd-server.conf"), t.path("nbd-server.pid")
    image = t.sparse_file("disk.raw", 4 * MIB)
    with open(config, "w", encoding="utf-8") as file:
        file.write(f"[generic]\n{generic}\nport = {port}\nlistenaddr = 127.0.0.1\n"
                   f"[one]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
                   f"[two]\nexportname = {image}\nreadonly = true\nrotational = true\n")
    return Peer(t, ["nbd-server", "-C", config, "-p", pid_file], port=port, pid_file=pid_file).where


SERVERS = {
    "evnbd": own,
    "evnbd-named": lambda t: own(t, "-D", "about the disk", export="disk", size=1001),
    "evnbd-not-ascii": lambda t: own(t, "-D", "\u20ac", export="caf\u00e9's \"disk\" \\"),
    "evnbd-read-only": lambda t: own(t, "-r", "-e", "5"),
    "evnbd-empty": lambda t: own(t, size=0),
    "evnbd-oldstyle": lambda t: own(t, "--oldstyle"),
    "evnbd-tcp": lambda t: own(t, port=free_port()),
    "qemu-nbd": qemu,
    "qemu-nbd-named": lambda t: qemu(t, "-x", "disk", "-D", "about the disk", "-r"),
    "qemu-nbd-bitmap": qemu_with_bitmap,
    "nbdkit-memory": lambda t: nbdkit(t, "memory", "1M"),
    "nbdkit-oldstyle": lambda t: nbdkit(t, "-o", "memory", "1M"),
    "nbdkit-read-only": lambda t: nbdkit(t, "-r", "memory", "1M"),
    "nbdkit-no-structured-replies": lambda t: nbdkit(t, "--no-sr", "memory", "1M"),
    "nbdkit-described": lambda t: nbdkit(t, "--filter=exportname", "memory", "1M",
                                         "exportdesc=fixed:about the disk"),
    "nbdkit-block-sizes": lambda t: nbdkit(t, "--filter=blocksize-policy", "memory", "1M",
                                           "blocksize-minimum=512", "blocksize-preferred=64K",
                                           "blocksize-maximum=4294967295"),
    "nbdkit-directory": lambda t: nbdkit(t, "file", f"dir={directory(t)}"),
    "nbdkit-many": lambda t: nbdkit(t, "file", f"dir={directory(t, 200)}"),
    "nbd-server": nbd_server,
}


def listing(where, *options, log=""):
    """What evnbd --list prints; it must succeed, and say on stderr what matches `log`."""
    done = run(EVNBD, "--list", *where, *options)
    check(not SANITIZER.search(done.stderr), done.stderr)
    check(re.fullmatch(log, done.stderr, re.S), f"stderr is not /{log}/: {done.stderr}")
    return done.stdout


def without_news(text):
    """The text without what older versions of qemu-nbd do not know."""
    lines = []
    for line in text.splitlines(keepends=True):
        if match := re.fullmatch(r"  flags: 0x([0-9a-f]+) \((.*) \)\n", line):
            words = match[2].replace(" block-status-payload", "")
            line = f"  flags: {int(match[1], 16) & ~BLOCK_STATUS_PAYLOAD:#x} ({words} )\n"
        if not line.startswith("  transaction size: "):
            lines.append(line)
    return "".join(lines)


@cases(*SERVERS)
def test_same_as_qemu_nbd(t, name):
    need("qemu-nbd")
    where = SERVERS[name](t)
    ours = listing(where)
    equal(without_news(ours), without_news(run("qemu-nbd", "--list", *where).stdout), "the list")
    equal(ours.count("\n  transaction size: "), ours.count("\n export: "), "transaction sizes")


def parsed(text):
    """Name, description, size, flags, words of flags, block sizes, contexts of each export."""
    found = []
    for block in re.split(r"^ export: ", text, flags=re.M)[1:]:
        name = re.match(r"'(.*)'\n", block)[1]
        fields = dict(re.findall(r"^  ([a-z ]+): +(.*)$", block, re.M))
        number, words = re.fullmatch(r"(0x\w+) \((.*) \)", fields["flags"]).groups()
        found.append({
            "name": name, "size": int(fields["size"]), "flags": int(number, 16), "flag-words": words.split(),
            "transaction-size": int(fields["transaction size"].split("-")[0]),
            "contexts": re.findall(r"^   (\S.*)$", block, re.M),
            **{key.replace(" ", "-"): int(fields[key]) for key in fields if key.endswith(" block")},
            **({"description": fields["description"]} if "description" in fields else {}),
        })
    return found


@cases(*SERVERS)
def test_json_tells_the_same(t, name):
    where = SERVERS[name](t)
    top = json.loads(listing(where, "--json"))
    for export in top["exports"]:
        export.pop("canonical-name", None)
    equal(top["exports"], parsed(listing(where)), "exports")
    equal(top["protocol"], "oldstyle" if "oldstyle" in name else "newstyle-fixed", "protocol")


def test_json_of_one_disk(t):
    export = json.loads(listing(own(t, "-r", "-D", "text", export="disk"), "--json"))["exports"][0]
    equal((export["name"], export["description"], export["size"], export["min-block"]),
          ("disk", "text", 4 * MIB, 1), "the export")
    check("readonly" in export["flag-words"] and "trim" not in export["flag-words"], export)


def test_extended_headers_and_contexts(t):
    """What newer versions of qemu-nbd tell too."""
    where = own(t, "-A")
    check("  transaction size: 64-bit\n  available meta contexts: 2\n"
          "   base:allocation\n   qemu:allocation-depth\n" in listing(where), listing(where))
    top = json.loads(listing(where, "--json"))
    equal((top["structured-replies"], top["exports"][0]["transaction-size"], top["exports"][0]["contexts"]),
          (True, 64, ["base:allocation", "qemu:allocation-depth"]), "what is told in JSON")


# ---- Where the server is ----

def test_default_address(t):
    port = free_port()
    own(t, port=port)
    check("  size:  4194304\n" in listing(["-p", str(port)]), "not found without a host")
    check("  size:  4194304\n" in listing(["-p", str(port), "-b", "localhost"]), "not found by name")


def test_ipv6(t):
    if not have_ipv6():
        skip("there is no IPv6 here")
    port = free_port()
    own(t, host="::1", port=port)
    check("  size:  4194304\n" in listing(["-b", "::1", "-p", str(port)]), "not found")


NOWHERE = {
    "socket": (["-k", "/nowhere/sock"], "Failed to connect to '/nowhere/sock': No such file"),
    "port": (["-b", "127.0.0.1", "-p", "1"], r"Failed to connect to '127\.0\.0\.1:1': Connection refused"),
    "ipv6": (["-b", "::1", "-p", "1"], r"Failed to connect to '\[::1\]:1': "),
    "service": (["-p", "no-such-service"], "address resolution failed for localhost:no-such-service: "),
    "relative": (["-k", "sock"], "socket path must be absolute"),
}


@cases(*NOWHERE)
def test_no_server(t, name):
    where, pattern = NOWHERE[name]
    refused_command([EVNBD, "-L", *where], [pattern])


# ---- What the server notices ----

def test_server_stays(t):
    """Asking is not being served: the server goes on waiting for its first client."""
    server = t.serve(t.sparse_file("disk.raw", MIB), "-f", "raw", persistent=False)
    for _ in range(3):
        listing(where_is(server))
    with server.client() as client:
        equal(client.export.size, MIB, "size")
    server.wait_end()


def test_server_that_is_busy(t):
    server = t.serve(t.sparse_file("disk.raw", MIB), "-f", "raw")
    with server.client():
        refused_command([EVNBD, "-L", "-k", server.unix, "--handshake-limit=1"],
                        [f"exports of '{server.unix}': the server did not tell everything in time"])
    listing(["-k", server.unix])


def test_secret_list(t):
    where = nbd_server(t, generic="")
    message = refused_command([EVNBD, "-L", *where], [r"Failed to list the exports of '127.0.0.1:\d+': "
                                                      r"the server refuses to list .*\(ERR_POLICY\)"])
    equal(message.count("\n"), 1, "lines of the message")


def test_tls_is_wanted(t):
    need("nbdkit")
    if "tls=yes" not in run("nbdkit", "--dump-config").stdout:
        skip("nbdkit has no TLS")
    keys = t.file("keys.psk", b"user:" + b"ab" * 32 + b"\n")
    os.chmod(keys, 0o600)
    where = nbdkit(t, "--tls=require", f"--tls-psk={keys}", "memory", "1M")
    refused_command([EVNBD, "-L", *where], [r"the server wants TLS first \(ERR_TLS_REQD\)"])


def test_output_that_is_lost(t):
    where = own(t)
    for options in ([], ["--json"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([EVNBD, "-L", *where, *options], stdout=full, stderr=subprocess.PIPE,
                                  timeout=HANG, check=False)
        equal(done.returncode, 1, "exit status")
        check(b"Could not write to the standard output: No space left" in done.stderr, done.stderr)


def test_traces(t):
    text = run(EVNBD, "-L", *own(t), "-T", "nbd_client_*").stderr
    check("nbd_client_option" in text and "LIST" in text and "ABORT" in text, text)


# ---- Servers that misbehave ----

def reply(option, kind, data=b""):
    return struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data


def item(name, text=b""):
    return reply(LIST, 2, struct.pack(">I", len(name)) + name + text)


def size(length, flags=1):
    return reply(INFO, 3, struct.pack(">HQH", 0, length, flags))


GREETING = struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3)
OLDSTYLE = struct.pack(">QQQI", NBDMAGIC, OLDSTYLE_MAGIC, 512, 3) + bytes(124)
PLAIN = GREETING + reply(11, ERR + 1) + reply(8, ERR + 1)
SESSION = PLAIN + item(b"a", b"text") + reply(LIST, 1) + size(512) + reply(INFO, 1)


class Fake:
    """A server in a thread: what `behave(connection, number)` does with each connection."""

    def __init__(self, case, behave):
        self.path, self.behave, self.count = case.path(f"fake{case.number()}.sock"), behave, 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(5)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.count += 1
            with connection:
                try:
                    self.behave(connection, self.count)
                except OSError:
                    pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def says(data):
    """Says it and hears the client out, so that it is not reset."""
    def behave(connection, _number):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    return behave


def refused_by(t, behave, *patterns, options=()):
    with Fake(t, behave) as fake:
        return refused_command([EVNBD, "-L", "-k", fake.path, *options],
                               [re.escape(fake.path) + "'", *patterns])


def test_server_dies_anywhere(t):
    with Fake(t, says(SESSION)) as fake:
        check(" export: 'a'\n  description: text\n  size:  512\n" in listing(["-k", fake.path]), "not listed")
    for end in range(0, len(SESSION), 7):
        refused_by(t, says(SESSION[:end]), "the server closed the connection")


def test_server_resets(t):
    def behave(connection, _number):
        connection.sendall(GREETING)
        connection.recv(1)
    refused_by(t, behave, "the server closed the connection when asked for EXTENDED_HEADERS")


SLOW = {  # what is said, and seconds after each byte
    "silent": (b"", 0),
    "stalls": (GREETING, 0),
    "stalls-late": (PLAIN, 0),
    "drips": (SESSION, 0.05),
}


@cases(*SLOW)
def test_slow_server(t, name):
    data, pause = SLOW[name]
    gone = threading.Event()

    def behave(connection, _number):
        for at in range(len(data)):
            connection.sendall(data[at:at + 1])
            time.sleep(pause)
        gone.wait(HANG)
    refused_by(t, behave, "did not tell everything in time", options=["--handshake-limit=1"])
    gone.set()


FLOODS = {  # what comes first, what comes without end
    "exports": (PLAIN, item(b"a"), "more than is kept"),
    "information": (PLAIN + item(b"a") + reply(LIST, 1), size(5), "does not come to an end"),
    "memory": (PLAIN, item(b"n" * 4096, b"t" * 4096), "64 MiB in all"),
}


@cases(*FLOODS)
def test_flood(t, name):
    start, message, pattern = FLOODS[name]

    def behave(connection, _number):
        connection.sendall(start)
        many = message * (1 + 65536 // len(message))
        while True:
            connection.sendall(many)
    refused_by(t, behave, pattern)


BROKEN = {
    "ssh": (b"SSH-2.0-OpenSSH_9\r\n", "this is no NBD server: it begins with 'SSH-2.0"),
    "http": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "this is no NBD server: it begins with 'HTTP"),
    "escape": (b"\x1b[2J", r"begins with '\\x1b\[2J'"),
    "zeroes": (bytes(200), "this is no NBD server"),
    "oldstyle-huge": (OLDSTYLE[:16] + b"\x80" + OLDSTYLE[17:], r"922337203685477\d+ bytes"),
    "huge": (SESSION.replace(size(512), size(1 << 63)), "9223372036854775808 bytes"),
    "reply-of-4-gib": (PLAIN + struct.pack(">QIII", REPLY_MAGIC, LIST, 2, 0xFFFFFFFF), "4294967295 bytes"),
    "name-of-4-gib": (PLAIN + reply(LIST, 2, b"\xff\xff\xff\xffx"), "a name of 4294967295"),
    "block-size-0": (SESSION.replace(size(512), reply(INFO, 3, struct.pack(">HIII", 3, 0, 0, 0))),
                     "impossible block sizes of export 'a'"),
    "no-size": (SESSION.replace(size(512), b""), "without its size"),
}


@cases(*BROKEN)
def test_broken_protocol(t, name):
    data, pattern = BROKEN[name]
    message = refused_by(t, says(data), pattern)
    equal([c for c in message if not c.isprintable() and c != "\n"], [], "control characters in the message")


def test_terminal_is_safe(t):
    name, text = b"a\x1b]0;x\x07b\r\n\x9b", b"\xc2\x9b1m\x00"
    data = SESSION.replace(item(b"a", b"text"), item(name, text))
    with Fake(t, says(data)) as fake:
        output = listing(["-k", fake.path])
        check(" export: 'a\\x1b]0;x\\x07b\\x0d\\x0a\\x9b'\n  description: \\xc2\\x9b1m\\x00\n" in output, output)
        export = json.loads(listing(["-k", fake.path], "--json"))["exports"][0]
        equal(export["name"], "a\\x1b]0;x\\x07b\\x0d\\x0a\\x9b", "the name in JSON")


def test_refusals_about_exports(t):
    data = (PLAIN + item(b"a") + item(b"b") + item(b"c") + reply(LIST, 1) + size(512) + reply(INFO, 1) +
            reply(INFO, ERR + 2, b"not for you\x1b") + size(1024) + reply(INFO, 1))
    with Fake(t, says(data)) as fake:
        output = listing(["-k", fake.path],
                         log=r"\S+: (warning: )?export 'b': the server refuses to tell more of it "
                             r"\(ERR_POLICY\): not for you\\x1b\n")
        equal(output.count(" export: "), 3, "exports")
        check(" export: 'c'\n  size:  1024\n" in output, output)


def test_server_with_few_options(t):
    """Servers may hang up after some options; the client comes back for the rest."""
    names = [b"export%d" % number for number in range(30)]

    def answer(option, data):
        if option == LIST:
            return b"".join(item(name) for name in names) + reply(LIST, 1)
        if option == INFO:
            return size(names.index(data[4:-8])) + reply(INFO, 1)
        return reply(option, ERR + 1)

    def behave(connection, _number):
        stream = connection.makefile("rb")
        connection.sendall(GREETING)
        stream.read(4)
        for _ in range(10):
            _magic, option, length = struct.unpack(">QII", stream.read(16))
            connection.sendall(answer(option, stream.read(length)))
    with Fake(t, behave) as fake:
        output = listing(["-k", fake.path])
        equal(re.findall(r"^ export: '(.*)'\n  size:  (\d+)$", output, re.M),
              [(name.decode(), str(number)) for number, name in enumerate(names)], "exports")
        check(fake.count > 2, f"{fake.count} connections")


def test_server_that_always_hangs_up(t):
    """Without progress there is no coming back."""
    data = PLAIN + item(b"a") + item(b"b") + reply(LIST, 1)

    def behave(connection, number):
        equal(number, 1, "connections")
        says(data)(connection, number)
    refused_by(t, behave, "closed the connection when asked for INFO of export 'a'")


if __name__ == "__main__":
    main()
