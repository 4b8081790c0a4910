/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Contents are kept in large private mappings, so that growing costs nothing and holes take no
 * memory.  Bytes from the size on, and in blocks that are not allocated, are always zero.
 */
#include "tests/support/content.h"

#include "base/iov.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SECTOR 512
#define BLOCKS_MAX (CONTENT_MAX / CONTENT_BLOCK)

static uint8_t *map_zeroes(size_t length)
{
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        test_die("cannot map %zu bytes: %s", length, strerror(errno));
    return p;
}

void content_init(struct content *content)
{
    *content =
        (struct content){.data = map_zeroes(CONTENT_MAX), .allocated = map_zeroes(BLOCKS_MAX)};
}

void content_fini(struct content *content)
{
    if (content->data) {
        munmap(content->data, CONTENT_MAX);
        munmap(content->allocated, BLOCKS_MAX);
    }
    *content = (struct content){.data = NULL};
}

void content_copy(struct content *to, const struct content *from)
{
    uint64_t end = from->end > to->end ? from->end : to->end;

    if (!to->data)
        content_init(to);
    for (uint64_t b = 0; b < end; b++) {
        if (from->allocated[b])
            memcpy(to->data + b * CONTENT_BLOCK, from->data + b * CONTENT_BLOCK, CONTENT_BLOCK);
        else if (to->allocated[b])
            memset(to->data + b * CONTENT_BLOCK, 0, CONTENT_BLOCK);
        to->allocated[b] = from->allocated[b];
    }
    to->size = from->size;
    to->blocks = from->blocks;
    to->end = from->end;
}

/* A block of zeroes counts as one that is not allocated. */
static uint64_t hash_block(const uint8_t *data)
{
    uint64_t hash = 0, any = 0, word;

    for (size_t i = 0; i < CONTENT_BLOCK; i += sizeof(word)) {
        memcpy(&word, data + i, sizeof(word));
        any |= word;
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return any ? hash | 1 : 0;
}

uint64_t content_hash(const struct content *content)
{
    uint64_t hash = content->size, end = div_round_up(content->size, CONTENT_BLOCK);

    for (uint64_t b = 0; b < min_u64(end, content->end); b++) {
        uint64_t block = content->allocated[b] ? hash_block(content->data + b * CONTENT_BLOCK) : 0;

        if (block)
            hash = (hash ^ block ^ b * UINT64_C(0xbf58476d1ce4e5b9)) * UINT64_C(0x94d049bb133111eb);
    }
    return hash;
}

void content_save(const struct content *content, const char *path)
{
    uint64_t blocks = div_round_up(content->size, CONTENT_BLOCK);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    if (fd < 0 || ftruncate(fd, (off_t)content->size) < 0)
        test_die("cannot make %s: %s", path, strerror(errno));
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t at = b * CONTENT_BLOCK, length = min_u64(CONTENT_BLOCK, content->size - at);

        if (content->allocated[b] &&
            pwrite(fd, content->data + at, length, (off_t)at) != (ssize_t)length)
            test_die("cannot write %s: %s", path, strerror(errno));
    }
    close(fd);
}

static struct change *change_new(enum change_kind kind, uint64_t offset, uint64_t length,
                                 size_t data_size)
{
    struct change *change = calloc(1, sizeof(*change) + data_size);

    if (!change)
        test_die("out of memory");
    change->kind = kind;
    change->offset = offset;
    change->length = length;
    return change;
}

struct change *change_write(const struct iovec *iov, int iovcnt, uint64_t offset, uint64_t length)
{
    struct change *change = change_new(CHANGE_WRITE, offset, length, length);

    iov_to_buffer(change->data, iov, iovcnt, 0, length);
    return change;
}

struct change *change_fallocate(int mode, uint64_t offset, uint64_t length)
{
    struct change *change;
    enum change_kind kind;

