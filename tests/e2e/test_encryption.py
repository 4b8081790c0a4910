#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Encrypted images, LUKS over raw and both ways of qcow2: QEMU and cryptsetup read what we write, and
we what they write; what cannot be opened is refused by name, and never changed."""
import json
import os
import random
import re
import struct

from evnbd_test import (HELPERS, KIB, MIB, SANITIZER, cases, check, content, digest, equal, main,
                        need, qemu_img, qemu_img_check, qemu_io, read_file, run, same_bytes, samples,
                        unpack_sample, write_file)
from qcow2_file import COPIED, EXT_CRYPTO, OFFSET_MASK, Qcow2File
from qcow2_judge import qemu_img_deriving

TOOL = os.path.join(HELPERS, "..", "tools", "qcow2_tool")
PASSPHRASE = "correct horse"
SECRET = ("--object", f"secret,id=s,data={PASSPHRASE}")
FAST = "iter-time=10"
SIZE = 3 * MIB + 512

# cipher-alg, cipher-mode, further options
LUKS_KINDS = (
    ("aes-256", "xts", ""), ("aes-128", "xts", ""), ("aes-192", "xts", ""),
    ("aes-256", "cbc", "ivgen-alg=essiv,ivgen-hash-alg=sha256"),
    ("aes-128", "cbc", "ivgen-alg=plain,hash-alg=sha1"), ("aes-256", "ctr", "hash-alg=sha512"),
    ("serpent-256", "xts", "hash-alg=ripemd160"), ("serpent-128", "cbc", "hash-alg=sha224"),
    ("serpent-192", "xts", ""), ("twofish-256", "xts", "hash-alg=sha384"),
    ("twofish-192", "xts", ""), ("twofish-128", "cbc", "ivgen-alg=plain64"),
    ("twofish-256", "cbc", "ivgen-alg=essiv"), ("cast5-128", "cbc", ""),
)


def tool(*words, secret=PASSPHRASE, form="luks", opens=None, status=0):
    if opens is None:
        opens = "key-secret=s" if form == "luks" else "encrypt.key-secret=s"
    done = run(TOOL, "--format", form, *(["--secret", f"s={secret}"] if secret is not None else []),
               *(["--open", opens] if opens else []), *words, status=status)
    check(not SANITIZER.search(done.stderr), done.stderr)
    return done


def refused(*words, says, **options):
    done = tool(*words, status=1, **options)
    check(re.search(says, done.stderr), f"/{says}/ is not in: {done.stderr}")


def qemu_create(form, options, image, size):
    qemu_img_deriving("create", "-q", *SECRET, "-f", form, "-o", options, image, size)
    return image


def image_opts(form, image, more=""):
    key = "key-secret" if form == "luks" else "encrypt.key-secret"
    return f"driver={form},{key}=s,file.filename={image}{more}"


def qemu_read(t, form, image):
    """The disk as QEMU decrypts it."""
    out = t.path("qemu.raw")
    qemu_img("convert", *SECRET, "--image-opts", image_opts(form, image), "-O", "raw", out)
    return read_file(out)


def our_read(t, form, image, **options):
    out = t.path("ours.raw")
    tool("dump", image, out, form=form, **options)
    return read_file(out)


def our_write(t, form, image, at, data):
    tool("load", image, at, t.file("piece", data), form=form)


def scribble(t, form, image, model, seed, write, count):
    """Writes at random places, of any alignment unless `write` is QEMU's."""
    rng = random.Random(seed)
    for _ in range(count):
        length = rng.choice((1, 100, 512, 5000, 70000, 400000))
        at = rng.randrange(len(model) - length)
        data = rng.randbytes(length)
        write(t, form, image, at, data)
        model[at:at + length] = data


def qemu_write(t, form, image, at, data):
    piece = t.file("piece", data)
    qemu_io(image_opts(form, image), f"write -s {piece} {at} {len(data)}",
            arguments=(*SECRET, "--image-opts"))


# LUKS over raw.

def some_kinds(alg, mode, _):
    return mode == "ctr" or alg in ("aes-128", "serpent-256", "twofish-256", "cast5-128")


@cases(*LUKS_KINDS, sanitized=some_kinds)
def test_luks_made_by_us(t, alg, mode, more):
    image = t.path("disk.luks")
    options = ",".join(filter(None, (f"size={SIZE},key-secret=s,cipher-alg={alg},cipher-mode={mode}",
                                     FAST, more)))
    tool("create", image, options, opens="")
    model = bytearray(content(1, SIZE))
    our_write(t, "luks", image, 0, model)
    scribble(t, "luks", image, model, 2, our_write, 6)
    same_bytes(qemu_read(t, "luks", image), bytes(model), "the disk as QEMU reads it")
    scribble(t, "luks", image, model, 3, qemu_write, 3)
    same_bytes(our_read(t, "luks", image), bytes(model), "the disk as we read it")


