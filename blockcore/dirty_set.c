/* SPDX-License-Identifier: BSD-3-Clause */
/* Sets of dirty bits in memory. See dirty_set.h. */
#include "blockcore/dirty_set.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <stdlib.h>

#define PAGE_BYTES 4096
#define PAGE_BITS (PAGE_BYTES * UINT64_C(8))

/* Stands for every page that is full. */
static const uint8_t full_page[PAGE_BYTES] = {[0 ... PAGE_BYTES - 1] = 0xff};

static uint8_t *full(void)
{
    return (uint8_t *)(uintptr_t)full_page;
}

static uint64_t page_count(const struct dirty_set *set)
{
    return div_round_up(set->bits, PAGE_BITS);
}

void dirty_set_init(struct dirty_set *set, uint64_t bits, struct dirty_budget *budget)
{
    *set = (struct dirty_set){.bits = bits, .budget = budget};
}

static void *take(struct dirty_set *set, size_t bytes)
{
    void *memory;

    if (bytes > set->budget->max - set->budget->used)
        return NULL;
    memory = calloc(1, bytes);
    if (memory)
        set->budget->used += bytes;
    return memory;
}

static void give_back(struct dirty_set *set, void *memory, size_t bytes)
{
    if (!memory || memory == full_page)
        return;
    free(memory);
    set->budget->used -= bytes;
}

void dirty_set_clear(struct dirty_set *set)
{
    for (uint64_t i = 0; set->pages && i < page_count(set); i++)
        give_back(set, set->pages[i], PAGE_BYTES);
    give_back(set, set->pages, page_count(set) * sizeof(*set->pages));
    set->pages = NULL;
    set->any = set->all = false;
}

/* Sets bits [from, to) of a page or array. */
static void set_bits(uint8_t *bytes, uint64_t from, uint64_t to)
{
    for (; from < to && from % 8; from++)
        bytes[from / 8] |= (uint8_t)(1u << from % 8);
    while (from < to && to % 8) {
        to--;
        bytes[to / 8] |= (uint8_t)(1u << to % 8);
    }
    memset(bytes + from / 8, 0xff, (to - from) / 8);
}

/* Bits [from, to) of page `index`. */
static void add_to_page(struct dirty_set *set, uint64_t index, uint64_t from, uint64_t to)
{
    uint8_t **page = &set->pages[index];

    if (*page == full_page)
        return;
    if (from == 0 && to == PAGE_BITS) {
        give_back(set, *page, PAGE_BYTES);
        *page = full();
        return;
    }
    if (!*page)
        *page = take(set, PAGE_BYTES);
    if (*page)
        set_bits(*page, from, to);
    else
        *page = full();
}

void dirty_set_add(struct dirty_set *set, uint64_t first, uint64_t count)
{
    uint64_t end;

    if (first >= set->bits || count == 0 || set->all)
        return;
    end = first + min_u64(count, set->bits - first);
    set->any = true;
    if (!set->pages)
        set->pages = take(set, page_count(set) * sizeof(*set->pages));
    if (!set->pages) {
        set->all = true;
        return;
    }
    for (uint64_t i = first / PAGE_BITS; i * PAGE_BITS < end; i++) {
        uint64_t start = i * PAGE_BITS;

        add_to_page(set, i, max_u64(first, start) - start, min_u64(end - start, PAGE_BITS));
    }
}

/* Adds what is set in `bytes`, whose first bit is bit `first` of the set. */
static void add_bytes(struct dirty_set *set, uint64_t first, const uint8_t *bytes, uint64_t limit)
{
    for (uint64_t i = 0; i < limit;) {
        uint64_t from = dirty_bits_find(bytes, i, limit, true);

        i = dirty_bits_find(bytes, from, limit, false);
        dirty_set_add(set, first + from, i - from);
    }
}

void dirty_set_add_set(struct dirty_set *set, const struct dirty_set *other)
{
    if (other->all)
        dirty_set_add(set, 0, set->bits);
    for (uint64_t i = 0; other->pages && i < page_count(other); i++) {
        if (other->pages[i] == full_page)
            dirty_set_add(set, i * PAGE_BITS, PAGE_BITS);
        else if (other->pages[i])
            add_bytes(set, i * PAGE_BITS, other->pages[i], PAGE_BITS);
    }
}

/* The page that has the bit, NULL: it is empty. */
static const uint8_t *page_of(const struct dirty_set *set, uint64_t bit)
{
    if (set->all)
        return full_page;
    return set->pages && bit < set->bits ? set->pages[bit / PAGE_BITS] : NULL;
}

bool dirty_set_any(const struct dirty_set *set, uint64_t first, uint64_t count)
{
    uint64_t end = first < set->bits ? first + min_u64(count, set->bits - first) : first;

    while (set->any && first < end) {
        uint64_t next = min_u64(align_down(first, PAGE_BITS) + PAGE_BITS, end);
        const uint8_t *page = page_of(set, first);

        if (page && !bytes_are_zero(page + first % PAGE_BITS / 8, div_round_up(next - first, 8)))
            return true;
        first = next;
    }
    return false;
}

/* The bits behind the last one of the set are not set. */
static void cut_tail(const struct dirty_set *set, uint64_t first, uint8_t *bytes, size_t length)
{
    for (uint64_t bit = max_u64(first, set->bits); bit < first + length * 8;) {
        if (bit % 8 == 0) {
            memset(bytes + (bit - first) / 8, 0, length - (bit - first) / 8);
            return;
        }
        bytes[(bit - first) / 8] &= (uint8_t) ~(1u << bit % 8);
        bit++;
    }
}

void dirty_set_or(const struct dirty_set *set, uint64_t first, uint8_t *bytes, size_t length)
{
    uint64_t bit = first, end = first + length * 8;

    if (!set->any)
        return;
    while (bit < end) {
        uint64_t next = min_u64(align_down(bit, PAGE_BITS) + PAGE_BITS, end);
        const uint8_t *page = page_of(set, bit);
        uint8_t *to = bytes + (bit - first) / 8;

        for (uint64_t i = 0; page && i < (next - bit) / 8; i++)
            to[i] |= page[bit % PAGE_BITS / 8 + i];
        bit = next;
    }
    cut_tail(set, first, bytes, length);
}

uint64_t dirty_bits_find(const uint8_t *bytes, uint64_t first, uint64_t limit, bool set)
{
    uint8_t skip = set ? 0 : 0xff;

    while (first < limit) {
        if (first % 8 == 0 && bytes[first / 8] == skip) {
            first += 8;
            continue;
        }
        if ((bytes[first / 8] >> first % 8 & 1) == set)
            return first;
        first++;
    }
    return limit;
}
