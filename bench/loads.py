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

    @property
    def writes(self):
        return self.op != "read"

    @property
    def punches(self):
        """Leaves holes behind, so every run needs a fresh image."""
        return self.op in ("zero", "trim")

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
)


@dataclasses.dataclass(frozen=True)
class Image:
    """A file with a format. `name` is what tables call it."""
    name: str
    format: str
    path: str


class Images:
    """The images of a run, in a directory of their own, made when first asked for."""

    def __init__(self, directory, size):
        self.directory = directory
        self.size = size
        self.made = {}

    def raw(self, size):
        return self.once(("raw", size), self.make_raw)

    def get(self, image_format, load=None):
        """The image that `load` runs on. One that holes are punched into is copied afresh."""
        size = min(self.size, SCRATCH_BYTES) if load and load.punches else self.size
        image = self.raw(size)
        if image_format == "qcow2":
            image = self.once(("qcow2", size), self.make_qcow2)
        if not (load and load.punches):
            return image
        scratch = os.path.join(self.directory, "scratch." + image_format)
        shutil.copyfile(image.path, scratch)
        sync(scratch)
        return Image(image.name, image.format, scratch)

    def once(self, key, make):
        if key not in self.made:
            self.made[key] = make(os.path.join(self.directory, f"{key[1]}.{key[0]}"), key[1])
        return self.made[key]

    def make_raw(self, path, size):
        with open(path, "wb") as file:
            for begin in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - begin)))
        sync(path)
        return Image("raw", "raw", path)

    def make_qcow2(self, path, size):
        done = subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2",
                               self.raw(size).path, path], stderr=subprocess.PIPE, text=True,
                              check=False)
        if done.returncode:
            raise servers.BenchError(f"qemu-img cannot make '{path}': {done.stderr.strip()}")
        sync(path)
        warm(path)
        return Image("qcow2", "qcow2", path)


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
        self.cpu = cpu

    def command(self, running, arguments):
        return [self.program, *running.endpoint.load_arguments, "--export", running.server.export,
                *arguments]

    def start(self, running, arguments):
        pin = (lambda: os.sched_setaffinity(0, {self.cpu})) if self.cpu is not None else None
        return subprocess.Popen(self.command(running, arguments), stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                preexec_fn=pin)

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


def verify(generator, running, reference):
    """Reads a part of the image through the server and compares; raises when it differs."""
    for size, ops in (("4K", 2000), ("256K", 200)):
        generator.run(running, ["--op", "read", "--size", size, "--depth", "16", "--ops", str(ops),
                                "--verify", reference.path])


def measure(generator, running, load, seconds, warm_up):
    """One sample: what the generator says, and what the run cost the server."""
    generator.run(running, load.arguments(), warm_up)
    before = running.cpu_seconds()
    began = time.monotonic()
    sample = generator.run(running, load.arguments(), seconds)
    took = time.monotonic() - began
    cpu = running.cpu_seconds() - before
    done = sample["ops"] + sample["flushes"]
    sample["cpu_us_per_op"] = cpu * 1e6 / done if done else 0
    sample["server_cpu_percent"] = 100 * cpu / took
    sample["client_cpu_percent"] = 100 * sample["client_cpu_s"] / took
    return sample