@cases(*(kind for kind in LUKS_KINDS if "serpent-192" not in kind),
       sanitized=lambda alg, mode, more: alg in ("aes-256", "twofish-128"))
def test_luks_made_by_qemu(t, alg, mode, more):
    image = qemu_create("luks", ",".join(filter(None, (f"key-secret=s,cipher-alg={alg},"
                                                       f"cipher-mode={mode}", FAST, more))),
                        t.path("disk.luks"), SIZE)
    model = bytearray(content(4, SIZE))
    our_write(t, "luks", image, 0, model)
    scribble(t, "luks", image, model, 5, our_write, 4)
    same_bytes(qemu_read(t, "luks", image), bytes(model), "the disk as QEMU reads it")
    same_bytes(our_read(t, "luks", image), bytes(model), "the disk as we read it")


PASSPHRASES = {
    "compat-cbc-essiv.img": ("compatkey",), "luks3-aes-cbc-plain64-128-sha256.img": ("pass-3",),
    "luks1-aes-xts-plain64-512-sha256.img": ("pass-1", "second-1", "third-1"),
    "luks5-aes-cbc-plain-256-ripemd160.img": ("pass-5",), "luks6-aes-ecb-256-sha256.img": ("pass-6",),
}
REFUSED_SAMPLES = {
    "cs-aes-lrw-sha1": "lrw", "cs-aes-xts-whirlpool": "whirlpool", "luks2-header-only.img": "version is 2",
    "luks1-header-only.img": "end of the|key material",
}


@cases(*PASSPHRASES)
def test_samples(t, name):
    row = next(row for row in samples("luks") if row["set"] == name)
    image = unpack_sample(t, row)
    before = digest(image)
    for passphrase in PASSPHRASES[name]:
        tool("dump", image, t.path("disk.raw"), secret=passphrase)
        equal(digest(t.path("disk.raw")), row["guest_sha256"], f"the disk of {name}")
    refused("dump", image, t.path("disk.raw"), secret="no such passphrase", says="none of its key slots")
    equal(digest(image), before, "hash of the image after it was read")


@cases(*REFUSED_SAMPLES)
def test_refused_samples(t, name):
    row = next(row for row in samples("luks") if row["set"] == name and "keyfile" not in row["stored_file"])
    refused("dump", unpack_sample(t, row), t.path("disk.raw"), says=REFUSED_SAMPLES[name])


@cases("cs-aes-xts-plain64-sha256", "cs-aes-cbc-essiv-sha1")
def test_key_file(t, name):
    """The passphrase is a binary file."""
    rows = [row for row in samples("luks") if row["set"] == name]
    key, image = t.path("key"), t.path("image")
    for row in rows:
        os.rename(unpack_sample(t, row), key if "keyfile" in row["stored_file"] else image)
    done = run(TOOL, "--format", "luks", "--secret-file", f"s={key}", "--open", "key-secret=s", "dump",
               image, t.path("disk.raw"))
    check(not SANITIZER.search(done.stderr), done.stderr)
    equal(digest(t.path("disk.raw")), rows[0]["guest_sha256"], f"the disk of {name}")


def test_luks_size_and_layout(t):
    """As qemu-img makes it."""
    tool("create", t.path("ours.luks"), f"size={SIZE},key-secret=s,{FAST}", opens="")
    qemu_create("luks", f"key-secret=s,{FAST}", t.path("theirs.luks"), SIZE)
    equal(os.path.getsize(t.path("ours.luks")), os.path.getsize(t.path("theirs.luks")), "bytes of the file")
    ours, theirs = (json.loads(qemu_img("info", "--output=json", "-f", "luks", t.path(name)).stdout)
                    for name in ("ours.luks", "theirs.luks"))
    for info in (ours, theirs):
        data = info["format-specific"]["data"]
        for key in ("uuid", "master-key-iters"):
            data.pop(key)
        for slot in data["slots"]:
            slot.pop("iters", None)
        for key in ("filename", "actual-size"):
            info.pop(key)
    equal(ours, theirs, "what qemu-img tells")
    measured = json.loads(tool("measure", f"size={SIZE}", opens="").stdout)
    equal(measured["required"], os.path.getsize(t.path("ours.luks")), "measured size")


def test_luks_zeroes(t):
    """A hole of the file is noise: the disk has no zeroes but those that were written."""
    image = t.path("disk.luks")
    tool("create", image, f"size={SIZE},key-secret=s,{FAST}", opens="")
    tool("write", image, 0, SIZE, 0)
    same_bytes(qemu_read(t, "luks", image), bytes(SIZE), "the disk as QEMU reads it")
    check(tool("map", image).stdout.count('"zero": false') == 1, "the map knows zeroes")


