/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sets of dirty bits in memory: what was written to a disk, at the granularity of a bitmap.
 *
 * Bits are kept in pages, made when one of their bits is set; a page that is full costs nothing.
 * All sets that share a budget have so many bytes together; where the budget, or the memory, is
 * used up, a page, or the whole set, becomes dirty altogether.  So adding never fails and never
 * loses a bit; the set may only say more than was added.
 *
 * In byte arrays bit k is bit k % 8 (the lowest is 0) of byte k / 8.
 */
#ifndef EVNBD_BLOCKCORE_DIRTY_SET_H
#define EVNBD_BLOCKCORE_DIRTY_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dirty_budget {
    size_t used, max; /* bytes */
};

/* Zeroed: an empty set without bits. */
struct dirty_set {
    uint64_t bits;
    struct dirty_budget *budget; /* outlives the set */
    uint8_t **pages; /* NULL until a bit is set; an entry is NULL, a page or the full one */
    bool any, all;
};

void dirty_set_init(struct dirty_set *set, uint64_t bits, struct dirty_budget *budget);
/* Empties the set, which can be used again. */
void dirty_set_clear(struct dirty_set *set);

/* Adds bits [first, first + count), of which those that the set does not have are left out. */
void dirty_set_add(struct dirty_set *set, uint64_t first, uint64_t count);
/* Adds all of another set of as many bits. */
void dirty_set_add_set(struct dirty_set *set, const struct dirty_set *other);

/* Whether a bit of the range is set; `first` and `count` are multiples of 8. */
bool dirty_set_any(const struct dirty_set *set, uint64_t first, uint64_t count);

/* Sets the bits from `first` on, a multiple of 8, that are in the set, in `bytes`. */
void dirty_set_or(const struct dirty_set *set, uint64_t first, uint8_t *bytes, size_t length);

/* First bit from `first` on that is `set`, before `limit`, else `limit`: in a byte array. */
uint64_t dirty_bits_find(const uint8_t *bytes, uint64_t first, uint64_t limit, bool set);

#endif