    switch (mode & ~FALLOC_FL_KEEP_SIZE) {
    case 0:
        kind = CHANGE_ALLOCATE;
        break;
    case FALLOC_FL_ZERO_RANGE:
        kind = CHANGE_ZERO;
        break;
    case FALLOC_FL_PUNCH_HOLE:
        kind = CHANGE_PUNCH;
        break;
    default:
        return NULL;
    }
    change = change_new(kind, offset, length, 0);
    change->keep_size = mode & FALLOC_FL_KEEP_SIZE;
    return change;
}

struct change *change_size(uint64_t size)
{
    return change_new(CHANGE_SIZE, 0, size, 0);
}

void changes_free(struct list *changes)
{
    struct list *node;

    while ((node = list_pop(changes)))
        free(list_entry(node, struct change, link));
}

uint64_t content_blocks_needed(const struct content *content, const struct change *change)
{
    uint64_t end = div_round_up(change->offset + change->length, CONTENT_BLOCK), needed = 0;

    if (change->kind == CHANGE_PUNCH || change->kind == CHANGE_SIZE || change->length == 0)
        return 0;
    for (uint64_t b = change->offset / CONTENT_BLOCK; b < end; b++)
        needed += !content->allocated[b];
    return needed;
}

static void set_allocated(struct content *content, uint64_t first, uint64_t end, bool allocated)
{
    for (uint64_t b = first; b < end; b++) {
        content->blocks += (uint64_t)allocated - content->allocated[b];
        content->allocated[b] = allocated;
    }
    if (allocated && end > content->end)
        content->end = end;
}

static void allocate(struct content *content, uint64_t offset, uint64_t length)
{
    set_allocated(content, offset / CONTENT_BLOCK, div_round_up(offset + length, CONTENT_BLOCK),
                  true);
}

static void clear(struct content *content, uint64_t offset, uint64_t length)
{
    uint64_t end = min_u64(offset + length, content->size);

    if (offset < end)
        memset(content->data + offset, 0, end - offset);
}

static void punch(struct content *content, uint64_t offset, uint64_t length)
{
    uint64_t first = div_round_up(offset, CONTENT_BLOCK);
    uint64_t end = (offset + length) / CONTENT_BLOCK;

    clear(content, offset, length);
    if (first < end)
        set_allocated(content, first, end, false);
}

static void resize(struct content *content, uint64_t size)
{
    uint64_t old = content->size;

    if (size < old) {
        memset(content->data + size, 0, old - size);
        set_allocated(content, div_round_up(size, CONTENT_BLOCK), div_round_up(old, CONTENT_BLOCK),
                      false);
    }
    content->size = size;
}

void content_apply_part(struct content *content, const struct change *change, uint64_t offset,
                        uint64_t length)
{
    uint64_t end = offset + length;

    switch (change->kind) {
    case CHANGE_SIZE:
        resize(content, change->length);
        return;
    case CHANGE_PUNCH:
        punch(content, offset, length);
        return;
    case CHANGE_WRITE:
        memcpy(content->data + offset, change->data + (offset - change->offset), length);
        break;
    case CHANGE_ZERO:
        clear(content, offset, length);
        break;
    case CHANGE_ALLOCATE:
        break;
    }
    allocate(content, offset, length);
    if (end > content->size && !change->keep_size)
        content->size = end;
}

void content_apply(struct content *content, const struct change *change)
{
    content_apply_part(content, change, change->offset, change->length);
}

void content_apply_torn(struct content *content, const struct change *change, struct prng *prng)
{
    uint64_t end = change->offset + change->length, next;
    uint64_t fate = prng_below(prng, 3);

    if (fate == 0)
        return;
    if (fate == 1 || change->kind == CHANGE_SIZE) {
        content_apply(content, change);
        return;
    }
    for (uint64_t at = change->offset; at < end; at = next) {
        next = min_u64(align_down(at, SECTOR) + SECTOR, end);
        if (prng_percent(prng, 50))
            content_apply_part(content, change, at, next - at);
    }
}

uint64_t content_seek(const struct content *content, uint64_t offset, bool data)
{
    uint64_t b = offset / CONTENT_BLOCK, at;

    for (at = offset; at < content->size; at = ++b * CONTENT_BLOCK) {
        if (content->allocated[b] == data)
            return at;
    }
    return content->size;
}
