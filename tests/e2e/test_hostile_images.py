#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Hostile images: the table of known bad inputs, one named case a row.

The rows are in hostile_images_*.py; hostile_images.py says what every image goes through.  Arguments
choose rows by name, as in "test_hostile_images.py B12_".  Other rows of the list have their cases
where the subject is tested: B10 in test_life_cycle.py (image_shrinks), B47 in test_qcow2_races.c.
"""
import re

import hostile_images_header
import hostile_images_tables
from evnbd_test import main
from hostile_images import ROWS, run_row

# Their rows enter themselves into the table.
MODULES = (hostile_images_header, hostile_images_tables)


def case_of(function):
    return lambda t: run_row(t, function)


assert {function.__module__ for _, function in ROWS.values()} == {module.__name__ for module in MODULES}
for number in sorted(ROWS, key=lambda name: int(name[1:])):
    title, function_of_row = ROWS[number]
    label = re.sub(r"\W+", "_", title)
    globals()[f"test_{number}_{label}"] = case_of(function_of_row)

if __name__ == "__main__":
    main()
