# SPDX-License-Identifier: BSD-3-Clause
"""The table of hostile images and the battery that each of them goes through.

A row is a generator function that makes images and tells what is due to each.  The battery opens
every image with and without a format, for reading and for writing, reads, maps, checks, lists
snapshots, writes and repairs, each time in a process of its own that may not take more than 256 MiB
of address space nor 20 s of processor time.  Images that are not written to stay as they are to the
byte, and no file is opened that the row does not name.

AddressSanitizer needs more address space than that, so there its own limit of resident memory
stands in; and LeakSanitizer cannot run under strace, so what is opened is watched in plain builds.
"""
import dataclasses
import hashlib
import os
import re

from evnbd_test import (HELPERS, KIB, MIB, SANITIZED, SANITIZER, Refused, check, equal, need, qemu_img,
                        qemu_io, read_file, run, same_bytes, write_file)
from nbd_raw import CMD_BLOCK_STATUS, CMD_FLUSH, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EIO
from qcow2_file import Qcow2File

TOOL = os.path.join(HELPERS, "..", "tools", "qcow2_tool")
SIZE = 4 * MIB
CLUSTER = 4 * KIB
DATA = 256 * KIB     # so much of the good image is data, beginning at 0
PACKED = 2 * MIB     # where its compressed cluster is
MEMORY_MIB = 256
CPU_SECONDS = 20 if not SANITIZED else 100
PIECE = 64 * KIB     # of a read
WATCHED = not SANITIZED
READ_MAX = 4 * MIB   # larger disks are read at the ends and in the middle
STATUS_MAX = 64      # requests for block status
CORRUPT = 2          # the incompatible feature
SYSTEM_FILES = ("/lib", "/usr/", "/etc/ld.so.", "/etc/localtime", "/proc/", "/sys/", "/dev/urandom")

ROWS = {}


def row(number, title):
    """Enters the generator function into the table."""
    def enter(function):
        assert number not in ROWS, number
        ROWS[number] = title, function
        return function
    return enter


@dataclasses.dataclass
class Hostile:
    """One image, and what is due to it. Patterns are regular expressions, all of which must match."""
    name: str
    path: str
    refused: tuple = ()          # patterns of the message: it cannot even be read
    refused_writing: tuple = ()  # patterns of the message: it can be read only
    any_end: bool = False        # it may be refused, too
    format: str = "qcow2"
    broken: tuple = ()           # offsets of the disk whose sector cannot be read
    unwritable: tuple = ()       # and whose cluster cannot be written
    sound: tuple = ((0, 0x11),)  # (offset, byte): sectors that read so whatever happens elsewhere
    wanted: bytes = b""          # no sector reads other than as here, or as zeroes
    keeps: tuple = ()            # (start, end) of the file that no write to the disk changes
    corrupt: bool = False        # a write marks the image corrupt
    found: tuple = (0, 1, 2, 3)  # exit statuses of the check
    may_open: tuple = ()         # names of other files
    repaired_at_open: bool = False
    offline: bool = False        # it is the backing file that is refused: tools do without
    mended: bool = False         # check and repair may take what all others refuse


GOOD = {}


def make_good(t, name="good.qcow2", *options):
    """Data of 0x11 in the first 256 KiB, a compressed cluster at 2 MiB, a zero cluster at 3 MiB."""
    path = t.path(name)
    if options not in GOOD:
        qemu_img("create", "-q", "-f", "qcow2", "-o", ",".join((f"cluster_size={CLUSTER}",) + options), path, SIZE)
        qemu_io(path, f"write -P 0x11 0 {DATA}", f"write -c -P 0x22 {PACKED} 4k", "write -z 3M 4k",
                arguments=("-f", "qcow2"))
        GOOD[options] = read_file(path)
    return write_file(path, GOOD[options])


def good(t, *options):
    return Qcow2File(make_good(t, "good.qcow2", *options))


def content_of_good():
    data = bytearray(SIZE)
    data[:DATA] = b"\x11" * DATA
    data[PACKED:PACKED + CLUSTER] = b"\x22" * CLUSTER
    return bytes(data)


def spoiled(t, name, changes, **due):
    """The good image with other header fields: {field: value}."""
    image = good(t)
    for field, value in changes.items():
        image.set(field, value)
    return Hostile(name, image.save(t.path("bad.qcow2")), **due)


def fingerprint(path):
    """Of the size and the data; holes cost no time."""
    state, at = hashlib.sha256(), 0
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            stop = min(os.lseek(file.fileno(), at, os.SEEK_HOLE), end)
            for piece in range(at, stop, MIB):
                data = os.pread(file.fileno(), min(MIB, stop - piece), piece)
                if data.strip(b"\0"):
                    state.update(b"%d:" % piece + data)
            at = stop
    return end, state.hexdigest()


