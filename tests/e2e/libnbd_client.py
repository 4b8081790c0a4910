#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
Runs steps with libnbd and prints what came of each, as JSON: libnbd_client.py URI CONTEXTS STEPS

CONTEXTS is a list of metadata contexts to ask for, STEPS a list of [method, argument...], both JSON.
A program of its own because the Python that has the module `nbd` need not be the one that runs the
tests.  Each step gives {"ok": value} or {"error": text, "errno": name}; those with callbacks give
what the callbacks were told:

  pread_structured LENGTH OFFSET [FLAGS]   [[offset, length, "data", "hole" or "error"]...], and
                                           the SHA-256 of the buffer in "digest"
  block_status LENGTH OFFSET [FLAGS]       {context: [[length, flags]...]}
"""
import hashlib
import json
import sys

import nbd

KINDS = {nbd.READ_DATA: "data", nbd.READ_HOLE: "hole", nbd.READ_ERROR: "error"}


def pread_structured(handle, length, offset, flags=0):
    chunks = []

    def on_chunk(data, at, status, error):
        chunks.append([at, len(data), KINDS[status]])

    result = {"chunks": chunks}
    try:
        buffer = handle.pread_structured(length, offset, on_chunk, flags)
        result["digest"] = hashlib.sha256(buffer).hexdigest()
    except nbd.Error as problem:
        result["error"], result["errno"] = problem.string, problem.errno
    return result


def block_status(handle, length, offset, flags=0):
    told = {}

    def on_extents(context, at, entries, error):
        assert at == offset
        told[context] = [list(pair) for pair in zip(entries[::2], entries[1::2])]

    handle.block_status(length, offset, on_extents, flags)
    return {"ok": told}


def run_step(handle, method, *arguments):
    special = {"pread_structured": pread_structured, "block_status": block_status}
    try:
        if method in special:
            return special[method](handle, *arguments)
        if method == "pwrite":
            arguments = (arguments[0].encode("latin-1"), *arguments[1:])
        value = getattr(handle, method)(*arguments)
        if isinstance(value, (bytes, bytearray)):
            value = hashlib.sha256(value).hexdigest()
        return {"ok": value}
    except nbd.Error as problem:
        return {"error": problem.string, "errno": problem.errno}


def main(uri, contexts, steps):
    handle = nbd.NBD()
    for context in json.loads(contexts):
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    print(json.dumps([run_step(handle, *step) for step in json.loads(steps)]))
    handle.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
