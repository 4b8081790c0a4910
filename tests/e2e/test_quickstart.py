#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""quickstart's command line, and what it prints. It finds a tree in which nothing is left to be built."""
import os
import re
import urllib.parse
import shutil

from evnbd_test import EVNBD, MIB, SOURCE_ROOT, cases, check, content, equal, main, run, same_bytes
from nbd_raw import CMD_WRITE, EPERM, RawClient


class Tree:
    """A copy of quickstart with an evnbd that is built; `image` is a raw disk."""

    def __init__(self, t):
        self.top = t.path("tree")
        for folder in ("scripts", "build/daemon", "bin"):
            os.makedirs(os.path.join(self.top, folder))
        shutil.copy(os.path.join(SOURCE_ROOT, "quickstart"), self.top)
        shutil.copy(os.path.realpath(EVNBD), os.path.join(self.top, "build/daemon/evnbd"))
        self.file("build/build.ninja")
        for command in ("bin/ninja", "scripts/install-deps"):
            os.chmod(self.file(command, "#!/bin/sh\n"), 0o755)
        self.environment = {**os.environ, "TMPDIR": t.dir,
                            "PATH": f"{self.top}/bin:{os.environ['PATH']}"}
        self.image = t.file("disk.img", content(1, MIB))

    def file(self, name, text=""):
        path = os.path.join(self.top, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def run(self, *arguments, status=0):
        return run(os.path.join(self.top, "quickstart"), *arguments, status=status, env=self.environment)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run("--stop")


def socket_in(text):
    return re.search(r"nbd\+unix:///\?socket=(\S+)$", text, re.M)[1]


@cases(("IMAGE",), ("--background", "IMAGE"), ("IMAGE", "--background"))
def test_serves_an_image(t, *arguments):
    with Tree(t) as tree:
        done = tree.run(*(tree.image if word == "IMAGE" else word for word in arguments))
        equal(done.stderr, "", "standard error")
        check("read-only" in done.stdout and "--stop" in done.stdout, done.stdout)
        port = int(re.search(r"nbd://127\.0\.0\.1:(\d+)$", done.stdout, re.M)[1])
        for where in (socket_in(done.stdout), ("127.0.0.1", port)):
            with RawClient(where).connect() as client:
                same_bytes(client.read_all(), content(1, MIB), f"the disk at {where}")
                equal(client.command(CMD_WRITE, 0, 512, payload=bytes(512)), EPERM, "WRITE")
        path = socket_in(done.stdout)
        check(tree.run("--stop").stdout == "" and not os.path.exists(path), "a server was not stopped")


@cases(("--writable", "IMAGE"), ("IMAGE", "--writable"))
def test_writable(t, *arguments):
    with Tree(t) as tree:
        done = tree.run(*(tree.image if word == "IMAGE" else word for word in arguments), "--", "-f", "raw")
        check("(writable)" in done.stdout and "nbd://" not in done.stdout, done.stdout)
        with RawClient(socket_in(done.stdout)).connect() as client:
            client.write(0, bytes(512))


def test_options_of_evnbd(t):
    with Tree(t) as tree:
        done = tree.run(tree.image, "--", "-f", "raw", "-o", "4096")
        with RawClient(socket_in(done.stdout)).connect() as client:
            same_bytes(client.read_all(), content(1, MIB)[4096:], "the disk")


@cases(("IMAGE", "--bogus"), ("--bogus",), ("IMAGE", "-f", "raw"), ("IMAGE", "another"), ("",))
def test_usage_errors(t, *arguments):
    with Tree(t) as tree:
        done = tree.run(*(tree.image if word == "IMAGE" else word for word in arguments), status=1)
    check(done.stderr.startswith("Usage: ./quickstart") and
          done.stderr.splitlines()[-1].startswith("quickstart: "), done.stderr)
    equal(done.stdout, "", "standard output")


@cases(("-x", "a b"), ("-xa b",), ("--export-name=a b",), ("-r", "-x", "\u00e9/%"))
def test_uri_names_the_export(t, *options):
    name = "\u00e9/%" if "-r" in options else "a b"
    with Tree(t) as tree:
        done = tree.run(tree.image, "--", "-f", "raw", *options)
        for uri in re.findall(r"^    (nbd\S+)$", done.stdout, re.M):
            path = re.sub(r"^nbd(\+unix)?://[^/]*/|\?.*", "", uri)
            equal(urllib.parse.unquote(path), name, uri)
        with RawClient(re.search(r"\?socket=(\S+)$", done.stdout, re.M)[1]).connect(name.encode()):
            pass


def test_missing_image(t):
    with Tree(t) as tree:
        done = tree.run("--background", t.path("none"), status=1)
    check(f"there is no image '{t.path('none')}'" in done.stderr, done.stderr)


if __name__ == "__main__":
    main()
