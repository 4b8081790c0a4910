#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""No left-overs, licence lines everywhere, plain text as .editorconfig says."""
import os
import re

from lint import ROOT, lines_of, report, text_of, tree

LINE_MAX = 100
SPDX = "SPDX-License-Identifier: BSD-3-Clause"
NO_SPDX = ("LICENSE", ".clang-format", ".editorconfig", ".gitignore", "meson_options.txt")
# Written so that this file does not find itself.
LEFT_OVERS = re.compile("TO" "DO|FIX" "ME|XX" "X(?!XX)|HA" "CK|#if" " 0")
MACHINE = re.compile(r"(?<!\w)(/wo" r"rk/|/ho" r"me/|/ro" r"ot/|/tmp/" r"b-|/far" r"m/)")


def source_files():
    return [path for path in tree() if text_of(path) is not None and "/seeds/" not in path and
            "/regressions/" not in path]


def check_left_overs():
    for path in source_files():
        for number, line in lines_of(path):
            if (match := LEFT_OVERS.search(line)) and not re.search(r"X{4}", line):
                yield f"{path}:{number}: '{match[0]}' was left over"


def check_machine_paths():
    for path in source_files():
        for number, line in lines_of(path):
            if match := MACHINE.search(line):
                yield f"{path}:{number}: '{match[0]}' is a path of some machine"


def check_spdx():
    for path in source_files():
        if os.path.basename(path) in NO_SPDX or path.endswith((".md", ".build")):
            continue
        if SPDX not in "\n".join(text_of(path).split("\n")[:3]):
            yield f"{path}: the line '{SPDX}' is missing at the top"


def check_text():
    for path in source_files():
        text = text_of(path)
        if text and not text.endswith("\n"):
            yield f"{path}: no newline at the end"
        if text.endswith("\n\n"):
            yield f"{path}: empty lines at the end"
        for number, line in lines_of(path):
            if line.rstrip() != line:
                yield f"{path}:{number}: blanks at the end of the line"
            if "\t" in line and path.endswith((".c", ".h", ".py", ".build", ".S")):
                yield f"{path}:{number}: a tab"
            if len(line) > LINE_MAX and path.endswith((".c", ".h", ".S")):
                yield f"{path}:{number}: {len(line)} columns"


def check_executable():
    """Exactly the files that start with #! are executable, but for modules that tests start."""
    for path in source_files():
        script = text_of(path).startswith("#!")
        executable = os.access(os.path.join(ROOT, path), os.X_OK)
        if executable != script and not (script and path.endswith(".py")):
            yield f"{path}: {'starts with #! but is not executable' if script else 'is executable'}"


if __name__ == "__main__":
    report([("nothing left over", check_left_overs), ("no paths of machines", check_machine_paths),
            ("licence lines", check_spdx), ("plain text", check_text),
            ("executable files", check_executable)])
