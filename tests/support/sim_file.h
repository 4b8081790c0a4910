/* SPDX-License-Identifier: BSD-3-Clause */
/* The files of the simulated disk: names, contents, and what a power cut leaves. For sim_disk.c. */
#ifndef EVNBD_TESTS_SIM_FILE_H
#define EVNBD_TESTS_SIM_FILE_H

#include "tests/support/content.h"

#include <sys/types.h>

struct sim_file {
    struct list link;
    char *path; /* NULL: unlinked */
    ino_t ino;
    unsigned opens;
    struct content seen;    /* by readers */
    struct content durable; /* on the platter */
    struct list changes;    /* from durable to seen */
    struct list locks;
};

struct sim_file *sim_file_find(const struct list *files, const char *path);
struct sim_file *sim_file_new(struct list *files, const char *path);
void sim_file_free(struct sim_file *file);

/* Takes the name away; the file goes when nobody has it open. */
void sim_file_unlink(struct sim_file *file);

/* Applies the change for readers and keeps it until it is flushed. Takes the change. */
void sim_file_change(struct sim_file *file, struct change *change);

/* Makes all changes durable. */
void sim_file_sync(struct sim_file *file);

/* Leaves what chance keeps of the changes, and drops the locks. */
void sim_file_power_cut(struct sim_file *file, struct prng *prng);

#endif
