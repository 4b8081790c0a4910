# SPDX-License-Identifier: BSD-3-Clause
"""What the lint tests share: the files of the tree, and reporting in TAP.

A lint program yields (name, problems) from a function checks(); a problem is a line of text.  A check
that cannot be made here raises Skip.
"""
import os
import shutil
import subprocess
import sys

ROOT = os.environ.get("EVNBD_SOURCE_ROOT") or os.path.realpath(
    os.path.join(os.path.dirname(__file__), "..", ".."))
BUILD_ROOT = os.environ.get("EVNBD_BUILD_ROOT", "")
PRODUCT = ("base", "blockcore", "nbd", "tls", "systemd", "daemon", "img", "ctl")
TIMEOUT = 120


class Skip(Exception):
    pass


def tree(suffixes=("",), folders=()):
    """Paths below the root, sorted: of `folders` if given, else of all."""
    for base, dirs, files in os.walk(ROOT):
        relative = os.path.relpath(base, ROOT)
        dirs[:] = sorted(d for d in dirs
                         if d not in (".git", "__pycache__") and
                         not (relative == "." and d.startswith("build")))
        for name in sorted(files):
            path = os.path.normpath(os.path.join(relative, name))
            if path.endswith(suffixes) and (not folders or path.split(os.sep)[0] in folders):
                yield path


def text_of(path):
    """The text of a file of the tree; None if it is none."""
    with open(os.path.join(ROOT, path), "rb") as file:
        data = file.read()
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def lines_of(path):
    return enumerate((text_of(path) or "").split("\n"), 1)


def need(program):
    found = shutil.which(program)
    if not found:
        raise Skip(f"{program} is not installed")
    return found


def run(*command, text=None):
    """Returns the output of a program if it failed, else nothing."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT,
                          cwd=ROOT, check=False)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def report(checks):
    """Runs functions (name, function) that return problems; prints TAP and exits."""
    print(f"1..{len(checks)}")
    failed = False
    for number, (name, function) in enumerate(checks, 1):
        directive, problems = "", []
        try:
            problems = list(function())
        except Skip as reason:
            directive = f" # SKIP {reason}"
        failed = failed or bool(problems)
        print(f"{'not ' if problems else ''}ok {number} - {name}{directive}")
        for problem in problems:
            print("# " + problem.replace("\n", "\n# "))
    sys.exit(1 if failed else 0)
