/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Cutting.  What is durable is carried along from sync to sync; a state is built from that and from
 * some of the changes that are not covered yet.
 */
#include "tests/crash/cut.h"

#include "base/checked.h"

#include <stdlib.h>
#include <sys/uio.h>

#define SECTOR 512
#define EXHAUSTIVE 12 /* so many uncovered changes: all subsets */
#define TEARS 8       /* places where a write is torn */
#define RANDOM 1000   /* random subsets, where there are too many for all */
#define GARBAGE 2     /* states with garbage, before each sync */
#define TORN_RANDOM 3 /* states with every uncovered change lost, kept or torn by chance */

struct cutter {
    const struct cut_job *job;
    struct content durable[CUT_FILES], built[CUT_FILES];
    size_t *unsynced; /* indexes of records */
    size_t unsynced_count;
    size_t point;
    uint64_t number;
    bool stopped;
    bool garbage; /* in the state that is being built */
    struct prng prng;
};

/* Which of the uncovered changes a state has. */
struct subset {
    uint64_t mask;   /* of the first 64 changes */
    size_t a, b;     /* the odd ones out; SIZE_MAX: none */
    bool keep;       /* a alone is kept, rather than a and b lost */
    uint64_t random; /* a seed, or 0 */
    bool masked;
};

static const struct change *change_at(const struct cutter *c, size_t i)
{
    return c->job->records[c->unsynced[i]].change;
}

static struct content *file_at(struct cutter *c, struct content *files, size_t record)
{
    for (unsigned f = 0; f < CUT_FILES; f++) {
        if (c->job->numbers[f] == (int)c->job->records[record].file)
            return &files[f];
    }
    test_die("a file changed that is not part of the image");
}

/* Whether the next state is asked for; then it starts with what is durable. */
static bool begin(struct cutter *c)
{
    const struct cut_job *job = c->job;

    if (c->stopped)
        return false;
    c->number++;
    if (job->wants && !job->wants(job->arg, c->number))
        return false;
    for (unsigned f = 0; f < CUT_FILES; f++)
        content_copy(&c->built[f], &c->durable[f]);
    return true;
}

static void end(struct cutter *c, const char *kind)
{
    struct cut_state state = {.number = c->number,
                              .kind = kind,
                              .point = c->point,
                              .unsynced = c->unsynced_count,
                              .garbage = c->garbage,
                              .files = c->built};

    c->garbage = false;
    c->stopped = !c->job->visit(c->job->arg, &state);
}

static void apply(struct cutter *c, size_t i)
{
    content_apply(file_at(c, c->built, c->unsynced[i]), change_at(c, i));
}

static void cut_prefix(struct cutter *c)
{
    if (!begin(c))
        return;
    for (size_t i = 0; i < c->unsynced_count; i++)
        apply(c, i);
    end(c, "all that was written");
}

/* The last write, cut at byte `at`: the part before it or the part behind it. */
static void cut_torn(struct cutter *c, uint64_t at, bool front)
{
    size_t last = c->unsynced_count - 1;
    const struct change *change = change_at(c, last);
    struct content *content;

    if (!begin(c))
        return;
    for (size_t i = 0; i < last; i++)
        apply(c, i);
    content = file_at(c, c->built, c->unsynced[last]);
    if (front)
        content_apply_part(content, change, change->offset, at - change->offset);
    else
        content_apply_part(content, change, at, change->offset + change->length - at);
    end(c, front ? "the front of the last write" : "the back of the last write");
}

static void cut_tears(struct cutter *c)
{
    const struct change *change = change_at(c, c->unsynced_count - 1);
    uint64_t first = align_down(change->offset, SECTOR) + SECTOR;
    uint64_t last = change->offset + change->length - 1;
    uint64_t places;

    if (change->kind == CHANGE_SIZE || change->length == 0 || first > last)
        return;
    places = (last - first) / SECTOR + 1;
    for (uint64_t i = 0; i < min_u64(places, TEARS); i++) {
        uint64_t k = places <= TEARS ? i : prng_below(&c->prng, places);

        cut_torn(c, first + k * SECTOR, true);
        cut_torn(c, first + k * SECTOR, false);
    }
}

static bool has(const struct subset *subset, size_t i)
{
    struct prng prng;

    if (subset->masked)
        return subset->mask >> i & 1;
    if (subset->random) {
        prng = prng_of(subset->random + i);
        return prng_percent(&prng, 50);
    }
    return (i == subset->a || i == subset->b) == subset->keep;
}

/* The subset number i of those there are for m changes. */
static struct subset subset_of(size_t m, uint64_t i, uint64_t seed)
{
    struct subset subset = {.a = SIZE_MAX, .b = SIZE_MAX};

    if (m <= EXHAUSTIVE)
        return (struct subset){.masked = true, .mask = i};
    if (i < 2 * m) {
        subset.a = i % m;
        subset.keep = i >= m;
        return subset;
    }
    i -= 2 * m;
    if (i < RANDOM)
        return (struct subset){.random = seed + (i + 1) * 1000003};
    i -= RANDOM;
    subset.a = i / m;
    subset.b = i % m;
    return subset;
}

static void cut_subset(struct cutter *c, struct subset subset)
{
    if (!begin(c))
        return;
    for (size_t i = 0; i < c->unsynced_count; i++) {
        if (has(&subset, i))
            apply(c, i);
    }
    end(c, "some of the writes since the last sync");
}

