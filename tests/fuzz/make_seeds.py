#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes seed inputs for the fuzz targets: make_seeds.py TARGET DIRECTORY

Images come from qemu-img and qemu-io, so that the fuzzer begins with real ones; where they are
missing, no images are made.  Dialogues are what real clients send.
"""
import os
import shutil
import struct
import subprocess
import sys
import tempfile


def option(number, data=b""):
    return struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data


def name_and_infos(name=b"", infos=()):
    return (struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos)) +
            b"".join(struct.pack(">H", info) for info in infos))


def name_and_queries(name=b"", queries=()):
    return (struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries)) +
            b"".join(struct.pack(">I", len(query)) + query for query in queries))


def request(command, offset=0, length=0, flags=0, cookie=1, payload=b""):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload


def extended(command, offset=0, length=0, flags=0, cookie=1, payload=b""):
    flags |= 32 if payload else 0
    length = len(payload) or length
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length) + payload


FLAGS = struct.pack(">I", 3)
LIST, INFO, GO, EXPORT_NAME, ABORT, STARTTLS, STRUCTURED = 3, 6, 7, 1, 2, 5, 8
LIST_CONTEXTS, SET_CONTEXTS, EXTENDED = 9, 10, 11

HANDSHAKES = {
    "go": FLAGS + option(GO, name_and_infos(infos=(0, 1, 2, 3))),
    "go-name": FLAGS + option(GO, name_and_infos(b"disk", (3,))),
    "go-unknown": FLAGS + option(GO, name_and_infos(b"nothing")) + option(GO, name_and_infos()),
    "list": FLAGS + option(LIST) + option(ABORT),
    "info": FLAGS + option(INFO, name_and_infos(b"cd", (3,))) + option(GO, name_and_infos(b"cd")),
    "export-name": FLAGS + option(EXPORT_NAME, b"disk"),
    "old-client": struct.pack(">I", 0) + option(EXPORT_NAME, b""),
    "modern": FLAGS + option(STARTTLS) + option(STRUCTURED) +
              option(SET_CONTEXTS, name_and_queries(b"", (b"base:allocation",))) +
              option(GO, name_and_infos(infos=(3,))),
    "extended": FLAGS + option(EXTENDED) + option(STRUCTURED) + option(LIST_CONTEXTS, name_and_queries()) +
                option(SET_CONTEXTS, name_and_queries(b"disk", (b"qemu:allocation-depth",
                                                                b"qemu:dirty-bitmap:today", b"base:"))) +
                option(GO, name_and_infos(b"disk")),
    "contexts": FLAGS + option(STRUCTURED) + option(LIST_CONTEXTS, name_and_queries(b"cd", (b"qemu:",))) +
                option(SET_CONTEXTS, name_and_queries(b"cd", (b"base:allocation",) * 3) + b"\0") +
                option(EXPORT_NAME, b"cd"),
    "tls": FLAGS + option(STRUCTURED) + option(STARTTLS) + option(LIST) + option(STRUCTURED) +
           option(SET_CONTEXTS, name_and_queries(b"disk", (b"base:allocation",))) + option(GO, name_and_infos(b"disk")),
    "tls-twice": FLAGS + option(STARTTLS, b"x") + option(STARTTLS) + option(STARTTLS) + option(EXPORT_NAME, b"disk"),
    "oversized": FLAGS + struct.pack(">QII", 0x49484156454F5054, LIST, 0xFFFFFFFF),
}

REQUESTS = {
    "read": request(0, 0, 4096) + request(0, 4096, 512, cookie=2) + request(2),
    "write": request(1, 512, 512, payload=b"w" * 512) + request(1, 0, 3, 1, 2, b"fua") + request(3),
    "zero-and-trim": request(6, 0, 8192) + request(6, 1, 100, 2, 2) + request(4, 4096, 4096, 0, 3),
    "cache": request(5, 0, 65536) + request(2),
    "past-the-end": request(0, 65536, 1) + request(1, 65535, 2, payload=b"xx") + request(6, 1 << 63, 9),
    "unknown": request(7, 0, 512) + request(99) + request(0, 0, 1, 0x8000),
    "status": request(7, 0, 131072) + request(7, 5, 1000, 8, 2) + request(7, 131071, 2, 0, 3),
    "big-read": request(0, 0, 131072) + request(0, 100, 70000, 4, 2) + request(0, 8192, 16384, 0, 3),
    "many": b"".join(request(n % 2, n * 100, 100, 0, n, b"m" * 100 * (n % 2)) for n in range(20)),
}

EXTENDED_REQUESTS = {
    "read": extended(0, 0, 131072) + extended(0, 100, 70000, 4, 2) + extended(0, 8192, 16384, 0, 3),
    "write": extended(1, 512, payload=b"w" * 512) + extended(1, 0, 512, 0, 2) + extended(3, 0, 0, 0, 3),
    "large": extended(6, 0, 1 << 33) + extended(4, 0, 131072, 0, 2) + extended(5, 0, 131072, 0, 3),
    "status": extended(7, 0, 131072) + extended(7, 5, 1000, 8, 2) + extended(7, 0, 1 << 40, 0, 3),
    "filter": extended(7, 0, payload=struct.pack(">QI", 70000, 0)) +
              extended(7, 8192, 0, 8, 2, struct.pack(">QII", 9000, 1, 0)) +
              extended(7, 0, 0, 0, 3, struct.pack(">QII", 512, 1, 1)) +
              extended(7, 0, 0, 0, 4, b"x" * 13),
    "payload": extended(0, 0, 0, 0, 1, b"none wanted") + extended(2),
}


def reply(option, kind, data=b""):
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def server(name, text=b""):
    return reply(LIST, 2, struct.pack(">I", len(name)) + name + text)


def information(kind, data):
    return reply(INFO, 3, struct.pack(">H", kind) + data)


ERR, EXTENDED, LIST_META = 1 << 31, 11, 9
GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
EXPORT = information(0, struct.pack(">QH", 1 << 20, 0xDED)) + information(3, struct.pack(">III", 1, 4096, 1 << 25))
CONTEXTS = reply(LIST_META, 4, bytes(4) + b"base:allocation") + reply(LIST_META, 1)

SERVERS = {
    "oldstyle": b"NBDMAGIC" + struct.pack(">QQI", 0x420281861253, 4096, 3) + bytes(124),
    "newstyle": b"NBDMAGICIHAVEOPT" + struct.pack(">HQH", 0, 512, 1) + bytes(124),
    "plain": GREETING + reply(EXTENDED, ERR + 1, b"no") + reply(STRUCTURED, ERR + 1) + server(b"disk", b"text") +
             server(b"") + reply(LIST, 1) + EXPORT + reply(INFO, 1) + reply(INFO, ERR + 6, b"gone"),
    "structured": GREETING + reply(EXTENDED, ERR + 1) + reply(STRUCTURED, 1) + server(b"a") + reply(LIST, 1) +
                  information(1, b"name") + information(2, b"text") + EXPORT + reply(INFO, 1) + CONTEXTS,
    "extended": GREETING + reply(EXTENDED, 1) + server(b"a\x1b\xff") + reply(LIST, 1) + EXPORT + reply(INFO, 1) +
                CONTEXTS,
    "resumed": GREETING + reply(EXTENDED, 1) + EXPORT + reply(INFO, 1) + CONTEXTS,
    "refused": GREETING + reply(EXTENDED, ERR + 5) + reply(STRUCTURED, ERR + 5) + reply(LIST, ERR + 5, b"TLS"),
    "tls": GREETING + reply(STARTTLS, 1) + reply(EXTENDED, 1) + server(b"a") + reply(LIST, 1) + EXPORT +
           reply(INFO, 1) + CONTEXTS,
    "no-tls": GREETING + reply(STARTTLS, ERR + 1, b"no"),
}

OPTIONS = {
    "keys": b"driver=qcow2,file.driver=file,file.filename=disk.qcow2",
    "commas": b"filename=a,,b,,c,size=1M",
    "implied": b"disk.raw,lazy=on,number=0x10,size=1.5G,mode=metadata",
    "json": b'json:{"driver": "raw", "size": 512, "file": {"filename": "x", "cache.direct": true}}',
    "nested": b"file.file.file.file=x,cache.direct=off",
    "bad": b"a=1,a=2,=x,,",
}


def raw_seed(file_size, offset, size, *operations):
    return struct.pack("<HHH", file_size, offset, size) + b"".join(
        struct.pack("<BBHH", *operation) for operation in operations)


RAW = {
    "plain": raw_seed(8192, 0, 0xFFFF, (2, 7, 100, 5000), (0, 0, 0, 8192), (4, 1, 4096, 4096),
                      (1, 0, 4000, 200), (6, 0, 0, 0)),
    "odd": raw_seed(1001, 13, 0xFFFF, (2, 9, 980, 8), (0, 0, 0, 988), (7, 0, 0, 988), (5, 0, 500, 400)),
    "window": raw_seed(9000, 4096, 4097, (0x82, 1, 4096, 1), (0, 0, 4096, 1), (0, 0, 4097, 1)),
    "refused": raw_seed(10, 11, 0xFFFF),
    "too-long": raw_seed(10, 5, 6),
    "empty": raw_seed(0, 0, 0xFFFF, (0, 0, 0, 0), (2, 1, 0, 1)),
}

# name: options of qemu-img create, size, commands of qemu-io
QCOW2 = {
    "v2": ("compat=0.10,cluster_size=512", 32768, ("write -P 1 0 3000", "write -c -P 2 8k 512")),
    "v3": ("compat=1.1,cluster_size=512", 32768, ("write -P 3 5000 1000", "write -z 16k 1k", "discard 0 512")),
    "empty": ("compat=1.1,cluster_size=512", 65536, ()),
    "narrow": ("compat=1.1,cluster_size=512,refcount_bits=1", 16384, ("write -P 4 0 2k",)),
    "wide": ("compat=1.1,cluster_size=512,refcount_bits=64", 16384, ("write -P 5 1k 2k",)),
    "zstd": ("compat=1.1,cluster_size=4096,compression_type=zstd", 65536, ("write -c -P 6 0 4k",)),
    "zlib": ("compat=1.1,cluster_size=4096", 65536, ("write -c -P 7 4k 4k", "write -P 8 0 4k")),
    "aes": ("compat=1.1,cluster_size=512,encrypt.format=aes,encrypt.key-secret=s", 16384, ()),
    "lazy": ("compat=1.1,cluster_size=512,lazy_refcounts=on", 8192, ("write -P 9 0 512",)),
    "bitmaps": ("compat=1.1,cluster_size=512", 65536, ("write -P 3 5000 1000", "write -P 4 50k 512")),
    "empty-bitmaps": ("compat=1.1,cluster_size=4096", 65536, ()),
}
WITH_BITMAPS = ("bitmaps", "empty-bitmaps")


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=60)


def qcow2_images():
    if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
        return {}
    images = {}
    with tempfile.TemporaryDirectory(prefix="evnbd-seeds-") as folder:
        image = os.path.join(folder, "disk.qcow2")
        for name, (options, size, commands) in QCOW2.items():
            run("qemu-img", "create", "-q", "--object", "secret,id=s,data=open sesame", "-f", "qcow2", "-o", options,
                image, str(size))
            words = [word for command in commands for word in ("-c", command)]
            if name in WITH_BITMAPS:
                run("qemu-img", "bitmap", "--add", "-g", "512", image, "a")
                run("qemu-img", "bitmap", "--add", "-g", "64k", image, "b")
            if words:
                run("qemu-io", "-f", "qcow2", *words, image)
            if name == "v3":
                run("qemu-img", "snapshot", "-c", "snapshot", image)
            with open(image, "rb") as file:
                images[name] = file.read()
    return images


def luks_headers():
    """One slot in use; the area that the target has ends where the input does."""
    for name, cipher, mode, digest, key_bytes in (
            ("xts", b"aes", b"xts-plain64", b"sha256", 64), ("cbc", b"aes", b"cbc-essiv:sha256", b"sha1", 32),
            ("ecb", b"serpent", b"ecb", b"ripemd160", 16), ("small", b"cast5", b"cbc-plain", b"sha512", 16)):
        head = struct.pack(">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe", 1, cipher, mode, digest, 4040, key_bytes,
                           b"d" * 20, b"s" * 32, 1000, b"0f1e2d3c-0000-4000-8000-000000000000")
        yield name, head + b"".join(struct.pack(">II32sII", 0xDEAD if i else 0xAC71F3, 0 if i else 1000,
                                                b"" if i else b"t" * 32, 2 + i * 4, 1 + 20 * (name == "small"))
                                    for i in range(8)) + bytes(1024)


# Programs of fuzz_handshake: client flags, then for each option its number (and more) and its fields.
PROGRAMS = {
    "select": bytes((3, 8, 10, 2, 0, 4, 9, 7, 1, 0, 3)),
    "extend": bytes((3, 11, 8, 9, 0, 0, 10, 3, 2, 7, 4, 5, 6, 0, 0, 7, 0, 0)),
    "replace": bytes((3, 8, 10, 1, 0, 4, 10, 1, 3, 4, 7, 0, 1)),
    "damage": bytes((3, 8, 250, 2, 0, 4, 9, 0x21, 250, 2, 0, 4, 9, 0x45, 7, 247, 1, 0, 3, 0x8F, 2)),
    "name": bytes((1, 3, 8, 13)),
    "tls": bytes((3, 8, 5, 3, 11, 10, 0, 1, 0, 5, 7, 0, 0)),
}


def handshake_inputs():
    """The target's two leading bytes: state of the server, and where the input is cut."""
    for name, dialogue in HANDSHAKES.items():
        for state in (*range(8), *range(16, 128, 16)):
            yield f"{name}-{state}", bytes([state, 7 * state % 256]) + dialogue
    for name, program in PROGRAMS.items():
        for state in (*range(8, 16), *range(24, 128, 16)):
            yield f"program-{name}-{state}", bytes([state, 5 * state % 256]) + program


