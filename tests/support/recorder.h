/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The recorder behind the seam: keeps every change to every file, in order, with markers from the
 * test, and rebuilds what a file held after any of them; or what could be left of it if the power
 * had failed there.  Crash tests mark what was acknowledged, rebuild at every record, and check.
 *
 * Changes are made under a lock, one after another, so that their order is exact; an fdatasync
 * covers all changes recorded before it.  The io_uring engine goes around the seam: use another.
 */
#ifndef EVNBD_TESTS_RECORDER_H
#define EVNBD_TESTS_RECORDER_H

#include "tests/support/content.h"

enum record_kind { RECORD_CHANGE, RECORD_SYNC, RECORD_MARK };

struct record {
    enum record_kind kind;
    unsigned file;         /* number of the file; not for marks */
    uint64_t mark;         /* RECORD_MARK */
    struct change *change; /* RECORD_CHANGE */
};

void recorder_install(void);
/* Also forgets all records. */
void recorder_remove(void);

void recorder_mark(uint64_t mark);

size_t recorder_count(void);
const struct record *recorder_get(size_t index);

/* Moves all records out of the recorder, for records_free. The numbers of the files stay. */
struct record *recorder_take(size_t *ret_count);
void records_free(struct record *records, size_t count);

/* The number of the file, or -ENOENT when nothing was recorded for it. */
int recorder_file(const char *path);

/*
 * What the file held after the first `count` records; `ret` is to be zeroed or an earlier result,
 * and is freed with content_fini.  With a drop_seed other than 0: what could be left after a power
 * cut there, that is, of the changes since the last fdatasync any are lost or torn.
 */
void recorder_rebuild(struct content *ret, unsigned file, size_t count, uint64_t drop_seed);

/* The same into a new file at `path`, made outside the seam. */
void recorder_rebuild_to(const char *path, unsigned file, size_t count, uint64_t drop_seed);

#endif
