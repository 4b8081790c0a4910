#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The manual and the program tell of the same options; the documentation's links lead somewhere."""
import os
import re
import subprocess

from lint import ROOT, TIMEOUT, need, report, run, text_of, tree

EVNBD = os.environ.get("EVNBD", "evnbd")
MANUAL = "docs/evnbd.8"


def program_options():
    """{long option: short option or ""} as the program lists them."""
    listed = subprocess.run([EVNBD, "--list-options"], capture_output=True, text=True, timeout=TIMEOUT,
                            check=True).stdout
    return {fields[0]: fields[1] for fields in (line.split("\t") for line in listed.splitlines())}


def manual_options():
    """{long option: short option or ""} that have an item in the manual."""
    found = {}
    for line in text_of(MANUAL).split("\n"):
        if line.startswith(".It "):
            long = re.search(r"Fl -([a-z][a-z-]*)", line)
            short = re.search(r"Fl ([A-Za-z])\b", line)
            if long:
                found["--" + long[1]] = "-" + short[1] if short else ""
    return found


def check_options():
    program, manual = program_options(), manual_options()
    for option, letter in program.items():
        if option not in manual:
            yield f"{option} has no item in {MANUAL}"
        elif manual[option] != letter:
            yield f"{option} is {letter or 'without a letter'}, {MANUAL} says '{manual[option]}'"
    for option in manual:
        if option not in program:
            yield f"{MANUAL} has an item for {option}, which the program does not know"


def check_synopsis():
    synopsis = text_of(MANUAL).split(".Sh SYNOPSIS")[1].split(".Sh ")[0]
    flags = "".join(re.findall(r"^\.(?:Op )?Fl ([A-Za-z]+)", synopsis, re.M))
    for option, letter in program_options().items():
        if letter and letter[1] not in flags or not letter and f"Fl -{option[2:]}" not in synopsis:
            yield f"{letter or option} is missing in the synopsis of {MANUAL}"


def check_help():
    text = subprocess.run([EVNBD, "--help"], capture_output=True, text=True, timeout=TIMEOUT,
                          check=True).stdout
    for option in program_options():
        if option not in text:
            yield f"--help does not tell of {option}"


def check_later():
    """The options that come later, and their letters, in the help text and in the manual."""
    text = subprocess.run([EVNBD, "--help"], capture_output=True, text=True, timeout=TIMEOUT,
                          check=True).stdout
    listed = text.partition("that are not supported yet:")[2]
    program = re.findall(r"--([a-z-]+)(?:\s+\(-([a-zA-Z])\))?", listed)
    section = text_of(MANUAL).partition(".Ss Options that are not supported yet\n")[2]
    section = re.split(r"^\.S[sh] ", section, flags=re.M)[0]
    manual = re.findall(r"^\.Fl -([a-z-]+)(?: Pq Fl ([a-zA-Z]))?", section, re.M)
    for option, letter in sorted(set(program) ^ set(manual)):
        where = "--help" if (option, letter) in program else MANUAL
        yield f"only {where} says that --{option} {letter and '-' + letter} comes later"


def check_manual_syntax():
    mandoc = need("mandoc")
    for path in tree((".8", ".1"), ("docs",)):
        output = run(mandoc, "-T", "lint", "-W", "warning", path)
        if output:
            yield output


def check_links():
    """Relative links in Markdown, and paths in backquotes that look like ones of the tree."""
    for path in tree((".md",)):
        folder = os.path.dirname(path)
        text = re.sub(r"```.*?```", "", text_of(path), flags=re.S)
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not os.path.exists(os.path.join(ROOT, folder, link)):
                yield f"{path}: the link to {link} leads nowhere"
        for name in re.findall(r"`((?:base|blockcore|nbd|daemon|tests|docs|bench|scripts)/[\w./-]*)`", text):
            if not os.path.exists(os.path.join(ROOT, name)):
                yield f"{path}: there is no {name}"


if __name__ == "__main__":
    report([("options of the program and of the manual", check_options), ("synopsis", check_synopsis),
            ("help text", check_help), ("options that come later", check_later),
            ("manual pages", check_manual_syntax), ("links", check_links)])
