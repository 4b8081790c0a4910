#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The command line: what is refused and how, what is printed, what each option does to the export."""
import os
import re
import socket
import stat
import subprocess

from evnbd_test import (EVNBD, HANG, MIB, SOURCE_ROOT, cases, check, content, equal, free_port,
                        have_ipv6, main, need, qemu_img, read_file, run, same_bytes, skip)
from nbd_raw import (CMD_TRIM, CMD_WRITE, EPERM, FLAG_READ_ONLY, OPT_ABORT, OPT_LIST,
                     REP_SERVER, Closed, RawClient)

FLAG_CAN_MULTI_CONN = 1 << 8
PROGRAM = os.path.basename(EVNBD)
HINT = f"{PROGRAM}: Try `{PROGRAM} --help' for more information."
LONG = "n" * 4097

# name: (arguments, start of the message, whether the hint follows). {image} is a raw image of 1 MiB,
# {dir} the directory of the test, {sock} a path in it.
REFUSED = {
    "no-arguments": ([], "Invalid number of arguments", True),
    "two-images": (["{image}", "{image}"], "Invalid number of arguments", True),
    "only-options": (["-t", "-k", "{sock}"], "Invalid number of arguments", True),
    "unknown-long": (["--bogus", "{image}"], "unrecognized option '--bogus'", True),
    "unknown-short": (["-Z", "{image}"], "invalid option -- 'Z'", True),
    "unknown-after-image": (["{image}", "-Z"], "invalid option -- 'Z'", True),
    "ambiguous": (["--s=x", "{image}"], "option '--s=x' is ambiguous; possibilities: '--socket' "
                  "'--selinux-label' '--shared'", True),
    "needless-value": (["--fork=1", "{image}"], "option '--fork' doesn't allow an argument", True),
    "control-bytes": (["--\x1b[31m", "{image}"], "unrecognized option '--\\x1b[31m'", True),
    "tls-certificates-empty": (["--tls-certificates=", "{image}"], "--tls-certificates is empty", False),
    "tls-psk-empty": (["--tls-psk=", "{image}"], "--tls-psk is empty", False),
    "help-with-value": (["--help=x"], "option '--help' doesn't allow an argument", True),
    **{f"missing-value-{name}": (["{image}", option], text, True) for name, option, text in [
        ("p", "-p", "option requires an argument -- 'p'"),
        ("port", "--port", "option '--port' requires an argument"),
        ("b", "-b", "option requires an argument -- 'b'"),
        ("bind", "--bind", "option '--bind' requires an argument"),
        ("k", "-k", "option requires an argument -- 'k'"),
        ("socket", "--socket", "option '--socket' requires an argument"),
        ("sock", "--sock", "option '--socket' requires an argument"),
        ("e", "-e", "option requires an argument -- 'e'"),
        ("shared", "--shared", "option '--shared' requires an argument"),
        ("x", "-x", "option requires an argument -- 'x'"),
        ("export-name", "--export-name", "option '--export-name' requires an argument"),
        ("D", "-D", "option requires an argument -- 'D'"),
        ("description", "--description", "option '--description' requires an argument"),
        ("f", "-f", "option requires an argument -- 'f'"),
        ("format", "--format", "option '--format' requires an argument"),
        ("o", "-o", "option requires an argument -- 'o'"),
        ("offset", "--offset", "option '--offset' requires an argument"),
        ("T", "-T", "option requires an argument -- 'T'"),
        ("trace", "--trace", "option '--trace' requires an argument"),
        ("cache", "--cache", "option '--cache' requires an argument"),
        ("aio", "--aio", "option '--aio' requires an argument"),
        ("discard", "--discard", "option '--discard' requires an argument"),
        ("detect-zeroes", "--detect-zeroes", "option '--detect-zeroes' requires an argument"),
        ("B", "-B", "option requires an argument -- 'B'"),
        ("bitmap", "--bitmap", "option '--bitmap' requires an argument"),
        ("pid-file", "--pid-file", "option '--pid-file' requires an argument"),
        ("handshake-limit", "--handshake-limit",
         "option '--handshake-limit' requires an argument"),
    ]},
    "port-empty": (["-p", "", "{image}"], "Invalid port ''", False),
    "port-huge": (["-p", "65536", "{image}"], "Invalid port '65536'", False),
    "port-negative": (["-p", "-1", "{image}"], "", False),
    "port-unknown-service": (["-p", "no-such-service", "{image}"], "", False),
    "list-at-empty-address": (["-L", "-b", ""], "Invalid bind address ''", False),
    "bind-unknown": (["-b", "no-such-host.invalid", "{image}"], "", False),
    "bind-not-ours": (["-b", "192.0.2.1", "{image}"], "", False),
    "socket-empty": (["-k", "", "{image}"], "socket path must be absolute", False),
    "socket-relative": (["-k", "sock", "{image}"], "socket path must be absolute", False),
    "socket-long": (["-k", "/" + "s" * 107, "{image}"], "socket path '/sss", False),
    "socket-no-directory": (["-f", "raw", "-k", "{dir}/none/sock", "{image}"], "", False),
    "shared-empty": (["-e", "", "{image}"], "Invalid shared device number ''", False),
    "shared-negative": (["-e", "-1", "{image}"], "Invalid shared device number '-1'", False),
    "shared-huge": (["-e", "99999999999", "{image}"],
                    "Invalid shared device number '99999999999'", False),
    "shared-word": (["--shared=many", "{image}"], "Invalid shared device number 'many'", False),
    "offset-empty": (["-o", "", "{image}"], "Invalid offset ''", False),
    "offset-suffix": (["-o", "2M", "{image}"], "Invalid offset '2M'", False),
    "offset-negative": (["-o", "-1", "{image}"], "Invalid offset '-1'", False),
    "offset-huge": (["-o", "99999999999999999999", "{image}"],
                    "Invalid offset '99999999999999999999'", False),
    "offset-past-end": (["-f", "raw", "-o", "1048577", "{image}"],
                        "Offset (1048577) cannot be greater than size of the containing file "
                        "(1048576)", False),
    "limit-empty": (["--handshake-limit=", "{image}"], "Invalid handshake limit ''", False),
    "limit-negative": (["--handshake-limit=-1", "{image}"], "Invalid handshake limit '-1'", False),
    "limit-huge": (["--handshake-limit=2147483648", "{image}"],
                   "Invalid handshake limit '2147483648'", False),
    "object-unknown": (["--object=bogus,id=a", "{image}"],
                       "Parameter 'qom-type' does not accept value 'bogus'", False),
    "object-twice": (["--object=secret,id=a,data=x", "--object=secret,id=a,data=y", "{image}"],
                     "there are two objects with the id 'a'", False),
    "object-missing-file": (["--object=secret,id=a,file={dir}/none", "{image}"],
                            "Object 'a': Could not open '{dir}/none': ", False),
    "list-creds-unknown": (["-L", "-k", "{sock}", "--tls-creds=c"],
                           "Failed to get TLS creds: No TLS credentials with id 'c'", False),
    "object-in-a-list": (["-L", "-k", "{sock}", "--object=secret,id=a"],
                         "Object 'a': Either 'file' or 'data' must be provided", False),
    "name-long": (["-x", LONG, "{image}"], "export name 'nnn", False),
    "description-long": (["-D", LONG, "{image}"], "export description 'nnn", False),
    "name-not-utf8": (["-x", b"a\xff", "{image}"], "export name 'a\\xff' is not valid", False),
    "cache-unknown": (["--cache=x", "{image}"], "Invalid cache mode `x'", False),
    "cache-empty": (["--cache=", "{image}"], "Invalid cache mode `'", False),
    "cache-twice": (["--cache=none", "--cache=none", "{image}"],
                    "-n and --cache can only be specified once", False),
    "cache-and-n": (["-n", "--cache=none", "{image}"],
                    "-n and --cache can only be specified once", False),
    "aio-unknown": (["--aio=x", "{image}"], "Invalid aio mode 'x'", False),
    "aio-empty": (["--aio=", "{image}"], "Invalid aio mode ''", False),
    "aio-twice": (["--aio=threads", "--aio=threads", "{image}"],
                  "--aio can only be specified once", False),
    "aio-native-buffered": (["--aio=native", "{image}"],
                            "aio=native was specified, but it needs direct I/O", False),
    "discard-unknown": (["--discard=x", "{image}"], "Invalid discard mode `x'", False),
    "discard-empty": (["--discard=", "{image}"], "Invalid discard mode `'", False),
    "discard-twice": (["--discard=on", "--discard=on", "{image}"],
                      "--discard can only be specified once", False),
    "detect-zeroes-unknown": (["--detect-zeroes=x", "{image}"],
                              "Failed to parse detect_zeroes mode: invalid parameter value: 'x'",
                              False),
    "detect-zeroes-empty": (["--detect-zeroes=", "{image}"],
                            "Failed to parse detect_zeroes mode: invalid parameter value: ''",
                            False),
    "detect-zeroes-alone": (["--detect-zeroes=unmap", "{image}"],
                            "setting detect-zeroes to unmap is not allowed without setting discard "
                            "operation to unmap", False),
    "detect-zeroes-early": (["--detect-zeroes=unmap", "--discard=unmap", "{image}"],
                            "setting detect-zeroes to unmap is not allowed", False),
    "bitmap-of-raw": (["-f", "raw", "-B", "x", "-k", "{sock}", "{image}"],
                      "Bitmap 'x' is not found: '{image}' has none", False),
    "bitmap-escaped": (["-f", "raw", "-A", "-B", "x\ny", "-k", "{sock}", "{image}"],
                       "Bitmap 'x\\x0ay' is not found", False),
    "format-unknown": (["-f", "bogus", "-k", "{sock}", "{image}"],
                       "Failed to open '{image}': Unknown driver 'bogus'; there are: ", False),
    "format-empty": (["-f", "", "-k", "{sock}", "{image}"], "Failed to open '{image}': ", False),
    "format-wrong": (["-f", "qcow2", "-k", "{sock}", "{image}"], "Failed to open '{image}': ",
                     False),
    "trace-file": (["-T", "nbd_*,file={dir}/none/log", "-k", "{sock}", "{image}"], "", False),
    "pid-file-empty": (["--pid-file=", "-k", "{sock}", "{image}"], "Could not create ''", False),
    "pid-file-no-directory": (["-f", "raw", "--pid-file={dir}/none/pid", "-k", "{sock}", "{image}"],
                              "Could not create '{dir}/none/pid': ", False),
    "pid-file-directory": (["-f", "raw", "--pid-file={dir}", "-k", "{sock}", "{image}"],
                           "Could not create '{dir}': ", False),
    "pid-file-fifo": (["-f", "raw", "--pid-file={dir}/fifo", "-k", "{sock}", "{image}"],
                      "Could not use pid file '{dir}/fifo': ", False),
    "image-empty": (["-k", "{sock}", ""], "Failed to open ''", False),
    "image-missing": (["-k", "{sock}", "{dir}/none"], "Failed to open '{dir}/none': ", False),
    "image-directory": (["-k", "{sock}", "{dir}"], "Failed to open '{dir}': it is a directory", False),
    "image-directory-raw": (["-f", "raw", "-r", "-k", "{sock}", "{dir}"],
                            "Failed to open '{dir}': it is a directory", False),
    "image-fifo": (["-k", "{sock}", "{dir}/fifo"], "Failed to open '{dir}/fifo': it is a FIFO", False),
    "image-device": (["-k", "{sock}", "/dev/null"], "Failed to open '/dev/null': it is a character device", False),
    "image-looks-like-option": (["-k", "{sock}", "--", "-t"], "Failed to open '-t': ", False),
    "image-missing-file": (["-k", "{sock}", "file:{dir}/none"], "Failed to open '{dir}/none': No such",
                           False),
    "image-qcow2-named-once": (["-f", "qcow2", "-k", "{sock}", "{image}"],
                               "Failed to open '{image}': this is not a qcow2 image", False),
    "image-json": (["-k", "{sock}", "json:{}"], "Failed to open 'json:{}': Must specify either driver",
                   False),
    "image-opts-word": (["--image-opts", "-k", "{sock}", "r.raw"],
                        "Failed to open 'r.raw': Cannot find a node of this name: 'r.raw' is not KEY=VALUE, as "
                        "in driver=raw,file.filename=PATH; the name of an image goes without --image-opts",
                        False),
    "image-quotes": (["-k", "{sock}", "a\"b'c"], "Failed to open 'a\"b'c': No such file", False),
    "format-quotes": (["-f", "a\"b'", "-k", "{sock}", "{image}"],
                      "Failed to open '{image}': Unknown driver 'a\"b\\''; there are: ", False),
    "list-nbd-unix": (["-L", "nbd:unix:{sock}"],
                      "List mode is incompatible with a file name, and 'nbd:unix:{sock}' is no URI of a "
                      "server: that is nbd://HOST:PORT or nbd+unix:///?socket=PATH, here "
                      "nbd+unix:///?socket={sock}, or the option -k {sock}", False),
    "image-opts-and-format": (["--image-opts", "-f", "raw", "-k", "{sock}", "file.filename={image}"],
                              "--image-opts and -f are mutually exclusive", False),
    "snapshot-memory-bad": (["--snapshot-memory=x", "-k", "{sock}", "{image}"],
                            "Invalid size of --snapshot-memory: 'x'", False),
    "image-protocol": (["-k", "{sock}", "ssh://localhost"], "Failed to open 'ssh://localhost': the "
                       "protocol 'ssh' is not supported yet", False),
    "image-with-colon": (["-k", "{sock}", "a:b"], "Failed to open 'a:b': the protocol 'a'", False),
    "oldstyle-name": (["--oldstyle", "-x", "n", "-k", "{sock}", "{image}"],
                      "--oldstyle was given with the export name 'n'", False),
}