static void cut_subsets(struct cutter *c)
{
    size_t m = c->unsynced_count;
    uint64_t total = m <= EXHAUSTIVE ? UINT64_C(1) << m : 2 * m + RANDOM + m * m;
    uint64_t seed = prng_next(&c->prng);

    for (uint64_t i = 0; i < min_u64(total, c->job->subsets); i++)
        cut_subset(c,
                   subset_of(m, total <= c->job->subsets ? i : prng_below(&c->prng, total), seed));
    for (unsigned i = 0; i < TORN_RANDOM && m > 0; i++) {
        struct prng prng = prng_of(prng_next(&c->prng));

        if (!begin(c))
            continue;
        for (size_t k = 0; k < m; k++)
            content_apply_torn(file_at(c, c->built, c->unsynced[k]), change_at(c, k), &prng);
        end(c, "any sectors of the writes since the last sync");
    }
}

static void spoil(struct content *content, uint64_t at, uint64_t end, struct prng *prng)
{
    struct iovec iov;
    uint8_t garbage[SECTOR];
    struct change *change;

    prng_fill(prng, garbage, end - at);
    iov = (struct iovec){garbage, end - at};
    change = change_write(&iov, 1, at, end - at);
    content_apply(content, change);
    free(change);
}

/* A write of which each sector is old, new, or, where that may be, garbage. */
static void apply_garbled(struct cutter *c, size_t i, struct prng *prng)
{
    const struct change *change = change_at(c, i);
    struct content *content = file_at(c, c->built, c->unsynced[i]);
    uint64_t end = change->offset + change->length, next;
    unsigned f = (unsigned)(content - c->built);
    uint64_t from = c->job->data_only[f] ? 0 : align_up(c->durable[f].size, SECTOR);

    if (change->kind != CHANGE_WRITE) {
        content_apply_torn(content, change, prng);
        return;
    }
    for (uint64_t at = change->offset; at < end; at = next) {
        uint64_t fate = prng_below(prng, 3);

        next = min_u64(align_down(at, SECTOR) + SECTOR, end);
        if (fate == 0)
            content_apply_part(content, change, at, next - at);
        else if (fate == 1 && at >= from)
            spoil(content, at, next, prng);
    }
}

static void cut_garbage(struct cutter *c)
{
    for (unsigned k = 0; k < GARBAGE && c->unsynced_count > 0; k++) {
        struct prng prng = prng_of(prng_next(&c->prng));

        if (!begin(c))
            continue;
        c->garbage = true;
        for (size_t i = 0; i < c->unsynced_count; i++)
            apply_garbled(c, i, &prng);
        end(c, "garbage in the sectors that were being written");
    }
}

static void set_size(struct content *content, uint64_t size)
{
    struct change *change = change_size(size);

    content_apply(content, change);
    free(change);
}

/* The sizes of the files became durable, and nothing else did; or all but the sizes. */
static void cut_sizes(struct cutter *c)
{
    uint64_t sizes[CUT_FILES];

    if (!begin(c))
        return;
    for (size_t i = 0; i < c->unsynced_count; i++)
        apply(c, i);
    for (unsigned f = 0; f < CUT_FILES; f++) {
        sizes[f] = c->built[f].size;
        if (c->built[f].size > c->durable[f].size)
            set_size(&c->built[f], c->durable[f].size);
    }
    end(c, "data without sizes");
    if (!begin(c))
        return;
    for (unsigned f = 0; f < CUT_FILES; f++)
        set_size(&c->built[f], sizes[f]);
    end(c, "sizes without data");
}

static bool sizes_change(struct cutter *c)
{
    for (size_t i = 0; i < c->unsynced_count; i++) {
        const struct change *change = change_at(c, i);
        const struct content *file = file_at(c, c->durable, c->unsynced[i]);

        if (change->kind == CHANGE_SIZE || change->offset + change->length > file->size)
            return true;
    }
    return false;
}

/* The changes to the synced file become durable. */
static void sync_file(struct cutter *c, size_t record)
{
    unsigned file = c->job->records[record].file;
    size_t left = 0;

    for (size_t i = 0; i < c->unsynced_count; i++) {
        if (c->job->records[c->unsynced[i]].file == file)
            content_apply(file_at(c, c->durable, c->unsynced[i]), change_at(c, i));
        else
            c->unsynced[left++] = c->unsynced[i];
    }
    c->unsynced_count = left;
}

static void take_record(struct cutter *c, size_t i)
{
    if (c->job->records[i].kind == RECORD_SYNC)
        sync_file(c, i);
    else if (c->job->records[i].kind == RECORD_CHANGE)
        c->unsynced[c->unsynced_count++] = i;
}

uint64_t cut_all(const struct cut_job *job)
{
    struct cutter c = {.job = job, .prng = prng_of(job->seed)};

    c.unsynced = calloc(job->count + 1, sizeof(*c.unsynced));
    if (!c.unsynced)
        test_die("out of memory");
    for (unsigned f = 0; f < CUT_FILES; f++)
        content_copy(&c.durable[f], &job->before[f]);
    for (c.point = 0; c.point <= job->count && !c.stopped; c.point++) {
        bool changed = c.point > 0 && job->records[c.point - 1].kind == RECORD_CHANGE;

        if (c.point > 0)
            take_record(&c, c.point - 1);
        cut_prefix(&c);
        if (changed)
            cut_tears(&c);
        if (c.point < job->count && job->records[c.point].kind != RECORD_SYNC)
            continue;
        if (sizes_change(&c))
            cut_sizes(&c);
        cut_subsets(&c);
        cut_garbage(&c);
    }
    for (unsigned f = 0; f < CUT_FILES; f++) {
        content_fini(&c.durable[f]);
        content_fini(&c.built[f]);
    }
    free(c.unsynced);
    return c.number;
}
