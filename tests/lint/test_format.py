#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""C is formatted by clang-format of the version that Debian 12 has; scripts pass shellcheck."""
import ast
import re
import subprocess

from lint import Skip, need, report, run, text_of, tree

CLANG_FORMAT = 14  # other versions format some lines differently


def check_c():
    program = need("clang-format")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if (match := re.search(r"version (\d+)", version)) and int(match[1]) != CLANG_FORMAT:
        raise Skip(f"clang-format is of version {match[1]}, not {CLANG_FORMAT}")
    for path in tree((".c", ".h")):
        if run(program, "--dry-run", "-Werror", path):
            yield f"{path} is not formatted: clang-format -i {path}"


def scripts(interpreter):
    """Files that start with #! of an interpreter."""
    for path in tree():
        first = (text_of(path) or "").split("\n", 1)[0]
        if first.startswith("#!") and re.search(rf"\b{interpreter}\b", first):
            yield path


def check_shell():
    program = need("shellcheck")
    for path in [*scripts("bash"), *scripts("sh")]:
        output = run(program, "-x", path)
        if output:
            yield f"{path}:\n{output}"


def imported_names(tree_of_file):
    for node in ast.walk(tree_of_file):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield (alias.asname or alias.name).split(".")[0], node.lineno


def check_python():
    for path in sorted({*tree((".py",)), *scripts("python3")}):
        try:
            parsed = ast.parse(text_of(path), path)
        except SyntaxError as problem:
            yield f"{path}: {problem}"
            continue
        used = {node.id for node in ast.walk(parsed) if isinstance(node, ast.Name)}
        for name, line in imported_names(parsed):
            if name not in used:
                yield f"{path}:{line}: {name} is imported and not used"


if __name__ == "__main__":
    report([("C is formatted", check_c), ("shellcheck", check_shell), ("Python", check_python)])