def test_luks_over_qcow2(t):
    """A format below that allocates: reads and writes pass through both."""
    image = t.path("disk.qcow2")
    tool("create", t.path("disk.luks"), f"size={SIZE},key-secret=s,{FAST}", opens="")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", t.path("disk.luks"), image)
    opens = f"driver=luks,key-secret=s,file.driver=qcow2,file.file.filename={image}"
    tool("load", image, 1000, t.file("piece", content(6, MIB)), opens=opens)
    out = our_read(t, "luks", image, opens=opens)
    same_bytes(out[1000:1000 + MIB], content(6, MIB), "what was written")
    qemu_img_check(image)


def test_cryptsetup(t):
    """Another program's passphrases and keys."""
    need("cryptsetup")
    image = t.path("disk.luks")
    tool("create", image, f"size={SIZE},key-secret=s,{FAST}", opens="")
    key = t.file("key", PASSPHRASE.encode())
    run("cryptsetup", "open", "--test-passphrase", "--key-file", key, "--type", "luks1", image)
    check("aes" in run("cryptsetup", "luksDump", image).stdout, "luksDump")
    other = t.file("other", b"another passphrase\0with a zero")
    run("cryptsetup", "luksAddKey", "--pbkdf-force-iterations", "1000", "--key-file", key, image, other)
    data = content(7, SIZE)
    our_write(t, "luks", image, 0, data)
    done = run(TOOL, "--format", "luks", "--secret-file", f"s={other}", "--open", "key-secret=s", "dump",
               image, t.path("disk.raw"))
    check(not SANITIZER.search(done.stderr), done.stderr)
    same_bytes(read_file(t.path("disk.raw")), data, "the disk with the other key")


# qcow2.

QCOW2_KINDS = (
    ("encrypt.format=luks,encrypt.iter-time=10", "1.1"),
    ("encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,"
     "encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256", "1.1"),
    ("encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=twofish-256", "0.10"),
    ("encrypt.format=aes", "1.1"), ("encryption=on", "0.10"),
)
CLUSTERS = (512, 4 * KIB, 64 * KIB, 2 * MIB)


def check_both(image):
    found = json.loads(qemu_img("check", "--output=json", *SECRET, "--image-opts",
                                image_opts("qcow2", image)).stdout)
    bad = {key: found[key] for key in ("corruptions", "leaks", "check-errors") if found.get(key)}
    equal(bad, {}, "what qemu-img check finds")
    equal(tool("check", image, form="qcow2", secret=None, opens="").stdout.count(
        '"corruptions": 0, "corruptions-fixed": 0, "leaks": 0,'), 1, "our check")


@cases(*((cluster, *kind, maker) for cluster in CLUSTERS for kind in QCOW2_KINDS
         for maker in ("ours", "theirs")),
       sanitized=lambda cluster, options, compat, maker:
       cluster == (512 if maker == "ours" and "aes" in options else 64 * KIB) and
       (maker == "ours" or compat == "0.10"))
def test_qcow2(t, cluster, options, compat, maker):
    image = t.path("disk.qcow2")
    options = f"{options},encrypt.key-secret=s,cluster_size={cluster},compat={compat}"
    if maker == "ours":
        tool("create", image, f"size={SIZE},{options}", form="qcow2", opens="")
    else:
        qemu_create("qcow2", options, image, SIZE)
    check_both(image)
    model = bytearray(SIZE)
    same_bytes(our_read(t, "qcow2", image), bytes(model), "a new disk")
    scribble(t, "qcow2", image, model, 8, our_write, 8)
    same_bytes(qemu_read(t, "qcow2", image), bytes(model), "the disk as QEMU reads it")
    scribble(t, "qcow2", image, model, 9, qemu_write, 4)
    scribble(t, "qcow2", image, model, 10, our_write, 4)
    same_bytes(our_read(t, "qcow2", image), bytes(model), "the disk as we read it")
    same_bytes(qemu_read(t, "qcow2", image), bytes(model), "the disk as QEMU reads it")
    check_both(image)


@cases(*QCOW2_KINDS, sanitized=lambda options, compat: compat == "0.10")
def test_nothing_is_plain(t, options, compat):
    """What was written is not to be found in the file."""
    image = t.path("disk.qcow2")
    tool("create", image, f"size={SIZE},{options},encrypt.key-secret=s,compat={compat}", form="qcow2", opens="")
    text = b"a sentence that nobody else may read, sixteen times over. " * 16
    our_write(t, "qcow2", image, 100000, text)
    check(text[:16] not in read_file(image) and text[64:80] not in read_file(image), "plain text")


