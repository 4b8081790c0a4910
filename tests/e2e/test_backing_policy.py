#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""--backing-policy: which files an image may name as its backing file or data file."""
import os

from evnbd_test import KIB, MIB, cases, check, content, equal, main, qemu_img, refused, same_bytes


def overlay(t, path, backing, backing_format="raw"):
    """An image of 1 MiB over whatever the name says."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", backing_format, t.path(path), "1M")
    return t.path(path)


def make(t):
    """
    images/ with base.raw, sub/base.raw, and links: `in` to base.raw, `out` to ../outside/base.raw,
    `away` to ../outside, `absolute` to base.raw by its whole path.
    """
    for name in ("images/sub", "outside"):
        os.makedirs(t.path(name))
    for number, name in enumerate(("images/base.raw", "images/sub/base.raw", "outside/base.raw")):
        t.file(name, content(number, MIB))
    os.symlink("base.raw", t.path("images/in"))
    os.symlink("../outside/base.raw", t.path("images/out"))
    os.symlink("../outside", t.path("images/away"))
    os.symlink(t.path("images/base.raw"), t.path("images/absolute"))


# Name of the backing file ({t}: the test's directory): the file that it is, and the policies that
# follow it, besides "any".
BASE, SUB, OUTSIDE = 0, 1, 2
NAMES = {
    "beside": ("base.raw", BASE, ("beneath", "listed", "default")),
    "below": ("sub/base.raw", SUB, ("beneath", "listed", "default")),
    "back": ("sub/../base.raw", BASE, ("beneath", "listed", "default")),
    "there-and-back": ("../images/base.raw", BASE, ("beneath", "listed", "default")),
    "link-inside": ("in", BASE, ("beneath", "listed", "default")),
    "absolute-link-inside": ("absolute", BASE, ("beneath", "listed", "default")),
    "absolute": ("{t}/images/base.raw", BASE, ("beneath", "listed", "default")),
    "up": ("../outside/base.raw", OUTSIDE, ("file", "default")),
    "absolute-outside": ("{t}/outside/base.raw", OUTSIDE, ("file", "default")),
    "link-outside": ("out", OUTSIDE, ("file", "default")),
    "link-of-directory": ("away/base.raw", OUTSIDE, ("file", "default")),
    "options": ('json:{{"driver":"file","filename":"{t}/outside/base.raw"}}', OUTSIDE, ()),
    "image-options": ('json:{{"driver":"raw","file":{{"driver":"file","filename":"{t}/outside/base.raw"}}}}',
                      OUTSIDE, ()),
    "protocol": ("file:base.raw", BASE, ()),
}
POLICIES = {
    "any": ["--backing-policy=any"],
    "beneath": ["--backing-policy=beneath"],
    "none": ["--backing-policy=none"],
    "listed": ["--backing-policy=list=/nonexistent:{t}/images"],
    "file": ["--backing-policy=list={t}/outside/base.raw"],
    "default": [],
}


@cases(*NAMES)
def test_which_names_are_followed(t, name):
    make(t)
    backing, number, followed = NAMES[name]
    image = overlay(t, "images/disk.qcow2", backing.format(t=t.dir))
    for policy, options in POLICIES.items():
        options = [option.format(t=t.dir) for option in options]
        if policy in followed or policy == "any":
            with t.serve(image, "-f", "qcow2", *options).client() as client:
                same_bytes(client.read(0, 64 * KIB), content(number, MIB)[:64 * KIB], f"{name}, {policy}")
            t.stop_servers()
        else:
            says = "backing policy forbids|only plain paths are followed"
            refused(t, image, "-f", "qcow2", *options, says=["backing file", says])


def test_the_root_may_be_listed(t):
    make(t)
    image = overlay(t, "images/disk.qcow2", "out")
    t.serve(image, "-f", "qcow2", "--backing-policy=list=/")


def test_each_image_of_a_chain_has_its_own_directory(t):
    make(t)
    overlay(t, "images/sub/middle.qcow2", "../base.raw")
    image = overlay(t, "images/top.qcow2", "sub/middle.qcow2", "qcow2")
    refused(t, image, "-f", "qcow2", "--backing-policy=beneath",
            says=["middle.qcow2' names '.*base.raw' as its backing file, which is not in the directory"])
    overlay(t, "images/sub/middle.qcow2", "base.raw")
    with t.serve(image, "-f", "qcow2", "--backing-policy=beneath").client() as client:
        same_bytes(client.read(0, KIB), content(SUB, MIB)[:KIB], "the chain")


def test_data_files(t):
    make(t)
    outside, inside = t.path("images/outside.qcow2"), t.path("images/inside.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={t.path('outside/data')}", outside, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={t.path('images/data')}", inside, "1M")
    refused(t, outside, "-f", "qcow2", "--backing-policy=beneath", says=["as its data file.*not in the directory"])
    refused(t, inside, "-f", "qcow2", "--backing-policy=none", says=["as its data file.*policy forbids"])
    with t.serve(inside, "-f", "qcow2", "--backing-policy=beneath").client() as client:
        client.write(0, b"data")
        equal(client.read(0, 4), b"data", "what was written")


def test_what_the_user_names_is_opened(t):
    """The policy is about images, not about the command line."""
    make(t)
    image = overlay(t, "images/disk.qcow2", "base.raw")
    tree = (f"driver=qcow2,file.filename={image},backing.driver=raw,"
            f"backing.file.filename={t.path('outside/base.raw')}")
    with t.serve(tree, "--image-opts", "--backing-policy=none").client() as client:
        same_bytes(client.read(0, KIB), content(OUTSIDE, MIB)[:KIB], "the disk")
    t.serve(t.path("outside/base.raw"), "-f", "raw", "--backing-policy=none")


def test_the_image_by_a_relative_path(t):
    make(t)
    overlay(t, "images/disk.qcow2", "base.raw")
    overlay(t, "images/bad.qcow2", "../outside/base.raw")
    with t.serve("disk.qcow2", "-f", "qcow2", "--backing-policy=beneath", cwd=t.path("images")).client() as client:
        same_bytes(client.read(0, KIB), content(BASE, MIB)[:KIB], "the disk")
    refused(t, "bad.qcow2", "-f", "qcow2", "--backing-policy=beneath", cwd=t.path("images"),
            says=["policy forbids"])


def test_files_with_a_directory_of_their_own(t):
    """The option of files that the policy uses."""
    make(t)
    options = f"driver=raw,file.driver=file,file.beneath={t.path('images')},file.filename="
    t.serve(options + t.path("images/sub/base.raw"), "--image-opts", "-r")
    for name in ("images/../outside/base.raw", "images/out", "images/in", "outside/base.raw"):
        refused(t, options + t.path(name), "--image-opts", "-r", says=["from within '.*images'"])


@cases("", "all", "list=", "list=relative", "list=/a:", "list=/a::/b", "none,any")
def test_bad_policies(t, policy):
    says = "any, beneath, none or list=" if not policy.startswith("list=") else "must be absolute paths"
    message = refused(t, t.path("disk"), f"--backing-policy={policy}", says=[says])
    check(f"Invalid backing policy '{policy}'" in message, message)


def test_a_missing_file_is_named(t):
    make(t)
    image = overlay(t, "images/disk.qcow2", "gone.raw")
    refused(t, image, "-f", "qcow2", "--backing-policy=beneath", says=["cannot find '.*gone.raw'.*No such file"])


if __name__ == "__main__":
    main()
