/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sparse counts: chunks of 64 one-byte cells, found through a hash of their indices.  A cell is
 * four marks and a count; counts of LARGE and more are in a hash of their own.
 */
#include "blockcore/format/qcow2_counts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LARGE 15u

static size_t hash_of(uint64_t key)
{
    return (size_t)(key * UINT64_C(0x9e3779b97f4a7c15) >> 20);
}

void qcow2_counts_fini(struct qcow2_counts *counts)
{
    free(counts->chunks);
    free(counts->hash);
    free(counts->large);
    *counts = (struct qcow2_counts){0};
}

/* The place of the chunk in the hash, or the free one where it would be. */
static uint32_t *find_slot(const struct qcow2_counts *counts, uint64_t index)
{
    size_t i = hash_of(index) & (counts->hash_max - 1);

    while (counts->hash[i] != 0 && counts->chunks[counts->hash[i] - 1].index != index)
        i = (i + 1) & (counts->hash_max - 1);
    return &counts->hash[i];
}

static void fill_hash(struct qcow2_counts *counts)
{
    memset(counts->hash, 0, counts->hash_max * sizeof(*counts->hash));
    for (size_t i = 0; i < counts->used; i++)
        *find_slot(counts, counts->chunks[i].index) = (uint32_t)i + 1;
}

static int grow_hash(struct qcow2_counts *counts)
{
    size_t max = counts->hash_max ? counts->hash_max * 2 : 256;
    uint32_t *hash;

    if (counts->used + 1 < counts->hash_max / 4 * 3)
        return 0;
    hash = reallocarray(counts->hash, max, sizeof(*hash));
    if (!hash)
        return -ENOMEM;
    counts->hash = hash;
    counts->hash_max = max;
    fill_hash(counts);
    return 0;
}

static int grow_chunks(struct qcow2_counts *counts)
{
    size_t max = counts->max + counts->max / 2 + 64;
    struct counts_chunk *chunks;

    if (counts->used < counts->max)
        return 0;
    if (max >= UINT32_MAX)
        return -ENOMEM;
    chunks = reallocarray(counts->chunks, max, sizeof(*chunks));
    if (!chunks)
        return -ENOMEM;
    counts->chunks = chunks;
    counts->max = max;
    return 0;
}

/* The cell, or NULL when there is none. */
static uint8_t *find_cell(const struct qcow2_counts *counts, uint64_t cluster)
{
    uint32_t number = counts->hash_max ? *find_slot(counts, cluster / COUNTS_PER_CHUNK) : 0;

    return number ? &counts->chunks[number - 1].cells[cluster % COUNTS_PER_CHUNK] : NULL;
}

/* The cell, made when there is none; NULL: out of memory. */
static uint8_t *make_cell(struct qcow2_counts *counts, uint64_t cluster)
{
    uint8_t *cell = find_cell(counts, cluster);

    if (cell)
        return cell;
    if (grow_chunks(counts) < 0 || grow_hash(counts) < 0)
        return NULL;
    counts->chunks[counts->used] = (struct counts_chunk){.index = cluster / COUNTS_PER_CHUNK};
    *find_slot(counts, cluster / COUNTS_PER_CHUNK) = (uint32_t)++counts->used;
    return &counts->chunks[counts->used - 1].cells[cluster % COUNTS_PER_CHUNK];
}

static struct counts_large *find_large(const struct qcow2_counts *counts, uint64_t cluster)
{
    size_t i = hash_of(cluster) & (counts->large_max - 1);

    while (counts->large[i].count != 0 && counts->large[i].cluster != cluster)
        i = (i + 1) & (counts->large_max - 1);
    return &counts->large[i];
}

static int reserve_large(struct qcow2_counts *counts)
{
    struct qcow2_counts grown = {.large_max = counts->large_max ? counts->large_max * 2 : 256};

    if (counts->large_used + 1 < counts->large_max / 4 * 3)
        return 0;
    grown.large = calloc(grown.large_max, sizeof(*grown.large));
    if (!grown.large)
        return -ENOMEM;
    for (size_t i = 0; i < counts->large_max; i++) {
        if (counts->large[i].count != 0)
            *find_large(&grown, counts->large[i].cluster) = counts->large[i];
    }
    free(counts->large);
    counts->large = grown.large;
    counts->large_max = grown.large_max;
    return 0;
}

int qcow2_counts_add(struct qcow2_counts *counts, uint64_t cluster, uint64_t n, unsigned marks)
{
    uint8_t *cell = make_cell(counts, cluster);
    struct counts_large *large;
    uint64_t count;

    if (!cell)
        return -ENOMEM;
    count = *cell & ~COUNT_MARKS;
    if (count < LARGE && n < LARGE - count) {
        *cell = (uint8_t)(*cell + n) | (uint8_t)marks;
        return 0;
    }
    if (reserve_large(counts) < 0)
        return -ENOMEM;
    large = find_large(counts, cluster);
    counts->large_used += large->count == 0;
    if (count < LARGE) /* what may be there is of a cell that was cleared */
        *large = (struct counts_large){cluster, count};
    /* Saturates, which no refcount can match. */
    if (__builtin_add_overflow(large->count, n, &large->count))
        large->count = UINT64_MAX;
    *cell |= (uint8_t)(LARGE | marks);
    return 0;
}

uint64_t qcow2_counts_get(const struct qcow2_counts *counts, uint64_t cluster)
{
    const uint8_t *cell = find_cell(counts, cluster);
    uint64_t count = cell ? *cell & ~COUNT_MARKS : 0;

    return count < LARGE ? count : find_large(counts, cluster)->count;
}

unsigned qcow2_counts_marks(const struct qcow2_counts *counts, uint64_t cluster)
{
    const uint8_t *cell = find_cell(counts, cluster);

    return cell ? *cell & COUNT_MARKS : 0;
}

uint64_t qcow2_counts_find(const struct qcow2_counts *counts, uint64_t first, uint64_t end)
{
    /* By chunks: most of them are not there. */
    while (first < end) {
        uint64_t next = (first / COUNTS_PER_CHUNK + 1) * COUNTS_PER_CHUNK;
        const uint8_t *cell = find_cell(counts, first);

        for (; cell && first < next && first < end; first++, cell++) {
            if (*cell & COUNT_MARKS)
                return first;
        }
        first = next;
    }
    return end;
}

void qcow2_counts_set_marks(struct qcow2_counts *counts, uint64_t cluster, unsigned marks)
{
    uint8_t *cell = find_cell(counts, cluster);

    if (cell)
        *cell = (uint8_t)((*cell & ~COUNT_MARKS) | marks);
}

void qcow2_counts_clear(struct qcow2_counts *counts, uint64_t cluster)
{
    uint8_t *cell = find_cell(counts, cluster);

    /* A large count stays in its hash, unused: the cell does not lead there any more. */
    if (cell)
        *cell = 0;
}

static int compare_chunks(const void *a, const void *b)
{
    const struct counts_chunk *x = a, *y = b;

    return x->index < y->index ? -1 : x->index > y->index;
}

void qcow2_counts_sort(struct qcow2_counts *counts)
{
    if (counts->used == 0)
        return;
    qsort(counts->chunks, counts->used, sizeof(*counts->chunks), compare_chunks);
    fill_hash(counts);
}