@cases(*QCOW2_KINDS, sanitized=lambda options, compat: compat == "0.10")
def test_backing_file_and_snapshot(t, options, compat):
    """Copy-on-write reads one place and encrypts for another."""
    base = t.file("base.raw", content(11, SIZE))
    image = t.path("disk.qcow2")
    tool("create", image, f"{options},encrypt.key-secret=s,compat={compat},backing_file={base},"
         "backing_fmt=raw", form="qcow2", opens="")
    model = bytearray(content(11, SIZE))
    scribble(t, "qcow2", image, model, 12, our_write, 6)
    same_bytes(our_read(t, "qcow2", image), bytes(model), "the disk as we read it")
    qemu_img("snapshot", "-c", "one", *SECRET, "--image-opts", image_opts("qcow2", image))
    kept = bytes(model)
    scribble(t, "qcow2", image, model, 13, our_write, 6)
    same_bytes(qemu_read(t, "qcow2", image), bytes(model), "the disk as QEMU reads it")
    check_both(image)
    qemu_img("snapshot", "-a", "one", *SECRET, "--image-opts", image_opts("qcow2", image))
    same_bytes(our_read(t, "qcow2", image), kept, "the disk of the snapshot")
    equal(read_file(base), content(11, SIZE), "the backing file")


@cases(*((mode, kind) for mode in ("metadata", "falloc", "full") for kind in (0, 3)),
       sanitized=lambda mode, kind: mode != "falloc" and kind == 0)
def test_preallocation(t, mode, kind):
    """Storage that was never written reads as zeroes, in both programs."""
    image = t.path("disk.qcow2")
    tool("create", image, f"size={SIZE},{QCOW2_KINDS[kind][0]},encrypt.key-secret=s,preallocation={mode}",
         form="qcow2", opens="")
    check_both(image)
    same_bytes(our_read(t, "qcow2", image), bytes(SIZE), "the disk as we read it")
    same_bytes(qemu_read(t, "qcow2", image), bytes(SIZE), "the disk as QEMU reads it")
    size = os.path.getsize(image)
    model = bytearray(SIZE)
    scribble(t, "qcow2", image, model, 14, our_write, 6)
    same_bytes(qemu_read(t, "qcow2", image), bytes(model), "the disk as QEMU reads it")
    equal(os.path.getsize(image), size, "bytes of the file")
    check_both(image)


@cases(*((mode, kind) for mode in ("metadata", "falloc", "full") for kind in range(len(QCOW2_KINDS))),
       sanitized=lambda mode, kind: (mode, kind) in (("full", 0), ("metadata", 3)))
def test_preallocated_growth(t, mode, kind):
    """What is added has its storage, and reads as zeroes in both programs."""
    options, compat = QCOW2_KINDS[kind]
    image, grown = t.path("disk.qcow2"), SIZE + 2 * MIB
    tool("create", image, f"size={SIZE},{options},encrypt.key-secret=s,compat={compat}", form="qcow2",
         opens="")
    our_write(t, "qcow2", image, SIZE - 512, content(16, 512))
    tool("resize", image, "qcow2", grown, mode, form="qcow2")
    check_both(image)
    wanted = bytes(SIZE - 512) + content(16, 512) + bytes(2 * MIB)
    same_bytes(our_read(t, "qcow2", image), wanted, "the disk as we read it")
    same_bytes(qemu_read(t, "qcow2", image), wanted, "the disk as QEMU reads it")
    size, model = os.path.getsize(image), bytearray(wanted)
    our_write(t, "qcow2", image, SIZE + 1000, content(17, MIB))
    model[SIZE + 1000:SIZE + 1000 + MIB] = content(17, MIB)
    same_bytes(qemu_read(t, "qcow2", image), bytes(model), "the disk as QEMU reads it")
    equal(os.path.getsize(image), size, "bytes of the file")
    check_both(image)


@cases(0, 3)
def test_encrypted_backing_file(t, kind):
    tool("create", t.path("base.qcow2"), f"size={SIZE},{QCOW2_KINDS[kind][0]},encrypt.key-secret=s",
         form="qcow2", opens="")
    our_write(t, "qcow2", t.path("base.qcow2"), 0, content(15, SIZE))
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "base.qcow2", "-F", "qcow2", t.path("top.qcow2"), SIZE)
    refused("dump", t.path("top.qcow2"), t.path("x"), form="qcow2", opens="", says="encrypt.key-secret")
    same_bytes(our_read(t, "qcow2", t.path("top.qcow2"), opens="backing.driver=qcow2,backing.file.filename="
                        f"{t.path('base.qcow2')},backing.encrypt.key-secret=s"), content(15, SIZE), "the disk")


@cases(*CLUSTERS, sanitized=lambda cluster: cluster == 512)
def test_measure(t, cluster):
    """QEMU leaves the refcounts of the LUKS header out, which shows with small clusters."""
    image, options = t.path("disk.qcow2"), f"encrypt.format=luks,encrypt.key-secret=s,cluster_size={cluster}"
    ours = json.loads(tool("measure", f"size=10M,{options}", form="qcow2", opens="").stdout)
    if cluster >= 64 * KIB:
        theirs = json.loads(qemu_img_deriving("measure", "-O", "qcow2", *SECRET, "-o", options,
                                              "--size", "10M", "--output=json").stdout)
        equal(ours, {key: theirs[key] for key in ours}, "measure")
    tool("create", image, f"size=10M,{options},encrypt.iter-time=10,preallocation=metadata", form="qcow2",
         opens="")
    equal(os.path.getsize(image), ours["fully-allocated"], "bytes of a file with everything in it")


