/* SPDX-License-Identifier: BSD-3-Clause */
/* The judge. See judge.h. */
#include "tests/crash/judge.h"

#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "blockcore/block.h"
#include "blockcore/check.h"
#include "blockcore/snapshot.h"
#include "tests/crash/qemu_check.h"
#include "tests/crash/workload.h"
#include "tests/support/qcow2_image.h"
#include "tests/support/sim_disk.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT_HAS_CHECK(row) (strcmp((row)->format, "raw") != 0)

enum { LOST = 1 };

/*
 * While snapshots are changed, a cluster may have refcount 2, and a copied bit with the only
 * reference to it: writing in place is right there, and once the leak is repaired so is the bit.
 * Or it has refcount 1 and no such bit, which costs a copy.
 */
enum damage { NO_DAMAGE, LEAKS, LEAKY_BITS };

/* Counts a failure and keeps its sentence; false. */
__attribute__((format(printf, 3, 4))) static bool fail(struct judge *j, unsigned lost,
                                                       const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(j->text, sizeof(j->text), format, args);
    va_end(args);
    *(lost ? &j->lost : &j->corrupt) += 1;
    return false;
}

/* What a check says, in short. */
struct findings {
    uint64_t copied; /* copied bits that do not go with refcounts */
    struct error first;
};

static void take_finding(void *arg, const char *text)
{
    struct findings *f = arg;

    if (strstr(text, " the copied bit, its cluster has "))
        f->copied++;
    else if (!f->first.text[0] && strncmp(text, "leak", 4) != 0)
        error_set(&f->first, EINVAL, "%s", text);
}

static bool check_node(struct judge *j, struct node *node, enum damage allowed)
{
    struct error error = {.text = ""};
    struct findings findings = {.copied = 0};
    struct block_check check = {.report = take_finding, .report_arg = &findings};
    uint64_t corruptions;

    if (!FORMAT_HAS_CHECK(j->row))
        return true;
    if (block_check(node, &check, &error) < 0)
        return fail(j, 0, "the check failed: %s", error.text);
    j->leaky_bits = findings.copied > 0;
    corruptions = check.result.corruptions;
    if (allowed == LEAKY_BITS)
        corruptions -= findings.copied;
    if (corruptions > 0 || check.result.check_errors > 0)
        return fail(j, 0, "the check finds %lu corruptions: %s", check.result.corruptions,
                    findings.first.text);
    if (allowed == NO_DAMAGE && check.result.leaks > 0)
        return fail(j, 0, "%lu leaks are left", check.result.leaks);
    return true;
}

/* The tests' own checker counts references without the code under test. */
static bool count_alone(struct judge *j, enum damage allowed)
{
    struct qcow2_report report;
    uint8_t *data;
    size_t length;

    if (!image_counts_alone(j->row))
        return true;
    data = sim_disk_content(image_file(j->row, 0), &length);
    qcow2_image_check(data, length, &report);
    free(data);
    if (allowed == LEAKY_BITS)
        report.errors -= report.lacking;
    return report.errors == 0 || fail(j, 0, "references counted: %s", report.text);
}

static bool read_disk(struct judge *j, struct node *node)
{
    uint64_t sector = 0;

    if (!history_allows_size(j->history, j->point, node->size))
        return fail(j, LOST, "the disk has %lu bytes", node->size);
    if (block_read(node, j->seen, node->size, 0) < 0)
        return fail(j, 0, "the disk cannot be read");
    if (!history_allows(j->history, j->point, j->garbage, j->seen, node->size, &sector))
        return fail(j, LOST, "sector %lu is neither what was flushed nor what was written later",
                    sector);
    return true;
}

/*
 * What holds the disk by itself does at any moment; but there a write fills whole clusters, so that
 * garbage can be next to what was asked to be written.
 */