class Battery:
    """Runs one image through everything."""

    def __init__(self, t, image):
        need("prlimit", *(("strace",) if WATCHED else ()))
        self.t, self.image = t, image
        self.print = fingerprint(image.path)
        self.environment = dict(os.environ)
        if SANITIZED:
            self.environment["ASAN_OPTIONS"] = (os.environ.get("ASAN_OPTIONS", "") +
                                                f":hard_rss_limit_mb={MEMORY_MIB}:quarantine_size_mb=8")

    def run(self):
        image = self.image
        self.open_for_reading()
        self.probe()
        self.tools()
        self.unchanged("what only reads")
        self.open_for_writing()
        if image.refused or image.refused_writing:
            self.unchanged("a refusal")
        self.repair()

    # What runs, with its limits and watched.

    def limits(self, log=None):
        """What runs a program within its limits; with `log`, what it opens is written there."""
        words = ["prlimit", f"--cpu={CPU_SECONDS}"]
        words += [] if SANITIZED else [f"--as={MEMORY_MIB * MIB}"]
        if log and WATCHED:
            words += ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", log,
                      "-e", "trace=open,openat,openat2,creat"]
        return words

    def trace(self):
        return self.t.path(f"opened{self.t.number()}")

    def check_opened(self, log):
        if not os.path.exists(log):
            return
        names = {os.path.basename(self.image.path), *self.image.may_open}
        with open(log, encoding="utf-8", errors="replace") as lines:
            for path in re.findall(r'open\w*\(.*?"(.*?)"', lines.read()):
                inside, name = os.path.split(os.path.join(self.t.dir, path))
                ours = inside == self.t.dir and (name in names or name.startswith("server") or not name)
                check(ours or path in names or path.startswith(SYSTEM_FILES), f"it opened {path}")
        os.unlink(log)

    def serve(self, *options):
        log = self.trace()
        try:
            return self.t.serve(self.image.path, *options, prefix=self.limits(log), env=self.environment), log
        except Refused as refusal:
            equal(refusal.status, 1, f"exit status, {refusal.log[-3000:]}")
            check(not SANITIZER.search(refusal.log), refusal.log[-3000:])
            self.check_opened(log)
            return refusal, log

    def end(self, server, log):
        server.stop()
        self.t.servers.remove(server)
        self.check_opened(log)

    def check_message(self, text, patterns):
        check(len(text) < 2000 and not re.search(r"[^\n\x20-\x7e]", text), f"the message is {text!r}")
        for pattern in (re.escape(os.path.basename(self.image.path)), *patterns):
            check(re.search(pattern, text, re.I), f"the message does not say /{pattern}/: {text}")

    def unchanged(self, what):
        equal(fingerprint(self.image.path), self.print, f"the file after {what}")

    # The battery.

    def open_for_reading(self):
        server, log = self.serve("-r", "-f", self.image.format)
        if isinstance(server, Refused):
            check(self.image.refused or self.image.any_end, f"refused: {server.log}")
            return self.check_message(server.log, self.image.refused)
        check(not self.image.refused, "it was not refused for reading")
        self.read(server)
        self.status(server)
        return self.end(server, log)

    def read(self, server):
        with server.client() as client:
            size = client.export.size
            for at in pieces(size):
                length = min(PIECE, size - at)
                error, data = client.read_error(at, length)
                check(error in (0, EIO), f"error {error} of a read of {length} at {at}")
                self.check_wanted(at, data)
            for at in self.image.broken:
                equal(client.read_error(at, 512)[0], EIO, f"error of a read at {at}")
            self.check_sound(client)

    def check_wanted(self, at, data):
        for i in range(0, len(data) if self.image.wanted else 0, 512):
            check(data[i:i + 512] in (self.image.wanted[at + i:at + i + 512], bytes(512)),
                  f"invented data at {at + i}")

    def check_sound(self, client):
        for at, byte in () if self.image.any_end else self.image.sound:
            equal(client.read(at, 512), bytes([byte]) * 512, f"the disk at {at}")

    def status(self, server):
        with server.client(mode="structured", contexts=(b"base:allocation",)) as client:
            at, size = 0, client.export.size
            for _ in range(STATUS_MAX):
                if at >= size:
                    break
                length = min(size - at, 1 << 31)
                answer = client.ask(CMD_BLOCK_STATUS, at, length)
                check(answer.error in (0, EIO), f"error {answer.error} of block status at {at}")
                told = sum(extent for extents in answer.status.values() for extent, _ in extents)
                check(answer.error or 0 < told <= max(length, CLUSTER), f"block status told {told} of {length}")
                at += told or PIECE

    def probe(self):
        server, log = self.serve("-r")
        if not isinstance(server, Refused):
            self.end(server, log)

    def tool(self, *words, status=(0, 1)):
        done = run(*self.limits(), TOOL, *words, status=None, env=self.environment)
        check(not SANITIZER.search(done.stderr), done.stderr[-3000:])
        check(done.returncode in status, f"{words}: status {done.returncode}: {done.stderr[-2000:]}")
        check(done.returncode != 1 or done.stderr.strip(), f"{words} failed without a word")
        return done

    def tools(self):
        if self.image.format != "qcow2":
            return
        self.tool("map", self.image.path, status=(1,) if self.image.refused else (0, 1))
        self.tool("snapshot-list", self.image.path, status=(1,) if self.refused_by_tools() else (0, 1))
        found = (1, 2, 3) if self.image.mended else self.image.found
        self.tool("check", self.image.path, status=(1,) if self.refused_by_tools() else found)

    def refused_by_tools(self):
        return self.image.refused and not self.image.offline and not self.image.mended

    def open_for_writing(self):
        server, log = self.serve("-f", self.image.format, "--discard=unmap")
        if isinstance(server, Refused):
            patterns = self.image.refused or self.image.refused_writing
            check(patterns or self.image.any_end, f"refused for writing: {server.log}")
            return self.check_message(server.log, patterns)
        check(not self.image.refused and not self.image.refused_writing, "it was not refused for writing")
        before = None if self.image.repaired_at_open else read_ranges(self.image.path, self.image.keeps)
        with server.client() as client:
            self.write(client)
        self.end(server, log)
        if before is not None:
            self.check_kept(before)
        return self.look_again()

    def write(self, client):
        size = client.export.size
        if size < CLUSTER:
            return
        for at in self.image.unwritable:
            for command, payload in ((CMD_WRITE, b"x" * CLUSTER), (CMD_WRITE_ZEROES, b""), (CMD_TRIM, b"")):
                error = client.command(command, at, CLUSTER, 0, payload)
                check(error == EIO or command == CMD_TRIM and not error, f"error {error} of command {command} at {at}")
        for at in (0, size // 2 // CLUSTER * CLUSTER + CLUSTER, size - CLUSTER, *self.image.broken):
            payload = client.read_error(at, CLUSTER)[1] if at == 0 else b"y" * CLUSTER
            if payload:
                error = client.command(CMD_WRITE, at, CLUSTER, 0, payload)
                check(error in (0, EIO), f"error {error} of a write at {at}")
                check(error or client.read(at, CLUSTER) == payload, f"what was written at {at} is not there")
        check(client.command(CMD_FLUSH) in (0, EIO), "error of FLUSH")
        self.check_sound(client)

    def check_kept(self, before):
        for (start, end), data in zip(self.image.keeps, before):
            same_bytes(read_ranges(self.image.path, ((start, end),))[0], data, f"the file from {start} on")
        if self.image.corrupt:
            check(Qcow2File(self.image.path).get("incompatible") & CORRUPT, "it was not marked corrupt")

    def look_again(self):
        """What is sound is so for those who come later, too."""
        server, log = self.serve("-r", "-f", self.image.format)
        check(not isinstance(server, Refused), "after the writes it was refused")
        with server.client() as client:
            self.check_sound(client)
        self.end(server, log)

    def repair(self):
        if self.image.format != "qcow2":
            return
        before = fingerprint(self.image.path)
        status = (1,) if self.refused_by_tools() else (0, 1, 2, 3)
        done = self.tool("repair", self.image.path, "all", status=status)
        if self.image.refused and not (self.image.mended and done.returncode != 1):
            equal(fingerprint(self.image.path), before, "the file after a repair that was refused")
        if done.returncode == 0:
            self.tool("check", self.image.path, status=(0,))


def pieces(size):
    """Where the reads of a disk begin."""
    if size <= READ_MAX:
        return range(0, size, PIECE)
    middle = size // 2 // PIECE * PIECE
    return [*range(0, MIB, PIECE), *range(middle, middle + MIB, PIECE), size - PIECE, size - 1]


def read_ranges(path, ranges):
    with open(path, "rb") as file:
        return [os.pread(file.fileno(), end - start, start) for start, end in ranges]


def run_row(t, function):
    for image in function(t):
        try:
            Battery(t, image).run()
        except AssertionError as failure:
            raise AssertionError(f"{image.name}: {failure}") from failure
