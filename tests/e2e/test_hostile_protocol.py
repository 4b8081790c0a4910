#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Hostile input over the protocol: the table of known bad inputs, one named case a row.

The rows are in hostile_handshake.py, hostile_tls.py, hostile_requests.py and hostile_process.py;
hostile.py says what holds for all of them.  Arguments choose rows by name, as in "test_hostile_protocol.py A85_".
"""
import re

import hostile_handshake
import hostile_process
import hostile_requests
import hostile_tls
from evnbd_test import main
from hostile import ROWS, Stage

# Their rows enter themselves into the table.
MODULES = (hostile_handshake, hostile_tls, hostile_requests, hostile_process)


def case_of(function):
    def run(t):
        stage = Stage(t)
        try:
            function(stage)
            stage.finish()
        finally:
            for client in stage.clients:
                client.close()
    return run


assert {function.__module__ for _, function in ROWS.values()} == {module.__name__ for module in MODULES}
for number in sorted(ROWS, key=lambda name: int(name[1:])):
    title, check_row = ROWS[number]
    label = re.sub(r"\W+", "_", title)
    globals()[f"test_{number}_{label}"] = case_of(check_row)

if __name__ == "__main__":
    main()
