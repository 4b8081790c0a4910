#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the shells complete."""
import os
import re
import shlex

from evnbd_test import EVNBD, SOURCE_ROOT, cases, check, equal, main, need, run

BASH = os.path.join(SOURCE_ROOT, "completions", "evnbd.bash")
ZSH = os.path.join(SOURCE_ROOT, "completions")
FORMATS = ["luks", "qcow2", "raw"]

# What is typed, of which the last word is completed: what there must be, and whether that is all. {dir} holds
# the folder `sub` and the files `one.img` and `two.img`.
LINES = [
    ("evnbd --pid", ["--pid-file="], True),
    ("evnbd --off", ["--offset="], True),
    ("evnbd --fo", ["--fork", "--format="], True),
    ("evnbd -f ", FORMATS, False),
    ("evnbd --cache=w", ["writeback", "writethrough"], True),
    ("evnbd --aio n", ["native"], True),
    ("evnbd --object=tls", ["tls-creds-anon", "tls-creds-psk", "tls-creds-x509"], True),
    ("evnbd --tls-certificates={dir}/", ["{dir}/sub"], True),
    ("evnbd --tls-psk={dir}/o", ["{dir}/one.img"], True),
    ("evnbd -t {dir}/t", ["{dir}/two.img"], True),
    ("evnbd -f raw {dir}/", ["{dir}/one.img", "{dir}/sub", "{dir}/two.img"], True),
]


def prepare(t):
    os.mkdir(t.path("bin"))
    os.symlink(EVNBD, t.path("bin/evnbd"))
    os.mkdir(t.path("files"))
    os.mkdir(t.path("files/sub"))
    t.file("files/one.img", b"")
    t.file("files/two.img", b"")
    return {**os.environ, "PATH": f"{t.path('bin')}:{os.environ['PATH']}"}, t.path("files")


def judge(got, wanted, all_of_them):
    got = sorted(word.rstrip("/ ") for word in got)
    if all_of_them:
        equal(got, sorted(wanted), "completions")
    else:
        check(set(wanted) <= set(got), f"{wanted} among {got}")


@cases(*LINES)
def test_bash(t, line, wanted, all_of_them):
    need("bash")
    environment, files = prepare(t)
    typed = re.findall(r"=|[^\s=]+|(?<= )$", line.format(dir=files))  # as bash splits them
    script = (f"compopt() {{ :; }}; source {shlex.quote(BASH)}; COMP_WORDS=({' '.join(map(shlex.quote, typed))}); "
              "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _evnbd; printf '%s\\n' \"${COMPREPLY[@]}\"")
    found = run("bash", "-u", "-c", script, env=environment)
    equal(found.stderr, "", "bash's stderr")
    judge(found.stdout.splitlines(), [word.format(dir=files) for word in wanted], all_of_them)


# Runs the completion of a line in a terminal of its own, with compadd telling what it is given.
ZSH_SCRIPT = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PROMPT=; unsetopt zle_bracketed_paste; bindkey "^I" complete-word; fpath=('$1' $fpath)
autoload -U compinit; compinit -u -D; zstyle ":completion:*" list-colors ""
compadd() { local -a hits; builtin compadd -O hits "$@"; print -l -- ">"${^hits} >>'$2'; builtin compadd "$@" }
_tell() { _main_complete; print -- "done" >>'$2'; zle -U "" }
zle -C complete-word complete-word _tell; print ready >>'$2
until grep -q ready $2 2>/dev/null; do sleep 0.05; done
zpty -w -n shell $3$'\t'
for i in {1..600}; do grep -q done $2 && break; sleep 0.05; done
zpty -d shell
"""


@cases(*LINES[:7], LINES[-1])
def test_zsh(t, line, wanted, all_of_them):
    need("zsh")
    environment, files = prepare(t)
    told = t.path("told")
    run("zsh", "-f", "-c", ZSH_SCRIPT, "zsh", ZSH, told, line.format(dir=files), env=environment)
    with open(told, encoding="utf-8") as lines:
        found = {word[1:].strip() for word in lines if word.startswith(">") and word.strip() != ">"}
    names = {os.path.basename(word.format(dir=files)).rstrip("=") for word in wanted}
    # It is told the folders of a path as well.
    judge({re.sub(r":.*", "", word) for word in found}, names, all_of_them and "{dir}" not in line)


if __name__ == "__main__":
    main()
