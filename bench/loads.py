# SPDX-License-Identifier: BSD-3-Clause
"""The loads, the images they run on, and one measurement of a load against a server."""
import dataclasses
import os
import shutil
import subprocess
import time

import servers

KIB, MIB = 1 << 10, 1 << 20
SCRATCH_BYTES = 256 * MIB
EMPTY_BYTES = 10 << 30       # of an image that nothing was written to
COMPRESSED_BYTES = 128 * MIB
RUN_GRACE_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Load:
    name: str
    title: str
    op: str
    size: int
    depth: int
    connections: int = 1
    pattern: str = "rand"
    transport: str = "unix"
    flush_every: int = 0
    extra: bool = False  # only run when named
    tls: str = ""  # over TLS with certificates ("x509") or keys ("psk")
    client: str = "load"  # or nbdcopy, which reads the image from end to end
    content: str = "full"  # of the image: full, empty, chain-N (N files above a full one), compressed

    @property
    def writes(self):
        return self.op != "read"

    @property
    def punches(self):
        """Leaves holes behind, so every run needs a fresh image."""
        return self.op in ("zero", "trim")

    @property
    def formats(self):
        return ("raw", "qcow2") if self.content == "full" else ("qcow2",)

    def arguments(self):
        arguments = ["--op", self.op, "--size", str(self.size), "--depth", str(self.depth),
                     "--connections", str(self.connections), "--pattern", self.pattern]
        if self.flush_every:
            arguments += ["--flush-every", str(self.flush_every)]
        return arguments


LOADS = (
    Load("read-4k-d1", "4 KiB random read, depth 1", "read", 4 * KIB, 1),
    Load("read-4k-d32", "4 KiB random read, depth 32", "read", 4 * KIB, 32),
    Load("read-4k-d128", "4 KiB random read, depth 128", "read", 4 * KIB, 128),
    Load("read-4k-d32-c4", "4 KiB random read, depth 32, 4 connections", "read", 4 * KIB, 32, 4),
    Load("read-256k", "256 KiB sequential read, depth 8", "read", 256 * KIB, 8, pattern="seq"),
    Load("read-1m", "1 MiB sequential read, depth 4", "read", MIB, 4, pattern="seq"),
    Load("write-4k-d32", "4 KiB random write, depth 32", "write", 4 * KIB, 32),
    Load("write-256k", "256 KiB sequential write, depth 8", "write", 256 * KIB, 8, pattern="seq"),
    Load("mixed-4k-d32", "4 KiB mixed 70/30, depth 32", "mixed", 4 * KIB, 32),
    Load("read-4k-d32-c4-tcp", "4 KiB random read, depth 32, 4 connections, TCP", "read", 4 * KIB,
         32, 4, transport="tcp", extra=True),
    Load("read-1m-tcp", "1 MiB sequential read, depth 4, TCP", "read", MIB, 4, pattern="seq",
         transport="tcp", extra=True),
    Load("mixed-4k-flush", "4 KiB mixed 70/30, depth 32, a FLUSH every 64", "mixed", 4 * KIB, 32,
         flush_every=64, extra=True),
    Load("zero-64k", "64 KiB random write-zeroes, depth 32", "zero", 64 * KIB, 32, extra=True),
    Load("trim-64k", "64 KiB random trim, depth 32", "trim", 64 * KIB, 32, extra=True),
    Load("fill-64k", "64 KiB sequential write, depth 8, empty image", "write", 64 * KIB, 8,
         pattern="seq", extra=True, content="empty"),
    Load("fill-4k-d32", "4 KiB random write, depth 32, empty image", "write", 4 * KIB, 32,
         extra=True, content="empty"),
    Load("chain-1", "4 KiB random read, depth 32, chain of 1", "read", 4 * KIB, 32, extra=True,
         content="chain-1"),
    Load("chain-10", "4 KiB random read, depth 32, chain of 10", "read", 4 * KIB, 32, extra=True,
         content="chain-10"),
    Load("compressed-256k", "256 KiB sequential read, depth 8, compressed", "read", 256 * KIB, 8,
         pattern="seq", extra=True, content="compressed"),
    Load("tls-x509-copy", "nbdcopy over TLS, certificates", "read", 256 * KIB, 64, pattern="seq",
         extra=True, tls="x509", client="nbdcopy"),
    Load("tls-psk-copy", "nbdcopy over TLS, pre-shared keys", "read", 256 * KIB, 64, pattern="seq",
         extra=True, tls="psk", client="nbdcopy"),
    Load("tls-x509-256k", "256 KiB sequential read, depth 8, TLS, certificates", "read", 256 * KIB,
         8, pattern="seq", extra=True, tls="x509"),
    Load("tls-psk-256k", "256 KiB sequential read, depth 8, TLS, pre-shared keys", "read",
         256 * KIB, 8, pattern="seq", extra=True, tls="psk"),
    Load("tls-x509-4k-d32", "4 KiB random read, depth 32, TLS, certificates", "read", 4 * KIB, 32,
         extra=True, tls="x509"),
    Load("tls-psk-4k-d32", "4 KiB random read, depth 32, TLS, pre-shared keys", "read", 4 * KIB, 32,
         extra=True, tls="psk"),
    Load("tls-x509-write-256k", "256 KiB sequential write, depth 8, TLS, certificates", "write",
         256 * KIB, 8, pattern="seq", extra=True, tls="x509"),
)


