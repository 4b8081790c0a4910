# SPDX-License-Identifier: BSD-3-Clause
"""What the end-to-end tests stand on: running evnbd, making images, comparing, reporting.

A test program defines functions test_*(t), where `t` is a Case, and ends with main().  Each runs in
its own directory and is reported as one line of TAP.  @cases makes several tests of one function.

EVNBD names the daemon.  EVNBD_SHARED names a directory with sample images (default: ../shared beside
the source tree); tests that want them are skipped without it.
"""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

from nbd_raw import RawClient

EVNBD = os.environ.get("EVNBD", "evnbd")
HELPERS = os.environ.get("EVNBD_HELPERS", "")
SOURCE_ROOT = os.environ.get("EVNBD_SOURCE_ROOT") or os.path.realpath(
    os.path.join(os.path.dirname(__file__), "..", ".."))
SHARED = os.environ.get("EVNBD_SHARED") or os.path.join(SOURCE_ROOT, "..", "shared")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HANG = 120  # seconds after which something that should have happened counts as a hang
SANITIZER = re.compile(r"(Address|Leak|UndefinedBehavior)Sanitizer|runtime error:")
SANITIZED = "asan" in os.environ.get("EVNBD_BUILD", "")


class Skip(Exception):
    pass


class Refused(AssertionError):
    """evnbd ended at its start; `status` and `log` say how."""

    def __init__(self, command, status, log):
        super().__init__(f"{' '.join(command)} ended with status {status} at the start:\n{log}")
        self.status, self.log = status, log


def skip(reason):
    raise Skip(reason)


def need(*programs):
    """Skips the test when a program is not installed."""
    for program in programs:
        if not shutil.which(program):
            skip(f"{program} is not installed")


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: {short(got)} instead of {short(wanted)}")


def short(value):
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}... ({len(text)} characters)"


def same_bytes(got, wanted, what):
    """As equal(), and names the first byte that differs."""
    if got == wanted:
        return
    equal(len(got), len(wanted), f"length of {what}")
    at = next(i for i, (a, b) in enumerate(zip(got, wanted)) if a != b)
    raise AssertionError(f"{what} differs from byte {at} on: {got[at:at + 16].hex()} instead of "
                         f"{wanted[at:at + 16].hex()}")


def run(*command, status=0, **options):
    """Runs a program that must end with `status` (None: any); returns its CompletedProcess."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=HANG, check=False, **options)
    if status is not None and done.returncode != status:
        raise AssertionError(f"{' '.join(map(str, command))}: exit status {done.returncode} instead "
                             f"of {status}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def qemu_img(*arguments, **options):
    need("qemu-img")
    return run("qemu-img", *arguments, **options)


def qemu_img_check(image):
    """Neither errors nor leaks."""
    done = qemu_img("check", "--output=json", image, status=None)
    found = json.loads(done.stdout) if done.stdout else {}
    bad = {key: found[key] for key in ("corruptions", "leaks", "check-errors") if found.get(key)}
    check(done.returncode == 0 and not bad, f"qemu-img check {image}: {bad} {done.stderr}")


def qemu_io(image, *commands, arguments=(), status=0):
    """Runs qemu-io commands; a failed pattern check is a failure too."""
    need("qemu-io")
    words = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", *arguments, *words, image, status=status)
    check(status != 0 or "verification failed" not in done.stdout, done.stdout)
    return done


def content(seed, length):
    """Deterministic bytes without a pattern."""
    return random.Random(seed).randbytes(length)


def write_file(path, data):
    with open(path, "wb") as file:
        file.write(data)
    return path


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wait_for(condition, what, seconds=HANG):
    """Waits for something that another process does."""
    limit = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < limit, f"waited {seconds} s in vain for {what}")
        time.sleep(0.005)


def ended(pid):
    """Whether a process has ended; that its parent has not asked how, as some are slow to, is no matter."""
    try:
        return "\nState:\tZ" in read_file(f"/proc/{pid}/status").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def have_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def samples(format_name):
    """Rows of the shared sample images of one format, as dictionaries."""
    manifest = os.path.join(SHARED, "samples", "MANIFEST.tsv")
    if not os.path.exists(manifest):
        skip("the shared sample images are not here (EVNBD_SHARED)")
    with open(manifest, encoding="utf-8") as lines:
        keys = next(lines).lstrip("#").rstrip("\n").split("\t")
        rows = [dict(zip(keys, line.rstrip("\n").split("\t"))) for line in lines]
    return [row for row in rows if row["format"] == format_name]


def unpack_sample(t, row):
    need("xz")
    path = t.path(row["set"])
    with open(path, "wb") as out:
        subprocess.run(["xz", "-dc", os.path.join(SHARED, "samples", row["stored_file"])],
                       stdout=out, check=True, timeout=HANG)
    return path


# Puts the descriptors (argv 1: their numbers) at 3, 4, ... and becomes the program, as the process
# with the number that LISTEN_PID says. argv 2 and 3: LISTEN_FDS, and what is added to LISTEN_PID.
ACTIVATE = """
import os, sys
descriptors = [os.dup(int(word)) for word in sys.argv[1].split()]
descriptors = [os.dup2(fd, fd + 100) for fd in descriptors]
os.closerange(3, 100)
for number, fd in enumerate(descriptors):
    os.dup2(fd, 3 + number)
