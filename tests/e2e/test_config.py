#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The configuration file: many exports and listeners, and what is said of mistakes in it."""
import json
import os
import re
import socket

from evnbd_test import (EVNBD, MIB, SOURCE_ROOT, cases, check, content, equal, free_port, main, read_file,
                        refused_command, run, same_bytes)
from nbd_raw import Closed, RawClient
from tls_pki import need_tls

# name: (file, what is said after its name)
WRONG = {
    "unknown-section": ("[disk a]", r":1: \[disk a\] is no section; there are: \[server\]"),
    "before-a-section": ("format = raw", ":1: 'format' stands before the first section"),
    "no-label": ("[export]\nimage = x", r":1: \[export\] needs a label"),
    "open-title": ("[export a\nimage = x", r":1: a section begins with a title in \[ and \]"),
    "form-feed": ("[export a]\nimage = x\n\f[export a]\nimage = y", r":3: there is a section \[export a\] already"),
    "byte-order-mark": ("\ufeff[export a]\nimage = x\nnothing", ":3: a line NAME = VALUE is needed"),
    "long-title": (f"[export {'a' * 60}]\nimage = x", ":1: the title of the section is too long: at most 48"),
    "twice": ("[export a]\nimage = x\n[export a]\nimage = y", r":3: there is a section \[export a\] already"),
    "same-name": ("[export a]\nimage = x\n[export b]\nimage = y\nexport-name = a",
                  ":3: the export 'a' is there already, from .*:1"),
    "no-image": ("\n[export a]\nformat = raw", r":2: \[export a\] needs image="),
    "no-export": ("[server]\nidle-timeout = 3", r"has no section \[export LABEL\]"),
    "empty": ("", r"has no section \[export LABEL\]"),
    "no-setting": ("[export a]\n# a comment\njust words", ":3: a line NAME = VALUE is needed"),
    "unknown": ("[export a]\nimage = x\nformatt = raw", ":3: 'formatt' is unknown here; there are: .*, format,"),
    "of-another-section": ("[export a]\nimage = x\nport = 1", ":3: 'port' is unknown here"),
    "of-the-command-line": ("[server]\nfork = yes", ":2: 'fork' is unknown here"),
    "twice-in-a-section": ("[export a]\nimage = x\nimage = y", ":3: 'image' was set before"),
    "flag": ("[export a]\nimage = x\nread-only = true", ":3: 'read-only' is 'true': use yes or no"),
    "number": ("[export a]\nimage = x\noffset = 2M", ":3: Invalid offset '2M'"),
    "word": ("[export a]\nimage = x\ncache = fast", ":3: Invalid cache mode `fast': use none"),
    "protocol": ("[export a]\nimage = http://x", ":1: .*'http' is not supported"),
    "help": ("[server]\nobject = help", ":2: 'object' cannot be 'help' in a file"),
    "relative-socket": ("[listen a]\nsocket = x\n[export a]\nimage = x", ":1: socket path must be absolute"),
    "two-places": ("[listen a]\nsocket = /x\nport = 1\n[export a]\nimage = x",
                   ":1: a listener has either a socket or a port"),
    "tls-without-credentials": ("[export a]\nimage = x\ntls = require",
                                r":1: TLS is wanted of clients, but \[server\] has no credentials"),
    "contradiction": ("[export a]\nimage = x\nimage-opts = yes\nformat = raw",
                      ":1: --image-opts and -f are mutually exclusive"),
    "long-line": ("[export a]\nimage = " + "x" * 5000, ":2: the line has 5008 bytes; at most 4096"),
    "zero-byte": ("[export a]\nimage = x\0y", ": there is a 0 byte in the file"),
    "long-file": ("#" * 2 * MIB, "has more than 1048576 bytes"),
}


def write(t, text, name="evnbd.conf"):
    return t.file(name, text.encode())