@dataclasses.dataclass(frozen=True)
class Image:
    """
    A file with a format. `name` is what tables call it; `reference` is a raw file of what it holds,
    None when that is zeroes.
    """
    name: str
    format: str
    path: str
    reference: str = None


class Images:
    """The images of a run, in a directory of their own, made when first asked for."""

    def __init__(self, directory, size):
        self.directory = directory
        self.size = size
        self.made = {}

    def raw(self, size):
        return self.once(("raw", size), self.make_raw)

    def get(self, image_format, load=None):
        """
        The image that `load` runs on. One that holes are punched into is copied afresh, and an
        empty one made anew.
        """
        if load and load.content != "full":
            return self.with_content(load.content)
        size = min(self.size, SCRATCH_BYTES) if load and load.punches else self.size
        image = self.raw(size)
        if image_format == "qcow2":
            image = self.once(("qcow2", size), self.make_qcow2)
        if not (load and load.punches):
            return image
        scratch = os.path.join(self.directory, "scratch." + image_format)
        shutil.copyfile(image.path, scratch)
        sync(scratch)
        return Image(image.name, image.format, scratch, image.reference)

    def with_content(self, content):
        if content == "empty":
            path = os.path.join(self.directory, "empty.qcow2")
            qemu_img("create", "-q", "-f", "qcow2", path, str(EMPTY_BYTES))
            return Image("qcow2", "qcow2", path)
        if content == "compressed":
            return self.once((content, COMPRESSED_BYTES), self.make_compressed)
        return self.once((content, self.size), self.make_chain)

    def make_chain(self, path, size):
        """Files that hold nothing, over the full image; the one at `path` is on top."""
        below = self.once(("qcow2", size), self.make_qcow2)
        count = int(path.rpartition("-")[2])
        for number in range(1, count + 1):
            name = path if number == count else f"{path}.{number}"
            qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                     below.path if number == 1 else f"{path}.{number - 1}", name)
        return Image("qcow2", "qcow2", path, below.reference)

    def make_compressed(self, path, size):
        """Digits of random numbers, which zlib makes half as long."""
        text = path + ".raw"
        with open(text, "wb") as file:
            for begin in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - begin) // 2).hex().encode())
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", text, path)
        sync(path)
        warm(path)
        return Image("qcow2", "qcow2", path, text)

    def forget(self):
        """For after a load that wrote: files that are not what their references hold are made anew."""
        self.made.clear()

    def once(self, key, make):
        if key not in self.made:
            self.made[key] = make(os.path.join(self.directory, f"{key[1]}.{key[0]}"), key[1])
        return self.made[key]

    def make_raw(self, path, size):
        with open(path, "wb") as file:
            for begin in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - begin)))
        sync(path)
        return Image("raw", "raw", path, path)

    def make_qcow2(self, path, size):
        raw = self.raw(size)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", raw.path, path)
        sync(path)
        warm(path)
        return Image("qcow2", "qcow2", path, raw.path)