os.closerange(100, 300)
os.environ.update(LISTEN_FDS=sys.argv[2], LISTEN_PID=str(os.getpid() + int(sys.argv[3])))
os.execvp(sys.argv[4], sys.argv[4:])
"""


def activated(passed, count=None, pid_offset=0):
    """Keywords for what starts a program, to pass it these sockets as a service manager does."""
    numbers = [sock.fileno() for sock in passed]
    return {"prefix": [sys.executable, "-c", ACTIVATE, " ".join(map(str, numbers)),
                       str(len(numbers) if count is None else count), str(pid_offset)],
            "pass_fds": numbers}


class Server:
    """
    A running evnbd. `image` and options are passed as they are; one of unix, port, passed says
    where: the last is sockets that are passed to it (socket activation). configured: a file says it.
    """

    def __init__(self, case, image, *options, unix=None, host=None, port=None, passed=(), export="",
                 persistent=True, prefix=(), tls=None, configured=False, **popen):
        self.tls = tls  # the ssl.SSLContext of its clients
        self.stem = case.path(f"server{case.number()}")
        if passed:
            popen.update(activated(passed))
            prefix = popen.pop("prefix")
            name = passed[0].getsockname()
            unix, (host, port) = (name, (None, None)) if isinstance(name, str) else (None, name[:2])
        self.unix = unix or (None if port else self.stem + ".sock")
        self.host, self.port, self.export = host or "127.0.0.1", port, export
        self.pid_file = self.stem + ".pid"
        where = ["-k", self.unix] if self.unix else ["-b", self.host, "-p", str(port)]
        where = [] if passed or configured else where
        words = [*prefix, EVNBD, *where, f"--pid-file={self.pid_file}", *(["-t"] if persistent else []),
                 *(["-x", export] if export else []), *options, *([image] if image else [])]
        self.command = [str(word) for word in words]
        with open(self.stem + ".err", "wb") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, **popen)
        self.wait_ready_in(case)

    @property
    def log(self):
        with open(self.stem + ".err", encoding="utf-8", errors="replace") as log:
            return log.read()

    @property
    def pid(self):
        with open(self.pid_file, encoding="ascii") as file:
            return int(file.read())

    def wait_ready_in(self, case):
        case.servers.append(self)
        try:
            self.wait_ready()
        except Refused:
            case.servers.remove(self)
            raise

    def wait_ready(self):
        """The pid file is written when the image is open, just before clients are served."""
        def ready():
            if self.process.poll() is not None:
                raise Refused(self.command, self.process.returncode, self.log)
            return os.path.exists(self.pid_file) and read_file(self.pid_file).endswith(b"\n")
        wait_for(ready, "the server to be ready")

    @property
    def uri(self):
        export = "/" + self.export if self.export else "/"
        if self.unix:
            return f"nbd+unix://{export}?socket={self.unix}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}{export}"

    def client(self, connect=True, mode="simple", contexts=()):
        raw = RawClient(self.unix or (self.host, self.port), self.tls)
        return raw.connect(self.export.encode(), mode, contexts) if connect else raw

    def status_field(self, field):
        """A number of /proc/PID/status, for example VmRSS in KiB."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def check_log(self):
        check(not SANITIZER.search(self.log), f"the server's stderr:\n{self.log[-6000:]}")

    def wait_end(self, status=0):
        """Waits until the server has ended by itself, or because it was told to."""
        try:
            got = self.process.wait(HANG)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end within {HANG} s:\n{self.log}") from None
        self.check_log()
        equal(got, status, f"exit status of the server ({self.log[-2000:].strip()})")

    def stop(self, signum=signal.SIGTERM, status=0):
        if self.process.poll() is None:
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:
                pass
        self.wait_end(status)

    def kill(self):
        if self.process.poll() is None:
            try:
                os.kill(self.pid, signal.SIGKILL)  # with a prefix it is not the process started here
            except (OSError, ValueError):
                pass
            self.process.kill()
            self.process.wait()


