#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
The same command lines for evnbd and for qemu-nbd: exit status, message, and what is exported. Where they
differ on purpose, the row names the heading of docs/compatibility.md that tells why.
"""
import json
import os
import re
import signal

from evnbd_test import (EVNBD, MIB, SOURCE_ROOT, cases, check, content, ended, equal, main, need,
                        qemu_img, read_file, run, skip, wait_for)

LONG = "n" * 4097
DOCUMENT = os.path.join(SOURCE_ROOT, "docs", "compatibility.md")

# Commands that end by themselves: (arguments, headings under which it differs). Without a heading, status
# and message agree.
ENDING = [
    ("--bogus {image}", ""),
    ("-Z {image}", ""),
    ("", "hint"),
    ("-t", "hint"),
    ("{image} {image}", "hint"),
    ("-p", ""),
    ("--port", ""),
    ("--s=x {image}", "own-options"),
    ("--fork=1 {image}", ""),
    ("--sha=x {image}", ""),
    ("-p -1 {image}", "listen-message"),
    ("-p no-such-service {image}", "listen-message"),
    ("-p 65536 {image}", "port-range"),
    ("-b no-such-host.invalid {image}", "listen-message"),
    ("-b 192.0.2.1 {image}", "listen-message"),
    ("-k socket {image}", ""),
    ("-k {dir}/none/socket -f raw {image}", "listen-message"),
    ("-e -1 {image}", ""),
    ("-e 99999999999 {image}", ""),
    ("-e x {image}", ""),
    ("-o 2M {image}", ""),
    ("-o 1048577 -f raw -k {socket} {image}", ""),
    ("--cache=x {image}", ""),
    ("--cache=none --cache=none {image}", ""),
    ("-n --cache=none {image}", ""),
    ("--aio=x {image}", ""),
    ("--aio=threads --aio=threads {image}", ""),
    ("--aio=native -f raw -k {socket} {image}", "open-message"),
    ("--discard=x {image}", ""),
    ("--discard=on --discard=on {image}", ""),
    ("--detect-zeroes=x {image}", "quoted-value"),
    ("--detect-zeroes=unmap {image}", ""),
    ("--detect-zeroes=unmap --discard=unmap {image}", ""),
    ("-B x -f raw -k {socket} {image}", ""),
    ("-B x -f qcow2 -k {socket} {qcow2}", ""),
    ("-f bogus -k {socket} {image}", "open-message"),
    ("-f qcow2 -k {socket} {image}", "open-message"),
    ("-k {socket} {dir}/none", "open-message"),
    ("-k {socket} -f raw {dir}", "open-message"),
    ("-s -k {socket} {dir}/none", "open-message"),
    ("-l x -f qcow2 -k {socket} {qcow2}", ""),
    ("-l snapshot.id=1 -f qcow2 -k {socket} {qcow2}", ""),
    ("-l snapshot.foo=1 -f qcow2 -k {socket} {qcow2}", "snapshot-message"),
    ("-l x -f raw -k {socket} {image}", "raw-snapshot"),
    ("--image-opts -f raw -k {socket} driver=raw", ""),
    ("--image-opts -k {socket} driver=raw", "open-message"),
    ("--image-opts -k {socket} driver=bogus,file.filename={image}", "open-message"),
    ("--image-opts -k {socket} driver=raw,file.driver=file,file.filename={image},foo=bar",
     "open-message option-of-a-node"),
    ("--image-opts -k {socket} bogus", "open-message image-opts-name"),
    ("-k {socket} json:{{", "open-message json-message"),
    ("-k {socket} json:{{}}", "open-message"),
    ("-D {long} {image}", "long-name"),
    ("-x {long} {image}", "long-name"),
    ("--tls-creds=x -k {socket} {image}", ""),
    ("--tls-hostname=x {image}", ""),
    ("--tls-hostname=x -L", ""),
    ("--tls-authz=x {image}", ""),
    ("--object bogus,id=a {image}", ""),
    ("--object secret {image}", ""),
    ("--object secret,id=a {image}", "object-id"),
    ("--object secret,id=a,data=x,file=y {image}", "object-id"),
    ("--object secret,id=a,data=x --tls-creds=a -k {socket} {image}", ""),
    ("--object tls-creds-x509,id=a {image}", "object-id"),
    ("--object help", "own-options"),
    ("--object secret,help", "own-options"),
    *((f"-L {option}", "") for option in
      ["{image}", "-x a", "-D a", "-o 1", "-f raw", "-l x", "-B x", "-A", "--aio=threads", "--discard=on",
       "--cache=none", "--fork", "-k {dir}/none.socket", "-b 127.0.0.1 -p 1"]),
    ("-L -p 1", "address-of-a-list"),
    ("-T bogus* -k {socket} {dir}/none", "open-message trace-message"),
    ("-T foo=bar {image}", "trace-message"),
    ("--selinux-label=x {image}", ""),
    ("--selinux-label=x -k {socket} -f raw {image}", ""),
    ("--pid-file {dir}/none/pid -f raw -k {socket} {image}", ""),
    ("--handshake-limit=x {image}", "handshake-limit"),
    ("-k {socket} --image-opts driver=raw,file.filename={image},read-only=on", "read-only-node"),
    ("-P 1 -k {socket} -f raw {image}", "partition"),
    ("-c {dir}/none -f raw {image}", "device-options-later"),
    ("-d {dir}/none", "device-options-later"),
]

# Headings under which one of both serves what the other refuses.
SERVES_INSTEAD = {"port-range", "read-only-node"}

# Commands that serve, after --fork: (arguments, fields of `nbdinfo --json` that differ, headings).
SERVING = [
    ("-t -f raw {image}", "", ""),
    ("-t -f raw -r {image}", "", ""),
    ("-t -f raw -e 4 {image}", "", ""),
    ("-t -f raw -x name -D text {image}", "", ""),
    ("-t -f raw -o 4096 {image}", "", ""),
    ("-t -f raw -o 0x1000 --share=2 {image}", "", ""),
    ("-t -f raw -A {image}", "", ""),
    ("-t -f raw {odd}", "export-size export-size-str", "size-in-bytes"),
    ("-t -f qcow2 {qcow2}", "block_size_preferred", "preferred-block"),
    ("-t {qcow2}", "block_size_preferred", "preferred-block"),
    ("-t -f qcow2 -s {qcow2}", "block_size_preferred", "preferred-block"),
    ("-t -f qcow2 -n --discard=unmap --detect-zeroes=unmap {qcow2}", "block_size_preferred", "preferred-block"),
    ("-t -f qcow2 --cache=writethrough --aio=threads {qcow2}", "block_size_preferred", "preferred-block"),
    ("-t -f qcow2 -l snap {qcow2}", "block_size_preferred", "preferred-block"),
    ("-t -f qcow2 -B bitmap {qcow2}", "block_size_preferred", "preferred-block"),
    ("-t -f qcow2 -l snap {grown}", "block_size_preferred export-size export-size-str",
     "preferred-block snapshot-size"),
    ("-t -r --image-opts driver=qcow2,file.filename={qcow2},read-only=on", "block_size_preferred", "preferred-block"),
    ("-t json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{image}\"}}}}",
     "", ""),
]


def qemu_nbd():
    need("qemu-nbd")
    version = re.search(r"\d+\.\d+", run("qemu-nbd", "--version").stdout)[0]
    if version != "7.2":
        skip(f"the rows are those of QEMU 7.2, this is {version}")
    return "qemu-nbd"


def prepare(t, row):
    """The names that rows use, with what this row needs of them, and evnbd under qemu-nbd's name."""
    names = {"dir": t.dir, "socket": t.path("socket"), "long": LONG, "image": t.file("disk.raw", content(1, MIB)),
             "odd": t.file("odd.raw", content(2, 1000)), "qcow2": t.path("disk.qcow2"), "grown": t.path("grown.qcow2")}
    if "{qcow2}" in row:
        qemu_img("create", "-f", "qcow2", names["qcow2"], MIB)
        qemu_img("snapshot", "-c", "snap", names["qcow2"])
        qemu_img("bitmap", "--add", names["qcow2"], "bitmap")
    if "{grown}" in row:
        qemu_img("create", "-f", "qcow2", names["grown"], MIB)
        qemu_img("snapshot", "-c", "snap", names["grown"])
        qemu_img("resize", names["grown"], 2 * MIB)
    os.mkdir(t.path("bin"))
    os.symlink(EVNBD, t.path("bin/qemu-nbd"))
    return names


