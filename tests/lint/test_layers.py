#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Includes follow the layers, and each foreign library has one home."""
import os
import re

from lint import PRODUCT, ROOT, lines_of, report, tree

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

# Who may include whom, besides itself.
LAYERS = {
    "base": (),
    "blockcore": ("base",),
    "nbd": ("blockcore", "base"),
    "tls": ("base",),
    "systemd": ("base",),
    "daemon": ("nbd", "tls", "systemd", "blockcore", "base"),
    "img": ("nbd", "tls", "systemd", "blockcore", "base"),
    "ctl": ("nbd", "tls", "systemd", "blockcore", "base"),
}
# What blockcore shows to the layers above it.
BLOCKCORE_PUBLIC = ("bitmap.h", "block.h", "check.h", "create.h", "node.h", "driver.h", "drivers.h",
                    "luks.h", "name_policy.h", "overlay.h", "partition.h", "partition_disk.h", "range_lock.h",
                    "snapshot.h")
# Headers of other libraries, and the files that may include them.
HOMES = {
    r"ev\.h": ("base/reactor.c",),
    r"libnbd\.h": ("blockcore/protocol/nbd_link.c",),
    r"liburing\.h": ("base/io_uring.c",),
    r"jansson\.h": ("base/options.h", "daemon/list_json.c"),
    r"valgrind/.*": ("base/coroutine_stack.c",),
    r"sanitizer/.*": ("base/coroutine_stack.c", "base/coroutine_stack.h", "base/coroutine.c",
                      "base/buffer.c"),
    r"gnutls/.*": tuple(tree((".c", ".h"), ("tls",))),
    r"security/pam_appl\.h": ("tls/authz_pam.c",),
    r"ini\.h": ("daemon/config_file.c",),
    r"selinux/.*": ("daemon/selinux.c",),
    r"zlib\.h": ("blockcore/codec.c",),
    r"zstd(_errors)?\.h": ("blockcore/codec.c",),
    r"nettle/.*": ("blockcore/cipher.c",),
}
# The C library and the kernel.
LIBC = re.compile(
    r"(arpa/inet|assert|ctype|dirent|dlfcn|endian|errno|fcntl|fnmatch|getopt|glob|inttypes|limits|locale|malloc"
    r"|netdb|netinet/(in|tcp)|poll|pthread|pwd|grp|sched|signal|stdalign|stdarg|stdatomic|stdbool|stddef"
    r"|stdint|stdio|stdlib|stdnoreturn|string|strings|termios|time|ucontext|unistd"
    r"|sys/[a-z_]+|linux/[a-z_0-9]+)\.h")


def includes(folders):
    for path in tree((".c", ".h"), folders):
        for number, line in lines_of(path):
            match = INCLUDE.match(line)
            if match:
                yield path, number, match[1], match[2]


def check_layers():
    for path, number, kind, name in includes(PRODUCT):
        layer = path.split("/")[0]
        other = name.split("/")[0]
        if kind == "<" or name == "config.h":
            continue
        if not os.path.exists(os.path.join(ROOT, name)):
            yield f"{path}:{number}: \"{name}\" is no path from the root of the tree"
        elif other != layer and other not in LAYERS[layer]:
            yield f"{path}:{number}: {layer} must not include \"{name}\""
        elif other == "blockcore" and layer != other and name[10:] not in BLOCKCORE_PUBLIC:
            yield f"{path}:{number}: \"{name}\" is inside of blockcore"


def check_formats_do_not_know_each_other():
    for path, number, kind, name in includes(("blockcore",)):
        folder = os.path.dirname(path)
        if kind == "<" or os.path.dirname(name) not in ("blockcore/format", "blockcore/protocol"):
            continue
        stem = re.split(r"[_.]", os.path.basename(name))[0]
        if folder == "blockcore" or not os.path.basename(path).startswith(stem):
            yield f"{path}:{number}: only its own files include \"{name}\""


def check_foreign_headers():
    for path, number, kind, name in includes(PRODUCT):
        if kind == '"' or LIBC.fullmatch(name):
            continue
        homes = next((files for pattern, files in HOMES.items() if re.fullmatch(pattern, name)), None)
        if homes is None:
            yield f"{path}:{number}: <{name}> has no home yet: give it one in {__file__}"
        elif path not in homes:
            yield f"{path}:{number}: <{name}> belongs to {' or '.join(homes)}"


# System calls that go through the seam (base/sys.h), and where they may be called.
SEAM = re.compile(r"(?<![\w>.])(openat|fstat|preadv2?|pwritev2?|pread|pwrite|fdatasync|fsync|fallocate"
                  r"|ftruncate|lseek|ioctl|unlinkat|socket|bind|listen|connect|accept4?|setsockopt|recvmsg"
                  r"|recv|sendmsg|send|sendfile|clock_gettime|getrandom)\s*\(")


def check_seam():
    """blockcore and nbd reach files, sockets, clocks and randomness through sys-> alone."""
    for path in tree((".c", ".h"), ("blockcore", "nbd")):
        comment = False
        for number, line in lines_of(path):
            code = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", line)
            comment = ("/*" in code) if not comment else "*/" not in code
            if not comment and (match := SEAM.search(code)) and not re.match(r"\s*\*|.*\(\*", code):
                yield f"{path}:{number}: {match[1]}() does not go through sys->"


if __name__ == "__main__":
    report([("includes follow the layers", check_layers),
            ("formats are on their own", check_formats_do_not_know_each_other),
            ("foreign headers have one home", check_foreign_headers),
            ("system calls go through the seam", check_seam)])