# Key slots.

def keys(form, image, options, *, status=0, force=False, secrets=("t=second",), **more):
    words = [word for secret in secrets for word in ("--secret", secret)]
    done = run(TOOL, *words, "--format", form, "--secret", f"s={PASSPHRASE}", "--open",
               "key-secret=s" if form == "luks" else "encrypt.key-secret=s",
               "keys-force" if force else "keys", image, options, status=status, **more)
    check(not SANITIZER.search(done.stderr), done.stderr)
    return done.stderr


def make_encrypted(t, form):
    image = t.path(f"disk.{form}")
    prefix = "" if form == "luks" else "encrypt.format=luks,encrypt."
    tool("create", image, f"size=1M,{prefix}key-secret=s,{prefix and 'encrypt.'}iter-time=10", form=form, opens="")
    our_write(t, form, image, 0, content(20, MIB))
    return image


def slots_in_use(form, image):
    data = read_file(image)
    start = Qcow2File(image).crypto()[0] if form == "qcow2" else 0
    states = [struct.unpack_from(">I", data, start + 208 + 48 * i)[0] for i in range(8)]
    return [i for i in range(8) if states[i] == 0xAC71F3]


@cases("luks", "qcow2")
def test_keys(t, form):
    image = make_encrypted(t, form)
    keys(form, image, "state=active,new-secret=t,iter-time=10")
    equal(slots_in_use(form, image), [0, 1], "slots in use")
    keys(form, image, "state=active,new-secret=t,iter-time=10,keyslot=5")
    for passphrase in (PASSPHRASE, "second"):
        same_bytes(our_read(t, form, image, secret=passphrase), content(20, MIB), f"the disk by {passphrase}")
    same_bytes(qemu_read(t, form, image), content(20, MIB), "the disk as QEMU reads it")
    keys(form, image, "state=inactive,old-secret=t")
    equal(slots_in_use(form, image), [0], "slots in use")
    refused("dump", image, t.path("x"), form=form, secret="second", says="none of its key slots")
    same_bytes(our_read(t, form, image), content(20, MIB), "the disk")
    if form == "qcow2":
        check_both(image)


@cases("luks", "qcow2")
def test_keys_with_qemu(t, form):
    """What QEMU adds we open, and erase; and the other way round."""
    image = make_encrypted(t, form)
    prefix = "" if form == "luks" else "encrypt."
    other = ("--object", "secret,id=t,data=second")

    def amend(options):
        words = ",".join(prefix + word for word in options.split(","))
        qemu_img_deriving("amend", *SECRET, *other, "--image-opts", image_opts(form, image), "-o", words)
    amend("state=active,new-secret=t,keyslot=3,iter-time=10")
    same_bytes(our_read(t, form, image, secret="second"), content(20, MIB), "the disk by QEMU's key")
    keys(form, image, "state=inactive,keyslot=3")
    equal(slots_in_use(form, image), [0], "slots in use")
    keys(form, image, "state=active,new-secret=t,iter-time=10,keyslot=7")
    amend("state=inactive,old-secret=t")
    equal(slots_in_use(form, image), [0], "slots in use")
    same_bytes(qemu_read(t, form, image), content(20, MIB), "the disk as QEMU reads it")


@cases(("keyslot=1", "state"), ("state=active", "new-secret"), ("state=inactive", "keyslot"),
       ("state=active,new-secret=x", "'x', which is not there"), ("state=active,new-secret=t,keyslot=8", "0 to 7"),
       ("state=active,new-secret=t,keyslot=0", "in use"), ("state=inactive,keyslot=0", "lost for ever"),
       ("state=inactive,keyslot=4", "slot 4 is not in use"), ("state=inactive,old-secret=t", "no key slot opens"),
       ("state=inactive,old-secret=s", "lost for ever"), ("state=inactive,new-secret=t", "state=active only"),
       ("state=active,new-secret=t,old-secret=s", "state=inactive only"), ("state=odd", "state"),
       ("state=active,new-secret=t,iter-time=0", "iter-time"), ("state=active,new-secret=t,nonsense=1", "nonsense"))
def test_keys_refused(t, options, says):
    image = make_encrypted(t, "luks")
    before = digest(image)
    check(re.search(says, keys("luks", image, options, status=1)), says)
    equal(digest(image), before, "hash of the image")


def test_keys_force_and_full(t):
    image = make_encrypted(t, "luks")
    for _ in range(7):
        keys("luks", image, "state=active,new-secret=t,iter-time=1")
    check("none of the 8" in keys("luks", image, "state=active,new-secret=t", status=1), "a ninth slot")
    keys("luks", image, "state=active,new-secret=u,iter-time=1,keyslot=2", force=True, secrets=("u=third",))
    same_bytes(our_read(t, "luks", image, secret="third"), content(20, MIB), "the disk by the key that was replaced")
    keys("luks", image, "state=inactive,old-secret=t")
    equal(slots_in_use("luks", image), [0, 2], "slots in use")
    keys("luks", image, "state=inactive,keyslot=2")
    keys("luks", image, "state=inactive,keyslot=0", force=True)
    refused("dump", image, t.path("x"), says="no key slot in use")