def refused(case, image, *options, says=(), **popen):
    """Starts evnbd, which must refuse: exit status 1 and a message that matches all of `says`."""
    socket_path = case.path(f"refused{case.number()}.sock")
    words = [EVNBD, "-t", "-k", socket_path, *options, *([image] if image else [])]
    return refused_command(words, says, **popen)


def refused_command(words, says=(), **popen):
    try:
        done = run(*words, status=None, **popen)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{' '.join(map(str, words))} was not refused within {HANG} s") from None
    check(not SANITIZER.search(done.stderr), done.stderr)
    equal(done.returncode, 1, f"exit status of {' '.join(map(str, words))} ({done.stderr.strip()})")
    for pattern in says:
        check(re.search(pattern, done.stderr, re.I),
              f"the message of {' '.join(map(str, words))} does not say /{pattern}/: {done.stderr}")
    return done.stderr


class Case:
    """One test: its directory and its servers."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="evnbd-")
        self.servers = []
        self.numbers = 0

    def number(self):
        self.numbers += 1
        return self.numbers

    def path(self, name):
        return os.path.join(self.dir, name)

    def serve(self, image, *options, **keywords):
        return Server(self, image, *options, **keywords)

    def file(self, name, data):
        return write_file(self.path(name), data)

    def sparse_file(self, name, size):
        with open(self.path(name), "wb") as file:
            file.truncate(size)
        return self.path(name)

    def stop_servers(self):
        for server in reversed(self.servers):  # what was started last may use the others
            server.stop()

    def close(self):
        for server in self.servers:
            server.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def logs(self):
        return "".join(f"{' '.join(server.command)}\n{server.log[-4000:]}" for server in self.servers)


def cases(*parameters, sanitized=None):
    """
    Runs the function once with each tuple of parameters.  Where processes are what takes the time,
    sanitized(*parameters) picks those that builds with sanitizers run; plain builds run all.
    """
    def mark(function):
        function.cases = [p if isinstance(p, tuple) else (p,) for p in parameters]
        if SANITIZED and sanitized:
            function.cases = [p for p in function.cases if sanitized(*p)]
        return function
    return mark


def tests_of(module):
    for name, function in list(vars(module).items()):
        if name.startswith("test_"):
            for parameters in getattr(function, "cases", [()]):
                label = "-".join([name[5:], *(str(p) for p in parameters)])
                yield re.sub(r"[^\w.+-]+", "_", label), function, parameters


def run_test(function, parameters):
    """Returns (TAP's ok or not, directive, diagnostics)."""
    case = Case()
    try:
        function(case, *parameters)
        case.stop_servers()
        return True, "", ""
    except Skip as reason:
        return True, f" # SKIP {reason}", ""
    except Exception:  # whatever it is, it is that test's failure
        return False, "", traceback.format_exc() + case.logs()
    finally:
        case.close()


def main():
    """Runs the tests of the program, or those whose names contain one of the arguments."""
    wanted = sys.argv[1:]
    tests = [test for test in tests_of(sys.modules["__main__"])
             if not wanted or any(word in test[0] for word in wanted)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are stopped
    print(f"1..{len(tests)}", flush=True)
    failed = 0
    for number, (name, function, parameters) in enumerate(tests, 1):
        good, directive, diagnostics = run_test(function, parameters)
        failed += not good
        print(f"{'' if good else 'not '}ok {number} - {name}{directive}", flush=True)
        for line in diagnostics.splitlines():
            print(f"# {line}", flush=True)
    sys.exit(1 if failed else 0)