def later_options():
    """[(long, letter or "")] of the options of qemu-nbd that --help says come later."""
    text = run(EVNBD, "--help").stdout.partition("that are not supported yet:")[2]
    return re.findall(r"(--[a-z-]+)(?: \((-[a-zA-Z])\))?", text)


def test_later_options_are_told_from_typos(_):
    if not later_options():
        skip("no option of qemu-nbd comes later any more")
    for name, letter in later_options():
        for option in (name, name + "=value", *([letter] if letter else [])):
            done = run(EVNBD, option, "disk", status=1)
            equal(done.stderr, f"{PROGRAM}: the option '{name}' is not supported yet\n", option)


@cases("no_such_point", "no_such_*", "enable=no_such_point")
def test_unknown_trace_point_is_a_warning(t, pattern):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "-T", pattern)
    server.client().disconnect()
    equal(server.log, f"{PROGRAM}: warning: no trace point matches '{pattern.removeprefix('enable=')}'; "
          "'-T help' lists them\n", "log")


@cases("file:disk", "file:./disk", "./a:b", "file:a:b")
def test_names_of_images(t, name):
    t.file("disk", content(1, MIB))
    t.file("a:b", content(2, MIB))
    server = t.serve(name, "-f", "raw", cwd=t.dir)
    with server.client() as client:
        same_bytes(client.read_all(), content(2 if "a:b" in name else 1, MIB), name)


