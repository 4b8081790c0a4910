#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
Every example of README.md and of the manual pages is run as it is written, in a directory with the images
that they name and with a network of its own.  A server in the foreground is started, asked for its exports,
and stopped; one in the background is stopped at the end.  What cannot be run stands in NOT_RUN.
"""
import glob
import os
import re
import signal
import subprocess
import sys

from evnbd_test import (EVNBD, HANG, MIB, SOURCE_ROOT, cases, check, content, ended, equal, main,
                        need, qemu_img, read_file, run, skip, wait_for)

# How an example begins: why it is not run.
NOT_RUN = {
    "./quickstart ": "installs packages and builds; test_quickstart.py runs it",
    "meson setup build-release": "builds and installs",
    "./run-tests ": "runs this test",
    "exports available: 1": "output; test_list.py compares it",
    "--object '{": "an option without its command; test_key_secret.py has it",
    '{"policy": "deny"': "contents of a file; test_access.py has one",
    "evnbd --list --bind=server.example.com": "asks another machine",
    "evnbd --list 'nbds://alice@server.example.com": "asks another machine",
    "evnbd -f raw nbd://storage.example.com": "asks another machine",
    "evnbd --image-opts driver=qcow2,file.filename=changes.qcow2": "asks another machine",
    "[listen local]": "a file; test_config.py checks it",
    "[server]": "a file; test_config.py checks it",
    "name = value": "a pattern",
    "systemd-socket-activate ": "waits for a client; test_process.py passes sockets",
}

# What is another place here: text of examples, and what is run instead of it.
PLACES = {"/tmp/disk.sock": "{dir}/disk.sock", "/run/disk.sock": "{dir}/disk.sock", "/etc/evnbd/": "{dir}/",
          "data=$data ...": "data=$data -f raw disk.img"}

# Stands for evnbd in the examples; the last argument of what it is made from is the real one.
WRAPPER = """#!/usr/bin/env bash
set -eu
real='{evnbd}' where=()
pid_file=$(mktemp -u '{dir}/XXXXXX.pid')
for word; do
    case $word in
    --list | list) exec "$real" "$@" ;;
    --fork) exec "$real" "--pid-file=$pid_file" "$@" ;;
    esac
done
for ((i = 1; i < $#; i++)); do
    next=$((i + 1))
    case ${{!i}} in -[kbp]) where+=("${{!i}}" "${{!next}}") ;; esac
done
"$real" "--pid-file=$pid_file" "$@" &
while [ ! -s "$pid_file" ]; do
    kill -0 $! || exit 1
    sleep 0.02
done
"$real" --list "${{where[@]}}" | grep -q '^exports available: 1$'
kill $!
wait $!
"""


def unescaped(line):
    """A line of a manual page's example as it is shown: where a backslash is not written \\e, it is lost."""
    shown = {"e": "\\", "(dq": '"', "-": "-"}
    return re.sub(r"\\(\(..|.|$)", lambda match: shown.get(match[1], ""), line)


def manual_examples(text):
    block = None
    for line in text.split("\n"):
        if line.startswith(".Bd -literal"):
            block = []
        elif line.startswith(".Ed") and block is not None:
            yield "\n".join(block)
            block = None
        elif block is not None:
            block.append(unescaped(line))
        elif line.startswith(".Dl "):
            yield unescaped(line[4:])


def markdown_examples(text):
    for block in re.findall(r"(?:(?<=\n\n)|\A)(?:    .*\n(?:\n(?=    ))?)+", text):
        yield re.sub(r"^    ", "", block, flags=re.M).rstrip("\n")
    yield from re.findall(r"^```\w*\n(.*?)\n```$", text, re.M | re.S)


def examples():
    """{name of the example: text}"""
    found = {}
    for path in [os.path.join(SOURCE_ROOT, "README.md"),
                 *sorted(glob.glob(os.path.join(SOURCE_ROOT, "docs", "*.[0-9]")))]:
        extract = markdown_examples if path.endswith(".md") else manual_examples
        for number, text in enumerate(extract(read_file(path).decode()), 1):
            found[f"{os.path.basename(path)}-{number}"] = text
    return found


EXAMPLES = examples()
RUN = [name for name, text in EXAMPLES.items() if not text.startswith(tuple(NOT_RUN))]


def own_network():
    """Becomes root of a user namespace with a loopback interface that nobody else uses."""
    if "EVNBD_OWN_NETWORK" not in os.environ and subprocess.run(
            ["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0:
        os.environ["EVNBD_OWN_NETWORK"] = "yes"
        os.execvp("unshare", ["unshare", "-rn", "sh", "-c", 'ip link set lo up; exec "$@"', "sh",
                              sys.executable, *sys.argv])


def prepare(t):
    for name in ("disk.img", "base.img"):
        t.file(name, content(1, 4 * MIB))
    os.mkdir(t.path("upload"))
    for name in ("disk.qcow2", "backup.qcow2", "upload/disk.qcow2"):
        qemu_img("create", "-q", "-f", "qcow2", t.path(name), 4 * MIB)
    run("sh", "-c", f"truncate -s 8M {t.path('disk.raw')}; printf 'label: gpt\\nsize=2M, name=root\\nsize=2M\\n' | "
        f"PATH=$PATH:/sbin:/usr/sbin sfdisk -q {t.path('disk.raw')}")
    os.mkdir(t.path("bin"))
    t.file("bin/evnbd", WRAPPER.format(evnbd=os.path.realpath(EVNBD), dir=t.dir).encode())
    os.chmod(t.path("bin/evnbd"), 0o755)


def stop_background(t):
    for pid_file in glob.glob(t.path("*.pid")):
        pid = int(read_file(pid_file))
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: ended(pid), "the server to end")  # pylint: disable=cell-var-from-loop
        check(not os.path.exists(pid_file), "the pid file is left behind")


@cases(*RUN, sanitized=lambda name: False)
def test_example(t, name):
    need("unshare", "ip", "sfdisk", "psktool", "certtool", "nbdinfo", "nbdcopy", "openssl")
    if "EVNBD_OWN_NETWORK" not in os.environ:
        skip("there can be no network namespace here")
    prepare(t)
    script = EXAMPLES[name]
    for text, instead in PLACES.items():
        script = script.replace(text, instead.format(dir=t.dir))
    environment = {**os.environ, "PATH": f"{t.path('bin')}:{os.environ['PATH']}", "passphrase": "secret",
                   "TMPDIR": t.dir}
    try:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=t.dir, env=environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=HANG, check=False)
        equal(done.returncode, 0, f"exit status of\n{script}\n{done.stdout}\n")
    finally:
        stop_background(t)


def test_table(_):
    """Each row of NOT_RUN is for an example that there is."""
    check(len(RUN) > 10, RUN)
    for start in NOT_RUN:
        check(any(text.startswith(start) for text in EXAMPLES.values()), f"no example begins with {start}")


if __name__ == "__main__":
    own_network()
    main()
