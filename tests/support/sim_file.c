/* SPDX-License-Identifier: BSD-3-Clause */
/* The files of the simulated disk. */
#include "tests/support/sim_file.h"

#include "tests/support/sim_locks.h"

#include <stdlib.h>
#include <string.h>

struct sim_file *sim_file_find(const struct list *files, const char *path)
{
    list_for_each(node, files)
    {
        struct sim_file *file = list_entry(node, struct sim_file, link);

        if (file->path && strcmp(file->path, path) == 0)
            return file;
    }
    return NULL;
}

struct sim_file *sim_file_new(struct list *files, const char *path)
{
    static ino_t last_ino;
    struct sim_file *file = calloc(1, sizeof(*file));

    if (!file || !(file->path = strdup(path)))
        test_die("out of memory");
    file->ino = ++last_ino;
    content_init(&file->seen);
    content_init(&file->durable);
    list_init(&file->changes);
    list_init(&file->locks);
    list_append(files, &file->link);
    return file;
}

void sim_file_free(struct sim_file *file)
{
    list_remove(&file->link);
    changes_free(&file->changes);
    sim_locks_drop(&file->locks, -1);
    content_fini(&file->seen);
    content_fini(&file->durable);
    free(file->path);
    free(file);
}

void sim_file_unlink(struct sim_file *file)
{
    free(file->path);
    file->path = NULL;
    if (file->opens == 0)
        sim_file_free(file);
}

void sim_file_change(struct sim_file *file, struct change *change)
{
    content_apply(&file->seen, change);
    list_append(&file->changes, &change->link);
}

void sim_file_sync(struct sim_file *file)
{
    list_for_each(node, &file->changes)
        content_apply(&file->durable, list_entry(node, struct change, link));
    changes_free(&file->changes);
}

void sim_file_power_cut(struct sim_file *file, struct prng *prng)
{
    list_for_each(node, &file->changes)
        content_apply_torn(&file->durable, list_entry(node, struct change, link), prng);
    changes_free(&file->changes);
    content_copy(&file->seen, &file->durable);
    sim_locks_drop(&file->locks, -1);
}