def fill(word, **places):
    if isinstance(word, bytes):
        return word
    for key, value in places.items():
        word = word.replace("{" + key + "}", value)
    return word


@cases(*REFUSED, sanitized=lambda name: not name.startswith("missing-value"))
def test_refused(t, name):
    arguments, says, hint = REFUSED[name]
    image = t.file("disk.raw", bytes(MIB))
    os.mkfifo(t.path("fifo"))
    t.file("a:b", b"")
    places = {"image": image, "dir": t.dir, "sock": t.path("sock")}
    before = sorted(os.listdir(t.dir))
    done = subprocess.run([EVNBD, *(fill(word, **places) for word in arguments)], cwd=t.dir,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
    lines = done.stderr.decode().splitlines()
    lines = [line for line in lines if "WARNING" not in line and not line.startswith(f"{PROGRAM}:   ")]
    equal(done.returncode, 1, f"exit status ({lines})")
    equal(done.stdout, b"", "standard output")
    check(lines and lines[0].startswith(f"{PROGRAM}: {fill(says, **places)}"), f"message: {lines}")
    equal(lines[1:], [HINT] if hint else [], "lines after the message")
    equal(sorted(os.listdir(t.dir)), before, "files")
    same_bytes(read_file(image), bytes(MIB), "the image")


def test_refused_in_the_name_it_was_called_by(t):
    os.symlink(os.path.realpath(EVNBD), t.path("qemu-nbd"))
    done = run(t.path("qemu-nbd"), "--bogus", status=1)
    equal(done.stderr, "qemu-nbd: unrecognized option '--bogus'\n"
          "qemu-nbd: Try `qemu-nbd --help' for more information.\n", "message")
    equal(run(t.path("qemu-nbd"), "-V").stdout.split()[0], "qemu-nbd", "name in the version")


@cases("-h", "--help", "--he", "-V", "--version", "--list-options", "--object=help",
       *(f"--object={name},help" for name in ("secret", "secret_keyring", "authz-simple", "authz-list",
                                              "authz-list-file")))
def test_prints(t, option):
    done = run(EVNBD, option)
    equal(done.stderr, "", "standard error")
    check(len(done.stdout.splitlines()) >= 2, done.stdout)
    if option != "--list-options":  # which shells read
        check(all(len(line) < 80 for line in done.stdout.splitlines()), "a line is too wide")


def test_prints_trace_points(t):
    done = run(EVNBD, "-T", "help")
    check("nbd_request" in done.stdout and "block_read" in done.stdout, done.stdout)


@cases("-h", "-V", "--list-options", "-Thelp")
def test_print_failures_are_told(t, option):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([EVNBD, option], stdout=full, stderr=subprocess.PIPE, timeout=HANG,
                              check=False)
    equal(done.returncode, 1, "exit status with a full disk")
    check(b"Could not write" in done.stderr, done.stderr)
    done = subprocess.run(["sh", "-c", f'exec "$0" {option} >&-', EVNBD], stderr=subprocess.PIPE,
                          timeout=HANG, check=False)
    equal(done.returncode, 1, "exit status with a closed standard output")


def options_listed():
    rows = [line.split("\t") for line in run(EVNBD, "--list-options").stdout.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows]


def test_manual_knows_every_option(t):
    manual = read_file(os.path.join(SOURCE_ROOT, "docs", "evnbd.8")).decode()
    for name, letter, argument in options_listed():
        wanted = f"Fl -{name[2:]}"
        wanted += f" Ns = Ns Ar {argument.lower()}" if argument else ""
        wanted = f".It {'Fl ' + letter[1] if letter else ''}" + \
            (f" Ar {argument.lower()} , " if letter and argument else " , " if letter else "") + wanted
        check(wanted + "\n" in manual, f"the manual has no line '{wanted}'")


def test_manual_is_clean(t):
    need("mandoc")
    done = run("mandoc", "-T", "lint", "-W", "warning",
               os.path.join(SOURCE_ROOT, "docs", "evnbd.8"), status=None)
    equal((done.returncode, done.stdout), (0, ""), "mandoc -T lint")


# What options do, as a client sees it.

def test_default_flags(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw")
    with server.client() as client:
        equal(client.export.size, MIB, "size")
        check(not client.export.flags & (FLAG_READ_ONLY | FLAG_CAN_MULTI_CONN),
              hex(client.export.flags))
    check("WARNING" not in server.log, server.log)


def test_order_and_prefixes(t):
    image = t.file("disk", bytes(MIB))
    server = t.serve(image, "--form=raw", "--read", "--shar=2", "--desc", "text")
    with server.client() as one, server.client() as two:
        check(one.export.flags & FLAG_READ_ONLY and two.export.flags & FLAG_CAN_MULTI_CONN,
              hex(one.export.flags))
        equal(one.export.description, b"text", "description")


def test_options_after_the_image(t):
    server = t.serve(None, "-f", "raw", t.file("disk", bytes(MIB)), "-r")
    with server.client() as client:
        check(client.export.flags & FLAG_READ_ONLY, hex(client.export.flags))


def test_read_only_refuses_writes(t):
    image = t.file("disk", content(1, MIB))
    with t.serve(image, "-r", "-f", "raw").client() as client:
        equal(client.command(CMD_WRITE, 0, 512, payload=bytes(512)), EPERM, "WRITE")
        equal(client.command(CMD_TRIM, 0, 512), EPERM, "TRIM")
    same_bytes(read_file(image), content(1, MIB), "the image")


def test_read_only_of_a_file_without_write_permission(t):
    image = t.file("disk", content(1, MIB))
    os.chmod(image, 0o444)
    with t.serve(image, "-r", "-f", "raw").client() as client:
        same_bytes(client.read_all(), content(1, MIB), "the disk")


def test_export_name(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", export="na me", )
    with server.client() as client:
        equal(client.export.size, MIB, "size")
    with server.client(connect=False) as client:
        client.greeting()
        client.client_flags()
        replies = client.option(OPT_LIST)
        equal([data[4:] for kind, data in replies if kind == REP_SERVER], [b"na me"], "LIST")
        try:
            client.go(b"")
            raise RuntimeError("the empty name was accepted")
        except AssertionError:
            pass


def test_longest_strings(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "-D", "d" * 4096, export="n" * 4096)
    with server.client() as client:
        equal(client.export.description, b"d" * 4096, "description")


@cases("512", "0x200", "01000", "1", "1048575", "1048576")
def test_offset(t, offset):
    data = content(2, MIB)
    start = int(offset, 8 if offset.startswith("01") else 0)
    image = t.file("disk", data)
    with t.serve(image, "-f", "raw", "-o", offset).client() as client:
        equal(client.export.size, MIB - start, "size")
        same_bytes(client.read_all(), data[start:], "the disk")
        if start == 512:
            client.write(0, b"x" * 1000)
            data = data[:512] + b"x" * 1000 + data[1512:]
    t.stop_servers()
    same_bytes(read_file(image), data, "the image")


def test_offset_at_the_end_is_warned_about(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "-o", str(MIB))
    check("the export has 0 bytes" in server.log, server.log)
    server = t.serve(t.file("disk2", bytes(MIB)), "-f", "raw", "-o", str(MIB - 1))
    equal(server.log, "", "log")


def test_offset_of_a_probed_qcow2(t):
    raw = t.file("raw", content(3, MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, t.path("disk"))
    with t.serve(t.path("disk"), "--offset=65537").client() as client:
        same_bytes(client.read_all(), content(3, MIB)[65537:], "the disk")
        client.write(10, b"written")
    t.stop_servers()
    qemu_img("convert", "-O", "raw", t.path("disk"), t.path("after"))
    same_bytes(read_file(t.path("after"))[65547:65554], b"written", "what was written")


def test_probed_raw_is_protected(t):
    image = t.file("disk", content(4, MIB))
    server = t.serve(image)
    check(f"WARNING: Image format was not specified for '{image}' and probing guessed raw."
          in server.log, server.log)
    equal(len(server.log.splitlines()), 3, "lines of the warning")
    with server.client() as client:
        equal(client.command(CMD_WRITE, 0, 512, payload=b"QFI\xfb\0\0\0\3" + bytes(504)), EPERM,
              "a write that makes a qcow2 of it")
        client.write(0, b"y" * 512)
        client.write(512, b"QFI\xfb\0\0\0\3" + bytes(504))


def test_probed_raw_that_is_not_written_needs_no_warning(t):
    equal(t.serve(t.file("disk", content(4, MIB)), "-r").log, "", "log")


def test_given_raw_is_not_protected(t):
    image = t.file("disk", content(4, MIB))
    with t.serve(image, "-f", "raw").client() as client:
        client.write(0, b"QFI\xfb\0\0\0\3" + bytes(504))


@cases("none", "off", "writeback", "writethrough", "directsync", "unsafe")
def test_cache(t, mode):
    image = t.file("disk", content(5, MIB))
    try:
        os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
    except OSError:
        if mode in ("none", "off", "directsync"):
            skip("no direct I/O in the temporary directory")
    with t.serve(image, "-f", "raw", f"--cache={mode}").client() as client:
        client.write(1000, b"z" * 5000)
        client.flush()
        wanted = content(5, MIB)[:1000] + b"z" * 5000 + content(5, MIB)[6000:]
        same_bytes(client.read_all(), wanted, "the disk")
    same_bytes(read_file(image), wanted, "the image")


@cases(("--aio=threads",), ("--aio=native", "-n"), ("--aio=io_uring",), ("-n",))
def test_aio(t, *options):
    image = t.file("disk", content(6, MIB))
    try:
        server = t.serve(image, "-f", "raw", *options)
    except AssertionError as failure:
        if "io_uring" in str(failure) or "direct I/O" in str(failure):
            skip("this machine does not have it")
        raise
    with server.client() as client:
        client.write(1000, b"z" * 5000)
        same_bytes(client.read(0, 8192), content(6, MIB)[:1000] + b"z" * 5000 +
                   content(6, MIB)[6000:8192], "the disk")


@cases((), ("--discard=ignore",), ("--discard=off",), ("--discard=unmap",), ("--discard=on",))
def test_discard(t, *options):
    image = t.file("disk", content(7, MIB))
    os.sync()
    with t.serve(image, "-f", "raw", *options).client() as client:
        equal(client.command(CMD_TRIM, 0, 512 * 1024), 0, "TRIM")
    t.stop_servers()
    used = os.stat(image).st_blocks * 512
    if options in (("--discard=unmap",), ("--discard=on",)):
        check(used <= MIB // 2 + 65536, f"{used} bytes are still used")
    else:
        same_bytes(read_file(image), content(7, MIB), "the image")


@cases("off", "on", "unmap")
def test_detect_zeroes(t, mode):
    qemu_img("create", "-f", "qcow2", t.path("disk"), "1M")
    options = ["--discard=unmap"] if mode == "unmap" else []
    server = t.serve(t.path("disk"), "-f", "qcow2", *options, f"--detect-zeroes={mode}")
    empty = os.stat(t.path("disk")).st_size
    with server.client() as client:
        client.write(0, bytes(512 * 1024))
        client.flush()
    t.stop_servers()
    grown = os.stat(t.path("disk")).st_size - empty
    check((grown > 400 * 1024) == (mode == "off"), f"the image has grown by {grown} bytes")


def test_oldstyle(t):
    server = t.serve(t.file("disk", content(8, MIB)), "-f", "raw", "--oldstyle")
    with server.client(connect=False) as client:
        greeting = client.recv(152)
        equal(greeting[:8], b"NBDMAGIC", "magic")
        equal(int.from_bytes(greeting[16:24], "big"), MIB, "size")
        same_bytes(client.read(0, 4096), content(8, 4096), "the disk")


def test_handshake_limit(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "--handshake-limit=1")
    with server.client(connect=False) as client:
        client.greeting()
        equal(client.recv_until_closed(), b"", "after the limit")
    with server.client() as client:
        equal(client.export.size, MIB, "size")


def test_no_handshake_limit(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "--handshake-limit=0")
    with server.client(connect=False) as client:
        client.greeting()
        client.client_flags()
        client.option(OPT_LIST)


def test_shared_is_a_limit(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "-e", "2")
    one, two = server.client(), server.client()
    with server.client(connect=False) as waiting:
        waiting.sock.settimeout(0.3)
        try:
            waiting.recv(1)
            raise AssertionError("the third client was served")
        except (TimeoutError, socket.timeout):
            pass
        one.disconnect()
        waiting.sock.settimeout(HANG)
        waiting.connect()
        waiting.disconnect()
    two.disconnect()


def test_shared_without_limit(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "-e", "0")
    clients = [server.client() for _ in range(20)]
    check(clients[0].export.flags & FLAG_CAN_MULTI_CONN, hex(clients[0].export.flags))
    for client in clients:
        client.disconnect()


def test_tcp(t):
    with t.serve(t.file("disk", content(9, MIB)), "-f", "raw", port=free_port()).client() as client:
        same_bytes(client.read_all(), content(9, MIB), "the disk")


@cases("localhost", "127.0.0.2", "0.0.0.0")
def test_bind(t, address):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", host=address, port=free_port())
    with server.client() as client:
        equal(client.export.size, MIB, "size")
    if address == "127.0.0.2":
        try:
            RawClient(("127.0.0.1", server.port)).close()
            raise AssertionError("another address is served too")
        except ConnectionRefusedError:
            pass


@cases("::1", "::")
def test_bind_ipv6(t, address):
    if not have_ipv6():
        skip("no IPv6")
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", host=address, port=free_port())
    with RawClient(("::1", server.port)) as client:
        equal(client.connect().export.size, MIB, "size")


def test_service_name(t):
    try:
        port = socket.getservbyname("nbd", "tcp")
    except OSError:
        skip("the machine has no service 'nbd'")
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            skip(f"port {port} is in use")
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", port="nbd")
    with RawClient(("127.0.0.1", port)) as client:
        equal(client.connect().export.size, MIB, "size")
    server.stop()


def test_socket_wins_over_port(t):
    port = free_port()
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "-p", str(port))
    with server.client() as client:
        equal(client.export.size, MIB, "size")
    try:
        RawClient(("127.0.0.1", port)).close()
        raise AssertionError("TCP is served too")
    except ConnectionRefusedError:
        pass


@cases(0o000, 0o022, 0o077)
def test_umask_decides_who_can_connect(t, umask):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", umask=umask)
    equal(stat.S_IMODE(os.stat(server.unix).st_mode), 0o777 & ~umask, "mode of the socket")


def test_trace_to_a_file(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw", "-T",
                     f"nbd_request,file={t.path('log')}")
    with server.client() as client:
        client.read(0, 512)
    server.stop()
    log = read_file(t.path("log")).decode()
    check("nbd_request" in log, f"log: {log!r}")
    check("nbd_request" not in server.log, server.log)


def test_aborted_handshake_is_no_failure(t):
    server = t.serve(t.file("disk", bytes(MIB)), "-f", "raw")
    with server.client(connect=False) as client:
        client.greeting()
        client.client_flags()
        try:
            client.option(OPT_ABORT)
        except Closed:
            pass
    with server.client() as client:
        equal(client.export.size, MIB, "size")


if __name__ == "__main__":
    main()
