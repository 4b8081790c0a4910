# SPDX-License-Identifier: BSD-3-Clause
"""The servers under test: how each is started on an image, watched and stopped.

Each gets the same image and, as far as it has them, the same settings: it stays when the last
client leaves, takes any number of clients, caches writes in the page cache, and offers flush, FUA
and trim.
"""
import os
import shutil
import signal
import socket
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 10
STOP_SECONDS = 10
TCP_PORT = 10899


class BenchError(Exception):
    """A sentence for the user."""


class Credentials:
    """A certificate for localhost with its CA, and a pre-shared key, made once in a directory."""

    def __init__(self, directory):
        self.directory = os.path.join(directory, "tls")
        self.keys = os.path.join(self.directory, "keys.psk")

    def path(self, name):
        return os.path.join(self.directory, name)

    def make(self):
        if os.path.exists(self.directory):
            return
        os.mkdir(self.directory, 0o700)
        self.write("keys.psk", f"qemu:{os.urandom(32).hex()}\n")
        for name in ("ca", "server"):
            certtool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1",
                     "--outfile", self.path(f"{name}-key.pem"))
        template = self.write("ca.info", 'cn = "bench"\nca\ncert_signing_key\nexpiration_days = 2\n')
        certtool("--generate-self-signed", "--load-privkey", self.path("ca-key.pem"),
                 "--template", template, "--outfile", self.path("ca-cert.pem"))
        template = self.write("server.info", 'cn = "localhost"\ndns_name = "localhost"\n'
                              "tls_www_server\nsigning_key\nexpiration_days = 2\n")
        certtool("--generate-certificate", "--load-privkey", self.path("server-key.pem"),
                 "--load-ca-certificate", self.path("ca-cert.pem"), "--load-ca-privkey",
                 self.path("ca-key.pem"), "--template", template, "--outfile",
                 self.path("server-cert.pem"))

    def write(self, name, text):
        with open(self.path(name), "w", encoding="ascii",
                  opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)
        return self.path(name)


def certtool(*arguments):
    try:
        done = subprocess.run(["certtool", *arguments], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    except FileNotFoundError:
        raise BenchError("the loads over TLS need certtool (package gnutls-bin)") from None
    if done.returncode:
        raise BenchError(f"certtool {' '.join(arguments)}: {done.stderr.strip()}")


class Endpoint:
    """
    Where a server listens: a Unix socket, or a TCP port of localhost. `tls`: over TLS with
    certificates ("x509") or keys ("psk"), or "" for plain text. `choice`: clients may do without it,
    as bench/load does then.
    """

    def __init__(self, transport, directory, tls="", choice=False):
        self.choice = choice
        self.path = os.path.join(directory, "socket") if transport == "unix" else None
        self.tls = tls
        self.credentials = Credentials(directory)
        if tls:
            self.credentials.make()

    @property
    def load_arguments(self):
        return self.where + ([] if self.choice else self.credential_options())

    @property
    def where(self):
        return ["--unix", self.path] if self.path else ["--tcp", f"127.0.0.1:{TCP_PORT}"]

    def credential_options(self):
        """As nbdkit and bench/load call them."""
        return {"": [], "x509": [f"--tls-certificates={self.credentials.directory}"],
                "psk": [f"--tls-psk={self.credentials.keys}"]}[self.tls]

    @property
    def uri(self):
        """For libnbd."""
        scheme = ("nbds" if self.tls else "nbd") + ("+unix" if self.path else "")
        host = "" if self.path else f"localhost:{TCP_PORT}"
        words = [f"socket={self.path}"] if self.path else []
        words += {"": [], "x509": [f"tls-certificates={self.credentials.directory}"],
                  "psk": [f"tls-psk-file={self.credentials.keys}"]}[self.tls]
        return f"{scheme}://{'qemu@' if self.tls == 'psk' else ''}{host}/?{'&'.join(words)}"

    def greets(self):
        """Whether somebody there sends the 18 bytes that begin a newstyle negotiation."""
        client = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET)
        client.settimeout(START_SECONDS)
        try:
            client.connect(self.path or ("127.0.0.1", TCP_PORT))
            return len(client.recv(18, socket.MSG_WAITALL)) == 18
        except OSError:
            return False
        finally:
            client.close()

    def clear(self):
        if self.path and os.path.exists(self.path):
            os.unlink(self.path)