static bool read_raw_file(struct judge *j)
{
    const char *path = image_raw_file(j->row);
    uint64_t sector = 0;
    uint8_t *data;
    size_t size;
    bool ok = true;

    if (!path || j->garbage)
        return true;
    data = sim_disk_content(path, &size);
    if (!history_allows_size(j->history, j->point, size))
        ok = fail(j, LOST, "%s has %zu bytes", path, size);
    else if (!history_allows(j->history, j->point, j->garbage, data, size, &sector))
        ok = fail(j, LOST, "sector %lu of %s is neither what was flushed nor was written later",
                  sector, path);
    free(data);
    return ok;
}

static bool same_snapshots(const struct block_snapshots *list, const struct world *world)
{
    if (list->count != world->count)
        return false;
    for (unsigned i = 0; i < world->count; i++) {
        if (strcmp(list->items[i].name, world->snapshots[i]->name) != 0)
            return false;
    }
    return true;
}

/* Whether all that differs from `clean` is dirty. */
static bool bitmap_tells(struct judge *j, struct block_bitmap *bitmap, const struct saved *clean)
{
    uint64_t size = min_u64(bitmap->size, clean->size);
    struct block_bitmap_extent extent;

    j->bitmaps++;
    for (uint64_t at = 0; at < size; at += extent.length) {
        if (block_bitmap_next(bitmap, at, size - at, &extent) < 0)
            return fail(j, 0, "bitmap %s cannot be read", bitmap->name);
        if (!extent.dirty && memcmp(j->seen + at, clean->data + at, extent.length) != 0)
            return fail(j, LOST, "bitmap %s calls bytes clean that have changed, in %lu at %lu",
                        bitmap->name, extent.length, at);
    }
    return true;
}

/* What the disk holds is in j->seen. Bitmaps that cannot be used promise nothing but to be there.
 */
static bool same_bitmaps(struct judge *j, struct node *node, const struct world *world)
{
    size_t count = 0;

    while (block_bitmap_get(node, count))
        count++;
    if (count != world->bitmap_count)
        return fail(j, LOST, "it has %zu bitmaps instead of %u", count, world->bitmap_count);
    for (unsigned i = 0; i < world->bitmap_count; i++) {
        const struct saved *clean = world->bitmaps[i];
        struct block_bitmap *bitmap = block_bitmap_get_named(node, clean->name);

        if (!bitmap)
            return fail(j, LOST, "bitmap %s is gone", clean->name);
        if (!bitmap->unusable && !bitmap_tells(j, bitmap, clean))
            return false;
    }
    return true;
}

/* The failures of worlds that it is not count only if it is none of them. */
static const struct world *find_world(struct judge *j, struct node *node)
{
    uint64_t corrupt = j->corrupt, lost = j->lost;
    const struct world *world = NULL;
    struct block_snapshots list;
    struct error error = {.text = ""};
    bool listed = block_snapshots_list(node, &list, &error) == 0;

    if (!listed)
        fail(j, 0, "the snapshots cannot be listed: %s", error.text);
    else
        fail(j, LOST, "it has %zu snapshots, and not those that it may have", list.count);
    for (size_t i = 0; listed && (world = history_world(j->history, j->point, i)); i++) {
        if (same_snapshots(&list, world) && same_bitmaps(j, node, world))
            break;
    }
    block_snapshots_fini(&list);
    j->corrupt = corrupt;
    j->lost = lost + (world == NULL);
    return world;
}

static bool read_saved(struct judge *j, const struct saved *saved)
{
    struct error error = {.text = ""};
    struct node *node;
    bool ok = true;

    if (image_open(j->row, 0, saved->name, &node, &error) < 0)
        return fail(j, 0, "snapshot %s: %s", saved->name, error.text);
    if (node->size != saved->size || block_read(node, j->seen, saved->size, 0) < 0 ||
        memcmp(j->seen, saved->data, saved->size) != 0)
        ok = fail(j, LOST, "snapshot %s holds something else", saved->name);
    node_unref(node);
    return ok;
}

