#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Each header compiles alone, and twice, and has the include guard of its path."""
import os
import re

from lint import BUILD_ROOT, PRODUCT, ROOT, need, report, run, text_of, tree

X_MACROS = ("base/trace_points.h",)  # meant to be included more than once


def headers():
    return [path for path in tree((".h",), (*PRODUCT, "tests", "bench")) if path not in X_MACROS]


def check_alone():
    compiler = need("cc")
    for path in headers():
        output = run(compiler, "-std=gnu17", "-D_GNU_SOURCE", "-DEVNBD_VERSION=\"0\"", "-I", ROOT,
                     *(["-I", BUILD_ROOT] if BUILD_ROOT else []), "-Wall", "-Wextra", "-Wstrict-prototypes",
                     "-Wno-unused-parameter", "-Werror", "-fsyntax-only", "-x", "c", "-",
                     text=f'#include "{path}"\n#include "{path}"\n')
        if output:
            yield f"{path} does not compile alone:\n{output}"


def check_guards():
    """EVNBD_ and the path; below tests/ the name of the folder may be left out."""
    for path in headers():
        found = re.search(r"^#ifndef EVNBD_(\w+)\n#define EVNBD_(\w+)\n", text_of(path), re.M)
        name = re.sub(r"[^A-Z0-9]", "_", path.upper())
        good = found and found[1] == found[2] and (
            found[1] == name or path.startswith("tests/") and
            name.startswith("TESTS_") and name.endswith(found[1].removeprefix("TESTS_")))
        if not good or not text_of(path).endswith("#endif\n"):
            yield f"{path}: the include guard must be EVNBD_{name}"


def check_own_header_first():
    """x.c includes x.h before anything else, so that x.h stands on its own there too."""
    for path in tree((".c",), PRODUCT):
        own = path[:-2] + ".h"
        if not os.path.exists(os.path.join(ROOT, own)):
            continue
        found = re.findall(r'^#include [<"]([^>"]+)[>"]', text_of(path), re.M)
        if own not in found:
            yield f"{path} does not include {own}"
        elif [name for name in found if name not in ("config.h",)][0] != own:
            yield f"{path} includes {found[0]} before {own}"


if __name__ == "__main__":
    report([("headers compile alone", check_alone), ("include guards", check_guards),
            ("the own header comes first", check_own_header_first)])
