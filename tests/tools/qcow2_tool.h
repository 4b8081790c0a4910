/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of qcow2_tool share: opening the image that a command is about, and the commands.
 * They run in a coroutine, and return an exit status or negative errno.
 */
#ifndef EVNBD_TESTS_TOOLS_QCOW2_TOOL_H
#define EVNBD_TESTS_TOOLS_QCOW2_TOOL_H

#include "base/error.h"

#include <stdbool.h>

struct node;

/* Opens the image as the options before the command say. The caller drops *ret. */
int open_image(const char *filename, unsigned flags, bool with_backing, struct node **ret,
               struct error *error);

/* qcow2_tool_bitmap.c */
int run_bitmap_list(char **arguments, struct error *error);
int run_bitmap_add(char **arguments, struct error *error);
int run_bitmap_remove(char **arguments, struct error *error);
int run_bitmap_clear(char **arguments, struct error *error);
int run_bitmap_enable(char **arguments, struct error *error);
int run_bitmap_disable(char **arguments, struct error *error);
int run_bitmap_merge(char **arguments, struct error *error);

#endif