/* Opened read-only, it is sound and holds what it may. */
static bool look(struct judge *j, enum damage allowed, bool disk)
{
    struct error error = {.text = ""};
    const struct world *world = NULL;
    struct node *node;
    bool ok;

    if (allowed == LEAKY_BITS && !history_in_verb(j->history, j->point))
        allowed = LEAKS;
    if (image_open(j->row, 0, NULL, &node, &error) < 0)
        return fail(j, 0, "it does not open: %s", error.text);
    ok = check_node(j, node, allowed) && count_alone(j, allowed) &&
         (!disk || (read_disk(j, node) && read_raw_file(j)));
    if (ok && !disk && block_read(node, j->seen, node->size, 0) < 0)
        ok = fail(j, 0, "the disk cannot be read");
    if (ok && node->driver->snapshots) {
        world = find_world(j, node);
        ok = world != NULL;
    }
    node_unref(node);
    for (unsigned i = 0; ok && world && i < world->count; i++)
        ok = read_saved(j, world->snapshots[i]);
    return ok;
}

static uint64_t hash_files(const struct image_row *row)
{
    struct content files[CUT_FILES] = {{.data = NULL}};
    uint64_t hash = 0;

    image_copy(row, files);
    for (unsigned f = 0; f < CUT_FILES; f++) {
        hash = hash * 31 + (files[f].data ? content_hash(&files[f]) : 0);
        content_fini(&files[f]);
    }
    return hash;
}

/* What is done with a crashed image before it is used. */
struct recovery {
    const char *name;
    unsigned open_flags;
    unsigned fix;        /* CHECK_FIX_*; 0: no repair */
    enum damage allowed; /* afterwards */
};

static const struct recovery opening = {"opening for writing", NODE_WRITABLE | NODE_UNMAP, 0,
                                        LEAKY_BITS};
static const struct recovery repairing = {"repairing", NODE_REPAIR,
                                          CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, NO_DAMAGE};
static const struct recovery repairing_leaks = {"repairing leaks", NODE_REPAIR, CHECK_FIX_LEAKS,
                                                NO_DAMAGE};

static bool recover(struct judge *j, const struct recovery *recovery)
{
    struct block_check check = {.fix = recovery->fix};
    struct error error = {.text = ""};
    struct node *node;
    int err;

    if (image_open(j->row, recovery->open_flags, NULL, &node, &error) < 0)
        return fail(j, 0, "%s: %s", recovery->name, error.text);
    err = recovery->fix ? block_check(node, &check, &error) : 0;
    node_unref(node);
    return err == 0 || fail(j, 0, "%s: %s", recovery->name, error.text);
}

struct second_cut {
    struct judge *judge;
    const struct recovery *recovery;
    bool ok;
};

/* The recovery was cut off; done again, it comes to its end. */
static bool judge_cut_recovery(void *arg, const struct cut_state *state)
{
    struct second_cut *cut = arg;
    struct judge *j = cut->judge;
    char text[sizeof(j->text)];

    image_restore(j->row, state->files);
    j->recoveries++;
    cut->ok = look(j, LEAKY_BITS, true) && recover(j, cut->recovery) &&
              look(j, cut->recovery->allowed, true);
    if (!cut->ok) {
        snprintf(text, sizeof(text), "%s", j->text);
        snprintf(j->text, sizeof(j->text), "%.60s, cut off at %zu with %s: %.350s",
                 cut->recovery->name, state->point, state->kind, text);
    }
    return cut->ok;
}

static bool cut_recovery(struct judge *j, const struct recovery *recovery,
                         const struct content *before, const int *numbers, bool ok)
{
    struct second_cut cut = {j, recovery, ok};
    struct cut_job job = {.before = before,
                          .subsets = j->recovery_subsets,
                          .seed = j->states,
                          .visit = judge_cut_recovery,
                          .arg = &cut};
    struct record *records = recorder_take(&job.count);

    job.records = records;
    memcpy(job.numbers, numbers, sizeof(job.numbers));
    image_data_only(j->row, job.data_only);
    recorder_remove();
    if (ok && job.count > 0)
        cut_all(&job);
    records_free(records, job.count);
    return cut.ok;
}

