/* SPDX-License-Identifier: BSD-3-Clause */
/* Where clients come from: which of them count as one, and the counts. */
#include "nbd/origin.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/un.h>

#include <cmocka.h>

static struct nbd_origin_key key_of(const char *text)
{
    struct sockaddr_storage address = {.ss_family = AF_INET6};

    if (!strchr(text, ':')) {
        address.ss_family = AF_INET;
        assert_int_equal(inet_pton(AF_INET, text, &((struct sockaddr_in *)&address)->sin_addr), 1);
    } else {
        assert_int_equal(inet_pton(AF_INET6, text, &((struct sockaddr_in6 *)&address)->sin6_addr),
                         1);
    }
    return nbd_origin_key(&address, 0);
}

static bool same(struct nbd_origin_key a, struct nbd_origin_key b)
{
    return memcmp(&a, &b, sizeof(a)) == 0;
}

static void test_addresses(void **state)
{
    assert_true(same(key_of("192.0.2.1"), key_of("192.0.2.1")));
    assert_false(same(key_of("192.0.2.1"), key_of("192.0.2.10")));
    assert_true(same(key_of("192.0.2.1"), key_of("::ffff:192.0.2.1")));
    assert_false(same(key_of("::ffff:192.0.2.1"), key_of("::ffff:192.0.2.2")));
    /* Who has one IPv6 address usually has 2^64 of them. */
    assert_true(same(key_of("2001:db8:1:2::1"), key_of("2001:db8:1:2:ffff::7")));
    assert_false(same(key_of("2001:db8:1:2::1"), key_of("2001:db8:1:3::1")));
    assert_false(same(key_of("::1"), key_of("0.0.0.1")));
}

static void test_users(void **state)
{
    const struct sockaddr_storage local = {.ss_family = AF_UNIX},
                                  unknown = {.ss_family = AF_UNSPEC};

    assert_true(same(nbd_origin_key(&local, 1000), nbd_origin_key(&local, 1000)));
    assert_false(same(nbd_origin_key(&local, 1000), nbd_origin_key(&local, 0)));
    assert_false(same(nbd_origin_key(&local, 0), key_of("0.0.0.0")));
    assert_true(same(nbd_origin_key(&unknown, 1), nbd_origin_key(&unknown, 2)));
}

static void test_counts(void **state)
{
    static struct nbd_origins origins;
    const struct nbd_origin_key a = key_of("192.0.2.1"), b = key_of("192.0.2.2");
    struct nbd_origin *one, *other;

    nbd_origins_init(&origins);
    one = nbd_origins_enter(&origins, &a);
    other = nbd_origins_enter(&origins, &b);
    assert_ptr_not_equal(one, other);
    assert_ptr_equal(nbd_origins_enter(&origins, &a), one);
    assert_int_equal(one->handshakes, 2);
    nbd_origin_promote(one);
    assert_int_equal(one->handshakes, 1);
    assert_int_equal(one->clients, 1);
    nbd_origin_leave(one, false);
    assert_int_equal(one->clients, 1);
    nbd_origin_leave(one, true);
    nbd_origin_leave(other, false);
    for (int i = 0; i < NBD_ORIGIN_BUCKETS; i++)
        assert_true(list_empty(&origins.buckets[i]));
}

/* Many origins find their entries again, and no list is much longer than the others. */
static void test_many(void **state)
{
    enum { COUNT = 4096 };
    static struct nbd_origins origins;
    static struct nbd_origin *entries[COUNT];
    struct sockaddr_storage address = {.ss_family = AF_INET};
    unsigned longest = 0;

    nbd_origins_init(&origins);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < COUNT; i++) {
            struct nbd_origin_key key;

            ((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(0x0a000000 + i);
            key = nbd_origin_key(&address, 0);
            if (round == 0)
                entries[i] = nbd_origins_enter(&origins, &key);
            else
                assert_ptr_equal(nbd_origins_enter(&origins, &key), entries[i]);
        }
    }
    for (int i = 0; i < NBD_ORIGIN_BUCKETS; i++) {
        unsigned length = 0;

        list_for_each(it, &origins.buckets[i]) length++;
        longest = length > longest ? length : longest;
    }
    assert_in_range(longest, COUNT / NBD_ORIGIN_BUCKETS, 5 * COUNT / NBD_ORIGIN_BUCKETS);
    for (unsigned i = 0; i < COUNT; i++) {
        nbd_origin_leave(entries[i], false);
        nbd_origin_leave(entries[i], false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_users),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