def test_keys_need_luks(t):
    image = t.path("disk.qcow2")
    tool("create", image, "size=1M,encrypt.format=aes,encrypt.key-secret=s", form="qcow2", opens="")
    check("not encrypted with LUKS" in keys("qcow2", image, "state=active,new-secret=t", status=1), "AES")


# What is refused.

def test_secrets(t):
    image = t.path("disk.qcow2")
    tool("create", image, f"size={SIZE},{QCOW2_KINDS[0][0]},encrypt.key-secret=s", form="qcow2", opens="")
    before = digest(image)
    for options, says in ((dict(opens=""), "encrypt.key-secret"), (dict(secret=None), "'s', which is not there"),
                          (dict(secret="wrong"), "none of its key slots opens"),
                          (dict(secret=""), "none of its key slots opens"),
                          (dict(opens="encrypt.key-secret=s,encrypt.format=aes"), "encrypted with luks"),
                          (dict(opens="key-secret=s"), "key-secret")):
        refused("dump", image, t.path("x"), form="qcow2", says=says, **options)
        refused("write", image, 0, 512, 1, form="qcow2", says=says, **options)
    equal(digest(image), before, "hash of the image")
    plain = t.path("plain.qcow2")
    tool("create", plain, "size=1M", form="qcow2", opens="", secret=None)
    refused("dump", plain, t.path("x"), form="qcow2", says="not encrypted")
    # Metadata needs no key.
    equal(tool("map", image, form="qcow2", opens="", secret=None).stdout.count("\n"), 1, "extents")


REFUSED_CREATES = (
    ("luks", "size=1M", "key-secret"), ("luks", "size=1M,key-secret=x", "'x', which is not there"),
    ("luks", "key-secret=s", "needs a size"), ("luks", "size=1M,key-secret=s,cipher-alg=rot13", "cipher-alg"),
    ("luks", "size=1M,key-secret=s,cipher-mode=ecb", "ecb"),
    ("luks", "size=1M,key-secret=s,cipher-alg=cast5-128", "xts needs"),
    ("luks", "size=1M,key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha512", "essiv"),
    ("luks", "size=1M,key-secret=s,ivgen-hash-alg=sha1", "not essiv"),
    ("luks", "size=1M,key-secret=s,hash-alg=md5", "hash-alg"),
    ("luks", "size=1M,key-secret=s,iter-time=0", "iter-time"),
    ("luks", "size=1M,key-secret=s,iter-time=99999999", "iter-time"),
    ("luks", "size=9223372036854775807,key-secret=s", "no file"),
    ("luks", "size=1M,key-secret=s,preallocation=metadata", "metadata"),
    ("qcow2", "size=1M,encryption=on", "encrypt.key-secret"),
    ("qcow2", "size=1M,encrypt.key-secret=s", "encrypt.format"),
    ("qcow2", "size=1M,encrypt.format=luks", "encrypt.key-secret"),
    ("qcow2", "size=1M,encrypt.format=rot13,encrypt.key-secret=s", "encrypt.format"),
    ("qcow2", "size=1M,encryption=on,encrypt.format=aes,encrypt.key-secret=s", "both"),
    ("qcow2", "size=1M,encrypt.format=aes,encrypt.cipher-alg=aes-256,encrypt.key-secret=s", "luks only"),
    ("qcow2", "size=1M,encrypt.format=luks,encrypt.cipher-mode=ecb,encrypt.key-secret=s", "ecb"),
    ("qcow2", "size=1M,encrypt.format=aes,encrypt.key-secret=s,compat=0.10,preallocation=full", "1.1"),
)


@cases(*REFUSED_CREATES)
def test_refused_create(t, form, options, says):
    image = t.file("disk", b"what was there before")
    refused("create", image, options, form=form, opens="", says=says)
    equal(read_file(image), b"what was there before", "the file")


def luks_field(at, value, size=4):
    return at, value.to_bytes(size, "big") if isinstance(value, int) else value


def slot_field(slot, field, value):
    return luks_field(208 + 48 * slot + {"state": 0, "iterations": 4, "sector": 40, "stripes": 44}[field], value)