def qemu_img(*arguments):
    done = subprocess.run(["qemu-img", *arguments], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise servers.BenchError(f"qemu-img {' '.join(arguments)}: {done.stderr.strip()}")


def sync(path):
    """Has the file written out, so that the kernel does not do so during the next run."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def warm(path):
    """Reads the file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(4 * MIB)
        while file.readinto(buffer):
            pass


class Generator:
    """Runs bench/load."""

    def __init__(self, program, cpu):
        self.program = program
        self.pin = (lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None

    def command(self, running, arguments):
        return [self.program, *running.endpoint.load_arguments, "--export", running.server.export,
                *arguments]

    def start(self, running, arguments):
        return subprocess.Popen(self.command(running, arguments), stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                preexec_fn=self.pin)

    def run(self, running, arguments, seconds=0):
        """The line of results as a dictionary of numbers."""
        process = self.start(running, [*arguments, *(["--seconds", str(seconds)] if seconds else
                                                     [])])
        try:
            out, err = process.communicate(timeout=seconds + RUN_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            raise servers.BenchError(f"the load on {running.server.name} did not end") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            raise servers.BenchError(f"the load on {running.server.name} failed: "
                                     f"{err.strip() or out.strip()}\n"
                                     f"Command: {' '.join(process.args)}\n"
                                     f"Output of the server: "
                                     f"{servers.read_proc(running.log).strip() or '(none)'}")
        return {key: float(value) for key, value in
                (pair.split("=") for pair in out.split())}


def verify(generator, running, image):
    """Reads a part of the image through the server and compares; raises when it differs."""
    if not image.reference:
        return
    for size, ops in (("4K", 2000), ("256K", 200)):
        generator.run(running, ["--op", "read", "--size", size, "--depth", "16", "--ops", str(ops),
                                "--verify", image.reference])


def copy(generator, running, load):
    """One run of nbdcopy over the image, in the words of bench/load; it tells no latency."""
    command = ["nbdcopy", f"--request-size={load.size}", f"--requests={load.depth}",
               "--connections=1", running.endpoint.uri, "null:"]
    before, began = os.times(), time.monotonic()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, check=False,
                              preexec_fn=generator.pin, timeout=RUN_GRACE_SECONDS)
    except FileNotFoundError:
        raise servers.BenchError("the loads with nbdcopy need it (package libnbd-bin)") from None
    except subprocess.TimeoutExpired:
        raise servers.BenchError(f"nbdcopy from {running.server.name} did not end") from None
    if done.returncode:
        raise servers.BenchError(f"nbdcopy from {running.server.name} failed: "
                                 f"{done.stderr.strip()}\nCommand: {' '.join(command)}")
    seconds, after = time.monotonic() - began, os.times()
    ops = -(-os.path.getsize(running.image.reference) // load.size)
    return {"ops": ops, "flushes": 0, "errors": 0, "seconds": seconds, "ops_per_s": ops / seconds,
            "mb_per_s": ops * load.size / seconds / 1e6, "p50_us": None, "p99_us": None,
            "client_cpu_s": (after.children_user - before.children_user +
                             after.children_system - before.children_system)}


def run_load(generator, running, load, seconds):
    if load.client == "nbdcopy":
        return copy(generator, running, load)
    return generator.run(running, load.arguments(), seconds)


def measure(generator, running, load, seconds, warm_up):
    """One sample: what the generator says, and what the run cost the server."""
    run_load(generator, running, load, warm_up)
    before = running.cpu_seconds()
    began = time.monotonic()
    sample = run_load(generator, running, load, seconds)
    took = time.monotonic() - began
    cpu = running.cpu_seconds() - before
    done = sample["ops"] + sample["flushes"]
    sample["cpu_us_per_op"] = cpu * 1e6 / done if done else 0
    sample["server_cpu_percent"] = 100 * cpu / took
    sample["client_cpu_percent"] = 100 * sample["client_cpu_s"] / took
    return sample