# ---- what /proc knows about a server: it, its threads, and the processes it forked ----

def read_proc(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def stat_fields(pid):
    """The fields of /proc/PID/stat from the third (state) on; empty when there is no such one."""
    return read_proc(f"/proc/{pid}/stat").rpartition(")")[2].split()


def alive(pid):
    fields = stat_fields(pid)
    return bool(fields) and fields[0] != "Z"


def process_tree(pid):
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(name)
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(name))
    tree = [pid]
    for member in tree:
        tree += parents.get(member, [])
    return tree


def cpu_seconds(pid):
    """User and system time of the tree, ended threads and waited-for children included."""
    return sum(int(ticks) for member in process_tree(pid)
               for ticks in stat_fields(member)[11:15]) / TICKS


def status_sum(pid, field, every_thread):
    """The sum of a number in the status files of a tree's processes or of all their threads."""
    total = 0
    for member in process_tree(pid):
        tasks = f"/proc/{member}/task"
        ids = os.listdir(tasks) if every_thread and os.path.isdir(tasks) else [None]
        for task in ids:
            text = read_proc(f"{tasks}/{task}/status" if task else f"/proc/{member}/status")
            for line in text.splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1])
    return total


def resident_kib(pid):
    """VmRSS; of a server that forks, the proportional share, as pages are shared."""
    tree = process_tree(pid)
    if len(tree) == 1:
        return status_sum(pid, "VmRSS", False)
    total = 0
    for member in tree:
        for line in read_proc(f"/proc/{member}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


class Running:
    """A started server; a context manager that stops it."""

    def __init__(self, server, image, endpoint, directory, cpu):
        self.server = server
        self.image = image
        self.endpoint = endpoint
        self.log = os.path.join(directory, server.name + ".log")
        self.pid_file = os.path.join(directory, server.name + ".pid")
        endpoint.clear()
        if os.path.exists(self.pid_file):
            os.unlink(self.pid_file)
        argv = server.argv(image, endpoint, self.pid_file, directory) + server.extra
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=(lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None)
        self.pid = self.process.pid
        try:
            self.wait_ready(argv)
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, argv):
        deadline = time.monotonic() + START_SECONDS
        while not self.endpoint.greets():
            status = self.process.poll()
            ended = status is not None and not (self.server.daemonizes and status == 0)
            if ended or time.monotonic() > deadline:
                what = "ended at once" if ended else f"does not answer after {START_SECONDS} s"
                raise BenchError(f"{self.server.name} {what}. Command: {' '.join(argv)}\n"
                                 f"Its output: {read_proc(self.log).strip() or '(none)'}")
            time.sleep(0.005)
        if self.server.daemonizes:
            self.process.wait()
            self.pid = int(read_proc(self.pid_file))

    def cpu_seconds(self):
        """Waits (a second at most) for forks that end with their client, as they count then."""
        deadline = time.monotonic() + 1
        while len(process_tree(self.pid)) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        return cpu_seconds(self.pid)

    def stop(self):
        if self.server.daemonizes:
            self.process.wait(START_SECONDS)
            self.pid = int(read_proc(self.pid_file).strip() or 0)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.running():
                return
            os.kill(self.pid, number)
            deadline = time.monotonic() + STOP_SECONDS
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.005)

    def running(self):
        if self.server.daemonizes:
            return self.pid > 0 and alive(self.pid)
        return self.process.poll() is None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


# ---- the servers ----