HOSTILE_LUKS = (
    ("version-0", [luks_field(6, 0, 2)], "version is 0"), ("version-3", [luks_field(6, 3, 2)], "version is 3"),
    ("cipher-without-end", [luks_field(8, b"A" * 32)], "cipher of the LUKS header has no end"),
    ("mode-without-end", [luks_field(40, b"x" * 32)], "mode of the LUKS header has no end"),
    ("hash-without-end", [luks_field(72, b"x" * 32)], "hash of the LUKS header has no end"),
    ("cipher-unknown", [luks_field(8, b"ro\x1bt13\0")], r"cipher 'ro\\x1bt13' .* not supported"),
    ("mode-unknown", [luks_field(40, b"lrw-plain64\0")], "'lrw-plain64'"),
    ("mode-iv-unknown", [luks_field(40, b"xts-benbi\0")], "'xts-benbi'"),
    ("mode-essiv-no-hash", [luks_field(40, b"cbc-essiv\0")], "'cbc-essiv'"),
    ("mode-essiv-odd-hash", [luks_field(40, b"cbc-essiv:sha1\0")], "not supported"),
    ("mode-no-iv", [luks_field(40, b"xts\0" + bytes(9))], "initialization vectors"),
    ("hash-unknown", [luks_field(72, b"whirlpool\0")], "'whirlpool'"),
    ("key-bytes-0", [luks_field(108, 0)], "has 0 bytes"), ("key-bytes-huge", [luks_field(108, 1 << 31)], "2147483648 bytes"),
    ("key-bytes-63", [luks_field(108, 63)], "key of 63 bytes"), ("key-bytes-32bit", [luks_field(108, 0xFFFFFFFF)], "4294967295 bytes"),
    ("digest-iterations-0", [luks_field(164, 0)], "no iterations"),
    ("digest-iterations-huge", [luks_field(164, 0xFFFFFFFF)], "longer than 120 seconds"),
    ("slot-state", [slot_field(0, "state", 7)], "neither active nor free"),
    ("slot-iterations-0", [slot_field(0, "iterations", 0)], "no iterations"),
    ("slot-iterations-huge", [slot_field(0, "iterations", 0xFFFFFFFF)], "longer than 120 seconds"),
    ("slot-stripes-0", [slot_field(0, "stripes", 0)], "stripes"),
    ("slot-stripes-huge", [slot_field(0, "stripes", 0xFFFFFFFF)], "stripes"),
    ("slot-stripes-many", [slot_field(0, "stripes", 40000)], "stripes"),
    ("slot-sector-0", [slot_field(0, "sector", 0)], "within the LUKS header"),
    ("slot-sector-1", [slot_field(0, "sector", 1)], "within the LUKS header"),
    ("slot-sector-huge", [slot_field(0, "sector", 0xFFFFFFFF)], "into the payload|end of"),
    ("slot-in-payload", [slot_field(0, "sector", 4000)], "into the payload"),
    ("slots-overlap", [slot_field(1, "state", 0xAC71F3), slot_field(1, "iterations", 1000),
                       slot_field(1, "sector", 9)], "overlaps"),
    ("no-slot-in-use", [slot_field(0, "state", 0xDEAD)], "no key slot in use"),
    ("damaged-salt", [luks_field(216, b"x" * 32)], "none of its key slots"),
    ("damaged-material", [luks_field(8 * 512 + 70000, b"x")], "none of its key slots"),
    ("damaged-digest", [luks_field(112, b"x" * 20)], "none of its key slots"),
    ("damaged-digest-salt", [luks_field(132, b"x" * 32)], "none of its key slots"),
)
HOSTILE_RAW_LUKS = (
    ("detached", [luks_field(104, 0)], "detached"),
    ("payload-huge", [luks_field(104, 0xFFFFFFFF)], "payload|end of"),
    ("payload-beyond", [luks_field(104, 20000)], "beyond the end of the file"),
)


def damage(t, image, start, changes):
    data = bytearray(read_file(image))
    for at, value in changes:
        data[start + at:start + at + len(value)] = value
    return write_file(t.path("bad"), data)


@cases(*((name,) for name, *_ in HOSTILE_LUKS + HOSTILE_RAW_LUKS))
def test_hostile_luks(t, name):
    _, changes, says = next(row for row in HOSTILE_LUKS + HOSTILE_RAW_LUKS if row[0] == name)
    image = t.path("disk.luks")
    tool("create", image, f"size=1M,key-secret=s,{FAST}", opens="")
    bad = damage(t, image, 0, changes)
    before = digest(bad)
    refused("dump", bad, t.path("x"), says=says)
    refused("write", bad, 0, 512, 1, says=says)
    equal(digest(bad), before, "hash of the image after it was refused")


@cases(*((name,) for name, *_ in HOSTILE_LUKS),  # the parser is that of LUKS over raw
       sanitized=lambda name: name.startswith(("slots", "slot-sector", "damaged")))
def test_hostile_luks_in_qcow2(t, name):
    _, changes, says = next(row for row in HOSTILE_LUKS if row[0] == name)
    image = t.path("disk.qcow2")
    tool("create", image, f"size=1M,{QCOW2_KINDS[0][0]},encrypt.key-secret=s", form="qcow2", opens="")
    bad = damage(t, image, Qcow2File(image).crypto()[0], changes)
    before = digest(bad)
    refused("dump", bad, t.path("x"), form="qcow2", says=says)
    refused("write", bad, 0, 512, 1, form="qcow2", says=says)
    equal(digest(bad), before, "hash of the image after it was refused")


