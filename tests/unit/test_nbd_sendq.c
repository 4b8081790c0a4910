/* SPDX-License-Identifier: BSD-3-Clause */
/* The output queue, over a stream that takes as much as the test lets it. */
#include "nbd/sendq.h"

#include "base/buffer.h"
#include "base/reactor.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A stream that collects. Its "files" hold at each offset the low byte of that offset. */
struct collector {
    struct stream stream;
    uint8_t *data;
    size_t length, room;
    size_t allowance;   /* bytes that are taken before -EAGAIN */
    uint64_t file_size; /* of every file */
    int error;
    unsigned sends, files, more;
};

static struct collector *collector_of(struct stream *stream)
{
    return container_of(stream, struct collector, stream);
}

static uint8_t *take(struct collector *c, size_t length)
{
    if (c->length + length > c->room) {
        c->room = 2 * (c->length + length);
        c->data = realloc(c->data, c->room);
        if (!c->data)
            test_die("out of memory");
    }
    c->length += length;
    c->allowance -= length;
    return c->data + c->length - length;
}

static ssize_t collect(struct stream *stream, const struct iovec *iov, int iovcnt, bool more)
{
    struct collector *c = collector_of(stream);
    size_t taken = 0;

    c->sends++;
    c->more += more;
    if (c->error)
        return c->error;
    for (int i = 0; i < iovcnt && c->allowance > 0; i++) {
        size_t n = min_u64(iov[i].iov_len, c->allowance);

        assert_true(iov[i].iov_len > 0);
        memcpy(take(c, n), iov[i].iov_base, n);
        taken += n;
    }
    return taken ? (ssize_t)taken : -EAGAIN;
}

static ssize_t collect_file(struct stream *stream, int fd, uint64_t offset, size_t length)
{
    struct collector *c = collector_of(stream);
    size_t n = min_u64(length, c->allowance);
    uint8_t *out;

    c->files++;
    assert_int_equal(fd, 77);
    if (offset >= c->file_size)
        return 0;
    n = min_u64(n, c->file_size - offset);
    if (n == 0)
        return -EAGAIN;
    out = take(c, n);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(offset + i);
    return (ssize_t)n;
}

static const struct stream_ops collector_ops = {.send = collect, .send_file = collect_file};

struct fixture {
    struct nbd_memory memory;
    struct nbd_share share;
    struct nbd_sendq q;
    struct collector out;
    struct reactor_deferred wake;
};

static void fixture_init(struct fixture *f)
{
    *f = (struct fixture){
        .out = {.stream = {.ops = &collector_ops}, .allowance = SIZE_MAX, .file_size = UINT64_MAX}};
    nbd_memory_init(&f->memory);
    nbd_share_init(&f->share, &f->memory, &f->wake);
    nbd_sendq_init(&f->q, &f->share);
}

static void fixture_fini(struct fixture *f)
{
    nbd_sendq_fini(&f->q);
    assert_int_equal(f->share.used, 0);
    nbd_share_fini(&f->share);
    free(f->out.data);
    assert_int_equal(buffer_bytes_used(), 0);
    buffer_pool_trim();
}

static void put(struct fixture *f, uint8_t byte, size_t length)
{
    uint8_t *at = nbd_sendq_reserve(&f->q, length);

    assert_non_null(at);
    memset(at, byte, length);
    nbd_sendq_commit(&f->q, length);
}

static int send_all(struct fixture *f)
{
    return nbd_sendq_send(&f->q, &f->out.stream);
}

/* Replies that lie side by side are one vector: one send, and the chunk is given back after it. */
static void test_side_by_side(void **state)
{
    struct fixture f;

    fixture_init(&f);
    for (int i = 0; i < 50; i++)
        put(&f, (uint8_t)i, 100);
    assert_int_equal(f.q.count, 1);
    assert_int_equal(f.q.queued, 5000);
    assert_int_equal(f.share.used, NBD_CHUNK_BYTES);
    assert_int_equal(send_all(&f), 0);
    assert_int_equal(f.out.sends, 1);
    assert_int_equal(f.out.length, 5000);
    for (size_t i = 0; i < 5000; i++)
        assert_int_equal(f.out.data[i], i / 100);
    assert_int_equal(f.q.queued, 0);
    assert_int_equal(f.q.sent, 5000);
    assert_int_equal(f.share.used, 0);
    fixture_fini(&f);
}