def client_inputs():
    """The target's two leading bytes: whether the list is known and TLS wanted, and where the input is cut."""
    for name, dialogue in SERVERS.items():
        for mode in range(4):
            yield f"{name}-{mode}", bytes([mode, 30 + 40 * mode]) + dialogue


def request_inputs():
    """The target's two leading bytes have a bit for each trait; 4 in the first: handshake included."""
    for name, dialogue in REQUESTS.items():
        for traits in (0, 1, 2, 8, 16, 32, 64, 128, 0xF2):
            yield f"{name}-{traits}", bytes([traits, 0]) + dialogue
        for traits in (0, 2, 0xF2):
            for more in (1, 5, 0x1D, 0x3D):
                yield f"{name}-{traits}-{more}", bytes([traits, more]) + dialogue
        yield f"{name}-raw", bytes([4, 0]) + HANDSHAKES["go"] + dialogue
    for name, dialogue in EXTENDED_REQUESTS.items():
        for traits in (0, 1, 2, 0xF2):
            for more in (2, 6, 0x1E, 0x3E):
                yield f"extended-{name}-{traits}-{more}", bytes([traits, more]) + dialogue


PARTITIONS = {
    "mbr": "label: dos\nstart=1, size=4\nstart=8, size=60, type=5\nstart=10, size=2\nstart=14, size=3\n",
    "gpt": "label: gpt\ntable-length: 8\nfirst-lba: 6\nstart=6, size=9, name=one\nstart=20, size=1\n",
}
PARTITION_HALF, PARTITION_GAP = 16384, 65536  # of the input, and what the target puts between


def partition_tables():
    if not shutil.which("sfdisk"):
        return
    for name, script in PARTITIONS.items():
        with tempfile.NamedTemporaryFile(prefix="evnbd-seeds-") as file:
            file.truncate(2 * PARTITION_HALF + PARTITION_GAP)
            subprocess.run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", file.name], input=script, text=True,
                           check=True, stdout=subprocess.DEVNULL, timeout=60)
            with open(file.name, "rb") as made:
                data = made.read()
            yield name, data[:PARTITION_HALF] + data[-PARTITION_HALF:]
            broken = bytearray(data[:PARTITION_HALF] + data[-PARTITION_HALF:])
            broken[512] ^= 1
            yield name + "-broken", bytes(broken)


MAKERS = {
    "fuzz_partition": partition_tables,
    "fuzz_options": OPTIONS.items,
    "fuzz_handshake": handshake_inputs,
    "fuzz_client": client_inputs,
    "fuzz_requests": request_inputs,
    "fuzz_raw": RAW.items,
    "fuzz_qcow2": lambda: qcow2_images().items(),
    "fuzz_luks": luks_headers,
}


def make(target, directory):
    os.makedirs(directory, exist_ok=True)
    for name, data in MAKERS[target]():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)


if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2])