def words(row, names):
    return [word.format(**names) for word in row.split()]


def check_headings(headings):
    text = read_file(DOCUMENT).decode()
    for heading in headings.split():
        check(f"\n### {heading}\n" in text, f"docs/compatibility.md has no heading '{heading}'")


def outcome(program, arguments):
    """(status, message) of a command that ends; a program that serves is stopped."""
    done = run("timeout", "--kill-after=1", "5", program, *arguments, status=None)
    return done.returncode, (done.stdout + done.stderr).replace(f"{program}: ", "qemu-nbd: ")


def compare_messages(ours, theirs, differs):
    """Every line of theirs begins one of ours, unless that differs on purpose; then it must differ."""
    lines = ours.splitlines()
    agree = all(any(line.startswith(their) for line in lines) for their in theirs.splitlines())
    if differs:
        check(not agree, f"they agree, so nothing differs:\n{theirs}\n{ours}")
    else:
        check(agree, f"qemu-nbd says:\n{theirs}\nevnbd says:\n{ours}")


@cases(*ENDING, sanitized=lambda row, differs: False)
def test_ending(t, row, differs):
    theirs_name, names = qemu_nbd(), prepare(t, row)
    check_headings(differs)
    arguments = words(row, names)
    their_status, theirs = outcome(theirs_name, arguments)
    our_status, ours = outcome(t.path("bin/qemu-nbd"), arguments)
    if not SERVES_INSTEAD & set(differs.split()):
        equal(our_status, their_status, f"exit status\n{theirs}\n{ours}")
    compare_messages(ours, theirs, differs)