def disks(t, *names):
    """Images of different content, by name."""
    return {name: (t.file(name, content(number + 1, MIB)), content(number + 1, MIB))
            for number, name in enumerate(names)}


def sections(images):
    return "".join(f"[export {name}]\nimage = {path}\nformat = raw\n" for name, (path, _) in images.items())


def read_at(address, name, wanted):
    with RawClient(address) as client:
        same_bytes(client.connect(name.encode()).read(4096, 4096), wanted[4096:8192], name)


def serve(t, config, **keywords):
    """The server's options for where it listens stand in the file."""
    return t.serve(None, "-v", f"--config={config}", persistent=False, configured=True, **keywords)


def test_exports_and_listeners(t):
    images, port = disks(t, "one", "two", "three"), free_port()
    server = serve(t, write(t, f"# ours\n[listen a]\nsocket = {t.path('a')}\n[listen b]\nsocket={t.path('b')}\n"
                               f"[listen c]\nbind = 127.0.0.1\nport = {port}\n{sections(images)}"))
    for address in t.path("a"), t.path("b"), ("127.0.0.1", port):
        for name, (_, data) in images.items():
            read_at(address, name, data)
    listed = json.loads(run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={t.path('a')}").stdout)
    equal([export["export-name"] for export in listed["exports"]], list(images), "exports")
    server.stop()
    check(not os.path.exists(t.path("a")) and not os.path.exists(t.path("b")), "the sockets are gone")


def test_settings_of_an_export(t):
    images = disks(t, "disk")
    serve(t, write(t, f"[listen a]\nsocket = {t.path('a')}\n[export x]\nimage = {images['disk'][0]}\nformat = raw\n"
                      "export-name =\ndescription = some text\nread-only = yes\noffset = 4096\n"))
    [export] = json.loads(run("nbdinfo", "--json", f"nbd+unix:///?socket={t.path('a')}").stdout)["exports"]
    equal((export["description"], export["is_read_only"], export["export-size"]), ("some text", True, MIB - 4096),
          "what clients see")


@cases(("", True), ("shared = 1", False), ("address-limit = 1", False))
def test_several_connections_are_promised_where_they_may_come(t, setting, wanted):
    serve(t, write(t, f"[server]\n{setting}\n[listen a]\nsocket = {t.path('a')}\n{sections(disks(t, 'one'))}"))
    [export] = json.loads(run("nbdinfo", "--json", f"nbd+unix:///one?socket={t.path('a')}").stdout)["exports"]
    equal(export["can_multi_conn"], wanted, "can_multi_conn")


def test_conf_d(t):
    images = disks(t, "one", "two")
    os.mkdir(t.path("conf.d"))
    write(t, sections({"two": images["two"]}), "conf.d/b.conf")
    write(t, sections({"one": images["one"]}), "conf.d/a.conf")
    write(t, "[nonsense]", "conf.d/README")
    serve(t, write(t, f"[listen a]\nsocket = {t.path('a')}\n"))
    listed = run("nbdinfo", "--list", f"nbd+unix:///?socket={t.path('a')}").stdout
    equal(re.findall('export="(.*)"', listed), ["one", "two"], "exports")


def test_conf_d_beside_any_name(t):
    """No byte of the folder's name is a pattern."""
    folder = t.path("a[b]*?")
    os.makedirs(os.path.join(folder, "conf.d"))
    write(t, "[nonsense]", os.path.join(folder, "conf.d", "a.conf"))
    config = write(t, sections(disks(t, "one")), os.path.join(folder, "evnbd.conf"))
    refused_command([EVNBD, f"--check-config={config}"], [re.escape(f"{folder}/conf.d/a.conf:1: [nonsense]")])


def test_conf_d_that_cannot_be_read(t):
    config = write(t, sections(disks(t, "one")))
    write(t, "no folder", "conf.d")
    refused_command([EVNBD, f"--check-config={config}"], [f"'{t.path('conf.d')}': Not a directory"])


def test_clients_of_an_export_are_limited(t):
    images = disks(t, "one", "two")
    serve(t, write(t, f"[listen a]\nsocket = {t.path('a')}\n" + sections(images).replace("[export two]",
                                                                                     "shared = 1\n[export two]")))
    with RawClient(t.path("a")) as first:
        first.connect(b"one")
        try:
            read_at(t.path("a"), "one", images["one"][1])
        except Closed:
            pass
        except AssertionError as refusal:
            check("one" in str(refusal) or "client" in str(refusal), refusal)
        else:
            raise AssertionError("a second client of an export for one")
        read_at(t.path("a"), "two", images["two"][1])


def test_tls_of_one_export(t):
    need_tls(t)
    images, keys = disks(t, "public", "private"), t.file("keys", b"alice:" + b"42" * 16 + b"\n")
    os.chmod(keys, 0o600)
    serve(t, write(t, f"[server]\ntls = on\ntls-psk = {keys}\n[listen a]\nsocket = {t.path('a')}\n{sections(images)}"
                      "tls = require\n"))
    for scheme, names in ("nbd+unix", ["public"]), ("nbds+unix", ["public", "private"]):
        user = f"alice@/?tls-psk-file={keys}&" if scheme == "nbds+unix" else "/?"
        listed = run("nbdinfo", "--list", f"{scheme}://{user}socket={t.path('a')}").stdout
        equal(re.findall('export="(.*)"', listed), names, f"exports at {scheme}")


def test_passed_sockets_take_the_place_of_listeners(t):
    images = disks(t, "one")
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(t.path("passed"))
        passed.listen()
        serve(t, write(t, f"[listen a]\nsocket = {t.path('a')}\n{sections(images)}"), passed=[passed])
        read_at(t.path("passed"), "one", images["one"][1])
        check(not os.path.exists(t.path("a")), "the listener of the file is not there")


def test_a_bad_image_is_told_with_its_section(t):
    images = disks(t, "one")
    config = write(t, f"[listen a]\nsocket = {t.path('a')}\n{sections(images)}[export two]\nimage = {t.path('none')}\n")
    refused_command([EVNBD, f"--config={config}"], [rf"{config}:6: Failed to open '{t.path('none')}'.*No such file"])
    check(not os.path.exists(t.path("a")), "no socket is left")


@cases(*WRONG)
def test_wrong(t, name):
    text, says = WRONG[name]
    config = write(t, text)
    for option in "--check-config", "--config":
        refused_command([EVNBD, f"{option}={config}"], [re.escape(config), says])


def test_missing(t):
    refused_command([EVNBD, f"--config={t.path('none')}"], [f"'{t.path('none')}': No such file"])


@cases("--port=1", "--bind=::1", "--socket=/x", "--shared=2", "--read-only", "--format=raw", "--snapshot", "--list",
       "--partition=1", "--tls-psk=x", "--object=secret,id=a,data=b", "--allow=uid=0", "--image-opts",
       "--tls=require", "--selinux-label=x", "--handshake-limit=3", "--tls-check")
def test_options_that_belong_into_the_file(t, option):
    config = write(t, sections(disks(t, "one")))
    refused_command([EVNBD, f"--config={config}", option], ["cannot be used with --config"])


def test_check_config_serves_nothing(t):
    config = write(t, f"[listen a]\nsocket = {t.path('a')}\n[export a]\nimage = {t.path('none')}\n")
    done = run(EVNBD, f"--check-config={config}")
    equal((done.stdout, done.stderr), ("", ""), "output")


def test_the_examples_of_the_manual(t):
    manual = read_file(os.path.join(SOURCE_ROOT, "docs", "evnbd.conf.5")).decode()
    examples = re.findall(r"\.Bd -literal -offset indent\n(.*?)\.Ed", manual, re.S)
    equal(len(examples), 2, "examples")
    for example in examples:
        run(EVNBD, f"--check-config={write(t, example)}")


if __name__ == "__main__":
    main()