/* A piece of the file; its place in the export is the one in the file, and 5000 more. */
static void put_file(struct fixture *f, uint64_t offset, size_t length)
{
    const struct block_extent file = {77, offset, length};

    nbd_sendq_file(&f->q, &file, &(struct nbd_file_use){0xc00c1e, 5000, 5000 + offset});
}

static void test_given_back_reservation(void **state)
{
    struct fixture f;
    uint8_t *first;

    fixture_init(&f);
    put(&f, 1, 10);
    first = nbd_sendq_reserve(&f.q, 1000);
    memset(first, 9, 1000);
    nbd_sendq_commit(&f.q, 0);
    assert_ptr_equal(nbd_sendq_reserve(&f.q, 500), first);
    memset(first, 2, 500);
    nbd_sendq_commit(&f.q, 20); /* and less than was reserved */
    assert_int_equal(send_all(&f), 0);
    assert_int_equal(f.out.length, 30);
    assert_int_equal(f.out.data[9], 1);
    assert_int_equal(f.out.data[10], 2);
    fixture_fini(&f);
}

/* Memory, buffers and files in any order, taken in pieces of any size: the same bytes. */
static void test_mixed_in_pieces(void **state)
{
    static const size_t pieces[] = {1, 7, 16, 1000, 65536, SIZE_MAX};
    uint8_t *whole = NULL;
    size_t length = 0;

    for (size_t p = ARRAY_SIZE(pieces); p-- > 0;) {
        struct fixture f;
        struct prng prng = prng_of(5);
        size_t expected = 0;

        fixture_init(&f);
        for (int i = 0; i < 60; i++) {
            size_t n = 1 + prng_below(&prng, 3000);

            put(&f, (uint8_t)i, 16);
            expected += 16 + n;
            if (i % 3 == 0) {
                put_file(&f, 1000 * (uint64_t)i, n);
            } else if (i % 3 == 1) {
                uint8_t *buffer = buffer_get(n);

                assert_non_null(buffer);
                memset(buffer, 0x80 + i, n);
                nbd_sendq_buffer(&f.q, buffer, n);
            } else {
                put(&f, (uint8_t)(0x40 + i), n);
            }
        }
        assert_int_equal(f.q.queued, expected);
        while (f.q.count > 0) {
            f.out.allowance = pieces[p];
            f.q.blocked = false;
            assert_int_equal(send_all(&f), 0);
        }
        assert_int_equal(f.out.length, expected);
        if (whole) {
            assert_int_equal(length, expected);
            assert_memory_equal(f.out.data, whole, length);
        } else {
            whole = f.out.data;
            length = f.out.length;
            f.out.data = NULL;
        }
        fixture_fini(&f);
    }
    free(whole);
}

static void test_more_than_a_chunk(void **state)
{
    struct fixture f;

    fixture_init(&f);
    for (int i = 0; i < 40; i++)
        put(&f, (uint8_t)i, 60000);
    put(&f, 99, NBD_RESERVE_MAX);
    assert_true(f.share.used >= 40 * 60000);
    assert_int_equal(send_all(&f), 0);
    assert_int_equal(f.out.length, 40 * 60000 + NBD_RESERVE_MAX);
    for (size_t i = 0; i < 40; i++)
        assert_int_equal(f.out.data[i * 60000 + 59999], i);
    assert_int_equal(f.share.used, 0);
    fixture_fini(&f);
}

/* A header before a file says that more follows at once. */
static void test_more_before_file(void **state)
{
    struct fixture f;

    fixture_init(&f);
    put(&f, 1, 16);
    put_file(&f, 0, 5);
    put(&f, 2, 16);
    assert_int_equal(send_all(&f), 0);
    assert_int_equal(f.out.sends, 2);
    assert_int_equal(f.out.more, 1);
    assert_int_equal(f.out.files, 1);
    assert_memory_equal(f.out.data + 16, "\0\1\2\3\4\2", 6);
    fixture_fini(&f);
}

static void test_blocked(void **state)
{
    struct fixture f;

    fixture_init(&f);
    put(&f, 1, 100);
    f.out.allowance = 30;
    assert_int_equal(send_all(&f), 0);
    assert_true(f.q.blocked);
    assert_int_equal(f.q.queued, 70);
    /* Until it is told otherwise it does not ask again. */
    assert_int_equal(send_all(&f), 0);
    assert_int_equal(f.out.sends, 1);
    put(&f, 2, 5);
    f.q.blocked = false;
    f.out.allowance = SIZE_MAX;
    assert_int_equal(send_all(&f), 0);
    assert_false(f.q.blocked);
    assert_int_equal(f.out.length, 105);
    assert_int_equal(f.out.data[99], 1);
    assert_int_equal(f.out.data[100], 2);
    fixture_fini(&f);
}