def exported(t, program, arguments):
    """What `nbdinfo --json` tells of the export of a server that is started and stopped."""
    socket, pid_file = t.path(f"socket{t.number()}"), t.path(f"pid{t.number()}")
    done = run(program, "--fork", "-k", socket, "--pid-file", pid_file, *arguments, status=None)
    wait_for(lambda: os.path.exists(pid_file) and read_file(pid_file), f"{program} to be ready ({done.stderr})")
    pid = int(read_file(pid_file))
    try:
        name = arguments[arguments.index("-x") + 1] if "-x" in arguments else ""
        [export] = json.loads(run("nbdinfo", "--json", f"nbd+unix:///{name}?socket={socket}").stdout)["exports"]
        return export
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: ended(pid), "it to end")


@cases(*SERVING, sanitized=lambda row, fields, differs: False)
def test_serving(t, row, fields, differs):
    theirs_name, names = qemu_nbd(), prepare(t, row)
    check_headings(differs)
    arguments = words(row, names)
    theirs = exported(t, theirs_name, arguments)
    ours = exported(t, t.path("bin/qemu-nbd"), arguments)
    different = {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}
    equal(different - {"uri"}, set(fields.split()), f"fields that differ in\n{theirs}\n{ours}\n")


def test_every_heading_is_shown(_):
    """Differences that no row shows are those of a server's life, which other tests show."""
    shown = {word for row in ENDING + SERVING for word in row[-1].split()}
    elsewhere = {"exit-of-fork", "raw-warning", "raw-writers", "socket-taken", "pid-file-removed",
                 "backing-chain", "qcow2-options"}
    headings = set(re.findall(r"^### (\S+)$", read_file(DOCUMENT).decode(), re.M))
    equal(headings, shown | elsewhere, "headings")


if __name__ == "__main__":
    main()
