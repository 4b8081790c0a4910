#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs a fuzz target: run_fuzzer.py replay|fuzz TARGET PROGRAM DIRECTORY

replay runs the seeds and the inputs below regressions/TARGET once each.  fuzz runs libFuzzer for
FUZZ_SECONDS (default 15) on a corpus that grows in DIRECTORY; an input that breaks the target is left
there, named in the output, and belongs below regressions/TARGET once the bug is mended.
"""
import os
import subprocess
import sys

import make_seeds

HERE = os.path.dirname(os.path.realpath(__file__))
REGRESSIONS = os.path.join(HERE, "regressions")
INPUT_MAX = {"fuzz_partition": 1 << 16, "fuzz_qcow2": 1 << 16, "fuzz_raw": 1 << 10}  # bytes; others 4 KiB


def main(mode, target, program, directory):
    folder = os.path.join(directory, target)
    seeds, corpus = os.path.join(folder, "seeds"), os.path.join(folder, "corpus")
    make_seeds.make(target, seeds)
    if not os.listdir(seeds):
        print("no seeds can be made here: the programs that make images are missing")
        sys.exit(77)
    old = os.path.join(REGRESSIONS, target)
    inputs = [seeds] + ([old] if os.path.isdir(old) else [])
    if mode == "replay":
        command = [program, *inputs]
    else:
        os.makedirs(corpus, exist_ok=True)
        seconds = os.environ.get("FUZZ_SECONDS", "15")
        dictionary = os.path.join(HERE, target + ".dict")
        command = [program, *([f"-dict={dictionary}"] if os.path.exists(dictionary) else []),
                   f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048",
                   f"-max_len={INPUT_MAX.get(target, 4096)}", "-print_final_stats=1",
                   f"-artifact_prefix={folder}/", corpus, *inputs]
    print(" ".join(command), flush=True)
    sys.exit(subprocess.run(command, check=False).returncode and 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