static void test_errors(void **state)
{
    struct fixture f;

    fixture_init(&f);
    put(&f, 1, 100);
    f.out.error = -EPIPE;
    assert_int_equal(send_all(&f), -EPIPE);
    assert_int_equal(f.q.queued, 100);
    fixture_fini(&f);

    fixture_init(&f);
    f.out.file_size = 1000;
    put(&f, 1, 16);
    put_file(&f, 900, 200);
    assert_int_equal(send_all(&f), 0); /* a short one may go on later */
    f.q.blocked = false;
    assert_int_equal(send_all(&f), -ENODATA);
    assert_int_equal(f.out.length, 116);
    fixture_fini(&f);
}

/*
 * Two files that are one part of a reply cannot be read to their end: zeroes go in their place, the
 * notice behind, and what was queued later comes as it was.
 */
static void test_give_up_file(void **state)
{
    struct fixture f;
    struct nbd_file_use use;

    fixture_init(&f);
    f.out.file_size = 1000;
    put(&f, 1, 16);
    put_file(&f, 900, 200);
    put_file(&f, 1200, 40000);
    put(&f, 2, 16);
    put_file(&f, 10, 5);
    assert_false(nbd_sendq_file_in_front(&f.q, &use));
    assert_int_equal(send_all(&f), 0);
    f.q.blocked = false;
    assert_int_equal(send_all(&f), -ENODATA);
    assert_true(nbd_sendq_file_in_front(&f.q, &use));
    assert_int_equal(use.cookie, 0xc00c1e);
    assert_int_equal(use.request_offset, 5000);
    assert_int_equal(use.position, 6000);
    assert_true(nbd_sendq_give_up_file(&f.q, "notice", 6));
    while (f.q.count > 0) {
        f.q.blocked = false;
        f.out.allowance = 777;
        assert_int_equal(send_all(&f), 0);
    }
    assert_int_equal(f.out.length, 16 + 200 + 40000 + 6 + 16 + 5);
    assert_int_equal(f.out.data[16 + 99], 999 & 0xff);
    for (size_t i = 16 + 100; i < 16 + 40200; i++)
        assert_int_equal(f.out.data[i], 0);
    assert_memory_equal(f.out.data + 16 + 40200, "notice\2\2", 8);
    assert_memory_equal(f.out.data + 16 + 40200 + 6 + 16, "\n\v\f\r\016", 5);
    assert_int_equal(f.share.used, 0);
    fixture_fini(&f);
}

/* The notice comes at the end of the queue, and in one whose ring is full and wrapped. */
static void test_give_up_in_a_full_ring(void **state)
{
    for (unsigned before = 0; before < 40; before++) {
        struct fixture f;

        fixture_init(&f);
        f.out.file_size = 100;
        for (unsigned i = 0; i < before; i++) {
            put(&f, 2, 1);
            put_file(&f, i, 1);
        }
        assert_int_equal(send_all(&f), 0);
        put(&f, 2, 1);
        put_file(&f, 100, 7);
        for (unsigned i = 0; i < before; i++) {
            put(&f, 1, 1);
            put_file(&f, i, 1);
        }
        assert_int_equal(send_all(&f), -ENODATA);
        assert_true(nbd_sendq_give_up_file(&f.q, "!", 1));
        assert_int_equal(send_all(&f), 0);
        assert_int_equal(f.out.length, 4 * before + 9);
        assert_memory_equal(f.out.data + 2 * before, "\2\0\0\0\0\0\0\0!", 9);
        for (unsigned i = 0; i < before; i++)
            assert_int_equal(f.out.data[2 * before + 9 + 2 * i + 1], i);
        fixture_fini(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_side_by_side),
        cmocka_unit_test(test_given_back_reservation),
        cmocka_unit_test(test_mixed_in_pieces),
        cmocka_unit_test(test_more_than_a_chunk),
        cmocka_unit_test(test_more_before_file),
        cmocka_unit_test(test_blocked),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_give_up_file),
        cmocka_unit_test(test_give_up_in_a_full_ring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