class Server:
    """One kind of server. `peer`: counts when the best peer is looked for."""
    name = ""
    peer = False
    formats = ("raw",)
    export = ""
    daemonizes = False
    tls = False
    idle_connections = None  # a lower number for the memory section, where a client costs much

    def __init__(self, program, extra=()):
        self.program = program
        self.extra = list(extra)

    def argv(self, image, endpoint, pid_file, directory):
        raise NotImplementedError

    def version(self):
        done = subprocess.run([self.program, "--version"], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return (done.stdout.splitlines() or [""])[0].strip()


class QemuNbd(Server):
    name = "qemu-nbd"
    peer = True
    tls = True
    formats = ("raw", "qcow2")

    def argv(self, image, endpoint, pid_file, directory):
        listen = ["-k", endpoint.path] if endpoint.path else ["-b", "127.0.0.1", "-p",
                                                              str(TCP_PORT)]
        return [self.program, "-f", image.format, "-t", "-e", "0", "--cache=writeback",
                *listen, *self.tls_options(endpoint), image.path]

    def tls_options(self, endpoint):
        if not endpoint.tls:
            return []
        more = ",verify-peer=off" if endpoint.tls == "x509" else ""
        return ["--object", f"tls-creds-{endpoint.tls},id=tls0,endpoint=server,"
                            f"dir={endpoint.credentials.directory}{more}", "--tls-creds=tls0"]


class Evnbd(QemuNbd):
    """Takes the same command line, being a drop-in."""
    name = "evnbd"
    peer = False

    def tls_options(self, endpoint):
        options = super().tls_options(endpoint)
        return options + ["--tls=on"] if options and endpoint.choice else options


class Nbdkit(Server):
    name = "nbdkit"
    peer = True
    tls = True
    idle_connections = 50

    def argv(self, image, endpoint, pid_file, directory):
        listen = ["-U", endpoint.path] if endpoint.path else ["-i", "127.0.0.1", "-p",
                                                              str(TCP_PORT)]
        tls = [f"--tls={'on' if endpoint.choice else 'require'}",
               *endpoint.credential_options()] if endpoint.tls else []
        return [self.program, "-f", *listen, *tls, "file", image.path]


class NbdServer(Server):
    name = "nbd-server"
    peer = True
    export = "bench"
    daemonizes = True
    idle_connections = 50

    def argv(self, image, endpoint, pid_file, directory):
        listen = (f"unixsock = {endpoint.path}\nduallisten = false\n" if endpoint.path else
                  f"listenaddr = 127.0.0.1\nport = {TCP_PORT}\n")
        config = os.path.join(directory, "nbd-server.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[generic]\n{listen}[{self.export}]\nexportname = {image.path}\n"
                       "flush = true\nfua = true\ntrim = true\n")
        return [self.program, "-C", config, "-p", pid_file]


class Limit(Server):
    """bench/limit.c: what one thread can do at most."""
    name = "limit"

    def argv(self, image, endpoint, pid_file, directory):
        return [self.program, *endpoint.load_arguments, image.path]

    def version(self):
        return "bench/limit.c"


KINDS = (Evnbd, QemuNbd, Nbdkit, NbdServer, Limit)


def find_servers(build_dir, names, extra):
    """The servers of `names` that are there, and a message for each that is not."""
    built = {"evnbd": os.path.join(build_dir, "daemon", "evnbd"),
             "limit": os.path.join(build_dir, "bench", "limit")}
    found, missing = [], []
    for kind in KINDS:
        if kind.name not in names:
            continue
        program = built.get(kind.name) or shutil.which(kind.name)
        if program and os.access(program, os.X_OK):
            found.append(kind(program, extra.get(kind.name, ())))
        else:
            missing.append(f"{kind.name} is left out: "
                           + (f"{built[kind.name]} has not been built" if kind.name in built
                              else "it is not installed"))
    return found, missing