@cases(("truncated", 300, "592"), ("truncated-material", 100000, "end of"), ("no-payload", 2068480, ""))
def test_truncated_luks(t, name, size, says):
    image = t.path("disk.luks")
    tool("create", image, f"size=1M,key-secret=s,{FAST}", opens="")
    os.truncate(image, size)
    if says:
        refused("dump", image, t.path("x"), says=says)
    else:
        equal(our_read(t, "luks", image), b"", "the disk")


HOSTILE_CRYPTO = (
    ("offset-0", 8, 0, "offset is 0"), ("offset-unaligned", 8, 513, "multiple of the cluster"),
    ("offset-beyond", 8, 1 << 40, "beyond the end"), ("offset-huge", 8, 1 << 63, "2\\^56"),
    ("length-0", 16, 0, "length is 0"), ("length-591", 16, 591, "length is 591"),
    ("length-huge", 16, 1 << 63, "16 MiB"), ("length-beyond", 16, 15 << 20, "beyond the end"),
    ("length-short", 16, 592, "end of the 592 bytes"),
)


@cases(*HOSTILE_CRYPTO)
def test_hostile_crypto_extension(t, name, at, value, says):
    image = t.path("disk.qcow2")
    tool("create", image, f"size=1M,{QCOW2_KINDS[0][0]},encrypt.key-secret=s", form="qcow2", opens="")
    file = Qcow2File(image)
    file.set_u64(file.extension(EXT_CRYPTO) + at, value)
    refused("dump", file.save(t.path("bad.qcow2")), t.path("x"), form="qcow2", says=says)


@cases("header", "l1", "reftable", "l2", "refblock")
def test_luks_header_in_metadata(t, where):
    """A LUKS header where tables are: opened for reading at most, and nothing is overwritten."""
    image = t.path("disk.qcow2")
    tool("create", image, f"size=1M,{QCOW2_KINDS[0][0]},encrypt.key-secret=s", form="qcow2", opens="")
    our_write(t, "qcow2", image, 0, content(1, MIB))
    file = Qcow2File(image)
    header = bytes(file.data[file.crypto()[0]:][:file.crypto()[1]])
    target = {"header": 0, "l1": file.get("l1_offset"), "reftable": file.get("reftable_offset"),
              "l2": file.u64(file.l1_entry_at(0)) & OFFSET_MASK, "refblock": file.u64(file.reftable_at())}[where]
    file.set_u64(file.extension(EXT_CRYPTO) + 8, target)
    bad = file.save(t.path("bad.qcow2"))
    before = digest(bad)
    refused("write", bad, 0, 512, 1, form="qcow2", says="overlaps|LUKS header")
    equal(digest(bad), before, "hash of the image after it was refused")
    equal(len(header), file.crypto()[1], "bytes of the header")
    # Where it would begin at 0, or end behind the file, the image is refused by its header alone.
    done = tool("check", bad, form="qcow2", opens="", status=1 if where in ("header", "l2") else 2)
    check("overlap" in done.stderr or "LUKS header" in done.stderr, done.stderr)


def test_data_in_luks_header(t):
    """An L2 entry that points into the LUKS header: the write is refused, the key survives."""
    image = t.path("disk.qcow2")
    tool("create", image, f"size=1M,{QCOW2_KINDS[0][0]},encrypt.key-secret=s", form="qcow2", opens="")
    our_write(t, "qcow2", image, 0, content(1, MIB))
    file = Qcow2File(image)
    start, length = file.crypto()
    header = bytes(file.data[start:start + length])
    file.set_u64(file.l2_entry_at(0), start | COPIED)
    bad = file.save(t.path("bad.qcow2"))
    tool("write", bad, 0, 512, 1, form="qcow2", status=1)
    equal(read_file(bad)[start:start + length], header, "the LUKS header")
    check("corrupt" in qemu_img("info", "-f", "qcow2", bad).stdout, "the image is not marked")


def test_repair(t):
    """Refcounts of the LUKS header are repaired without its key."""
    image = t.path("disk.qcow2")
    tool("create", image, f"size=1M,{QCOW2_KINDS[0][0]},encrypt.key-secret=s", form="qcow2", opens="")
    our_write(t, "qcow2", image, 0, content(1, MIB))
    file = Qcow2File(image)
    struct.pack_into(">H", file.data, file.u64(file.reftable_at()) + 2 * (file.crypto()[0] >> 16), 0)
    file.save(image)
    tool("repair", image, "all", form="qcow2", opens="", secret=None)
    check_both(image)
    same_bytes(our_read(t, "qcow2", image), content(1, MIB), "the disk")


if __name__ == "__main__":
    main()