static bool try_recovery(struct judge *j, const struct recovery *recovery,
                         const struct content *before)
{
    int numbers[CUT_FILES] = {-1, -1};
    uint64_t hash;
    bool ok;

    image_restore(j->row, before);
    recorder_install();
    ok = recover(j, recovery);
    for (unsigned i = 0; image_file(j->row, i); i++)
        numbers[i] = recorder_file(image_file(j->row, i));
    hash = hash_files(j->row);
    ok = ok && recover(j, recovery);
    if (ok && hash_files(j->row) != hash)
        ok = fail(j, 0, "%s a second time changes the image", recovery->name);
    ok = ok && look(j, recovery->allowed, true);
    return cut_recovery(j, recovery, before, numbers, ok);
}

/* Everything is written once more. */
static bool use_on(struct judge *j)
{
    struct error error = {.text = ""};
    struct prng prng = prng_of(j->states);
    uint64_t room = WORKLOAD_ROOM * j->row->bytes;
    uint8_t *data = malloc(room);
    struct node *node;
    bool ok = true;

    if (!data || image_open(j->row, NODE_WRITABLE | NODE_UNMAP, NULL, &node, &error) < 0) {
        free(data);
        return fail(j, 0, "it does not open for writing: %s", error.text);
    }
    prng_fill(&prng, data, node->size);
    if (block_write(node, data, node->size, 0, 0) < 0 || block_flush(node) < 0)
        ok = fail(j, 0, "it cannot be written");
    node_unref(node);
    ok = ok && look(j, LEAKY_BITS, false);
    if (ok && image_open(j->row, 0, NULL, &node, &error) < 0) {
        ok = fail(j, 0, "it does not open again: %s", error.text);
    } else if (ok) {
        if (block_read(node, j->seen, node->size, 0) < 0 || memcmp(j->seen, data, node->size) != 0)
            ok = fail(j, LOST, "what was written after the power cut is not there");
        node_unref(node);
    }
    free(data);
    return ok;
}

static bool ask_qemu(struct judge *j, const struct content *files)
{
    char text[200], arguments[256];

    if (!FORMAT_HAS_CHECK(j->row) || j->qemu_every == 0 || j->states % j->qemu_every != 0)
        return true;
    if (!j->directory)
        j->directory = test_dir_make();
    j->second_opinions++;
    image_save(j->row, files, j->directory);
    image_qemu_arguments(j->row, arguments, sizeof(arguments));
    return qemu_check(j->directory, arguments, text, sizeof(text)) ||
           fail(j, 0, "qemu-img check: %s", text);
}

/* Looking must not change it. */
static bool look_only(struct judge *j)
{
    bool ok;

    recorder_install();
    ok = look(j, LEAKY_BITS, true);
    for (size_t i = 0; ok && i < recorder_count(); i++) {
        if (recorder_get(i)->kind == RECORD_CHANGE)
            ok = fail(j, 0, "opened read-only, it was changed");
    }
    recorder_remove();
    return ok;
}

bool judge_state(struct judge *j, const struct cut_state *state)
{
    bool leaky_bits;

    j->states++;
    j->point = state->point;
    j->garbage = state->garbage;
    if (!j->seen && !(j->seen = malloc(WORKLOAD_ROOM * j->row->bytes)))
        test_die("out of memory");
    image_restore(j->row, state->files);
    if (!look_only(j))
        return false;
    leaky_bits = j->leaky_bits;
    if (!ask_qemu(j, state->files) || !try_recovery(j, &opening, state->files))
        return false;
    if (FORMAT_HAS_CHECK(j->row) && j->states % j->repair_every == 0 &&
        !try_recovery(j, &repairing, state->files))
        return false;
    if (leaky_bits && !try_recovery(j, &repairing_leaks, state->files))
        return false;
    image_restore(j->row, state->files);
    return use_on(j);
}

void judge_fini(struct judge *j)
{
    free(j->seen);
    j->seen = NULL;
    test_dir_remove(j->directory);
    j->directory = NULL;
}
