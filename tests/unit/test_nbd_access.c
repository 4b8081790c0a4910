/* SPDX-License-Identifier: BSD-3-Clause */
/* Access rules: which clients meet them, which rules are refused; and asking a socket. */
#include "nbd/access.h"

#include "base/checked.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const alt_names[] = {"DNS:a.example", "EMAIL:Al@a.example", "IP:192.0.2.9"};
static gid_t groups[] = {20, 30};

static const struct nbd_identity local = {
    .address.ss_family = AF_UNIX, .uid = 1000, .gid = 100, .groups = groups, .group_count = 2};
static const struct nbd_identity root = {.address.ss_family = AF_UNIX};
static const struct nbd_identity unknown = {.address.ss_family = AF_UNSPEC};

static struct nbd_identity from(const char *address)
{
    struct nbd_identity identity = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&identity.address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&identity.address;
    bool v6 = strchr(address, ':');

    identity.address.ss_family = v6 ? AF_INET6 : AF_INET;
    assert_int_equal(inet_pton(v6 ? AF_INET6 : AF_INET, address,
                               v6 ? (void *)&in6->sin6_addr : (void *)&in->sin_addr),
                     1);
    return identity;
}

static struct nbd_identity with_certificate(const char *name)
{
    struct nbd_identity identity = from("192.0.2.1");

    identity.proof = NBD_PROOF_CERTIFICATE;
    identity.name = name;
    identity.alt_names = alt_names;
    identity.alt_name_count = ARRAY_SIZE(alt_names);
    return identity;
}

static struct nbd_identity with_key(const char *name)
{
    struct nbd_identity identity = from("192.0.2.1");

    identity.proof = NBD_PROOF_KEY;
    identity.name = name;
    return identity;
}

/* Whether any of the rules ("" ends them) lets the client in. */
static bool allowed(const struct nbd_identity *identity, const char *const *rules)
{
    struct nbd_access access;
    struct error error = {""};
    bool allows;

    nbd_access_init(&access);
    for (; *rules; rules++) {
        if (nbd_access_add_text(&access, *rules, &error) < 0)
            fail_msg("'%s': %s", *rules, error.text);
    }
    allows = nbd_access_allows(&access, identity);
    nbd_access_fini(&access);
    return allows;
}

#define ALLOWED(identity, ...) allowed(identity, (const char *const[]){__VA_ARGS__, NULL})

static void test_nobody_named(void **state)
{
    struct nbd_access access;

    nbd_access_init(&access);
    assert_true(nbd_access_allows(NULL, &local));
    assert_true(nbd_access_allows(&access, &local));
    assert_true(nbd_access_allows(&access, NULL));
    nbd_access_fini(&access);
}

static void test_users(void **state)
{
    struct nbd_identity remote = from("192.0.2.1");

    assert_true(ALLOWED(&local, "uid=1000"));
    assert_false(ALLOWED(&local, "uid=1001"));
    assert_true(ALLOWED(&local, "uid=1001", "uid=1000"));
    assert_true(ALLOWED(&local, "gid=100"));
    assert_true(ALLOWED(&local, "gid=30"));
    assert_false(ALLOWED(&local, "gid=40"));
    assert_true(ALLOWED(&local, "uid=1000,gid=20"));
    assert_false(ALLOWED(&local, "uid=1001,gid=20"));
    assert_true(ALLOWED(&root, "uid=0"));
    /* Where there is no user, none is user 0. */
    assert_false(ALLOWED(&remote, "uid=0"));
    assert_false(ALLOWED(&remote, "gid=0"));
    assert_false(ALLOWED(&unknown, "uid=0"));
    assert_false(ALLOWED(NULL, "uid=0"));
}

static void test_addresses(void **state)
{
    static const struct {
        const char *rule, *address;
        bool allowed;
    } rows[] = {
        {"address=192.0.2.1", "192.0.2.1", true},
        {"address=192.0.2.1", "192.0.2.2", false},
        {"address=192.0.2.1", "::ffff:192.0.2.1", true},
        {"address=::ffff:192.0.2.1", "192.0.2.1", true},
        {"address=192.0.2.1/32", "192.0.2.1", true},
        {"address=10.0.0.0/8", "10.255.0.1", true},
        {"address=10.0.0.0/8", "11.0.0.1", false},
        {"address=10.128.0.0/9", "10.127.255.255", false},
        {"address=10.128.0.0/9", "10.128.0.0", true},
        {"address=0.0.0.0/0", "203.0.113.7", true},
        {"address=0.0.0.0/0", "2001:db8::1", false},
        {"address=::/0", "203.0.113.7", true},
        {"address=2001:db8::/32", "2001:db8:ffff::1", true},
        {"address=2001:db8::/32", "2001:db9::1", false},
        {"address=::1", "::1", true},
        {"address=::1", "::2", false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct nbd_identity identity = from(rows[i].address);

        if (ALLOWED(&identity, rows[i].rule) != rows[i].allowed)
            fail_msg("%s for %s", rows[i].rule, rows[i].address);
    }
    assert_false(ALLOWED(&local, "address=::/0"));
    assert_false(ALLOWED(&unknown, "address=::/0"));
}

static void test_names(void **state)
{
    struct nbd_identity certificate = with_certificate("CN=alice,O=Example");
    struct nbd_identity key = with_key("alice"), plain = from("192.0.2.1");
    struct nbd_identity nameless = with_certificate(NULL);

    assert_true(ALLOWED(&certificate, "dn=CN=alice,,O=Example"));
    assert_false(ALLOWED(&certificate, "dn=CN=alice"));
    assert_false(ALLOWED(&certificate, "psk=CN=alice,,O=Example"));
    assert_true(ALLOWED(&certificate, "san=DNS:A.Example"));
    assert_true(ALLOWED(&certificate, "san=EMAIL:Al@a.example"));
    assert_false(ALLOWED(&certificate, "san=EMAIL:al@a.example"));
    assert_false(ALLOWED(&certificate, "san=DNS:b.example"));
    assert_true(ALLOWED(&certificate, "san=IP:192.0.2.9,address=192.0.2.0/24"));
    assert_false(ALLOWED(&certificate, "san=IP:192.0.2.9,address=10.0.0.0/24"));
    assert_true(ALLOWED(&key, "psk=alice"));
    assert_false(ALLOWED(&key, "psk=bob"));
    assert_false(ALLOWED(&key, "dn=alice"));
    assert_false(ALLOWED(&plain, "psk=alice", "dn=alice", "san=DNS:a"));
    assert_false(ALLOWED(&nameless, "dn=CN=alice"));
}

/* Who is asked is up to the connection; access only looks at what was said. */
static void test_authorize(void **state)
{
    struct nbd_authorizer good = {.arg = &good}, same = {.arg = &good}, bad = {.arg = &bad};
    struct nbd_identity alice = with_key("alice");
    struct nbd_access access;
    struct error error;

    nbd_access_init(&access);
    access.authorizer = &good;
    assert_ptr_equal(nbd_access_unasked(&access, &alice), &good);
    assert_false(nbd_access_allows(&access, &alice));
    assert_true(nbd_identity_add_answer(&alice, &bad, false));
    assert_true(nbd_identity_add_answer(&alice, &good, true));
    assert_null(nbd_access_unasked(&access, &alice));
    assert_true(nbd_access_allows(&access, &alice));
    access.authorizer = &same; /* another export's */
    assert_null(nbd_access_unasked(&access, &alice));
    assert_true(nbd_access_allows(&access, &alice));
    access.authorizer = &bad;
    assert_null(nbd_access_unasked(&access, &alice));
    assert_false(nbd_access_allows(&access, &alice));
    assert_null(nbd_access_unasked(&access, &local));
    assert_false(nbd_access_allows(&access, &local));
    assert_false(nbd_access_allows(&access, NULL));
    nbd_identity_fini(&alice);

    /* Nobody is asked about a client that the rules keep out. */
    access.authorizer = &good;
    assert_int_equal(nbd_access_add_text(&access, "address=10.0.0.0/8", &error), 0);
    assert_null(nbd_access_unasked(&access, &alice));
    nbd_access_fini(&access);
}

static void test_bad_rules(void **state)
{
    static const struct {
        const char *rule, *says;
    } rows[] = {
        {"", "no condition"},
        {"uid=root", "'uid' of an access rule must be a number"},
        {"uid=4294967295", "must be below 4294967295"},
        {"gid=9223372036854775807", "must be below 4294967295"},
        {"uid=18446744073709551615,address=::1", "must be below 4294967295"},
        {"user=1", "'user' is unknown"},
        {"address=", "address must not be empty"},
        {"dn=", "dn must not be empty: it is the distinguished name"},
        {"uid=1,psk=", "psk must not be empty"},
        {"san=", "san must not be empty"},
        {"san=DNS:", "and a name follows"},
        {"address=localhost", "is no address"},
        {"address=10.0.0.0/", "is no address"},
        {"address=10.0.0.0/33", "is no address"},
        {"address=10.0.0.0/-1", "is no address"},
        {"address=::/129", "is no address"},
        {"address=10.0.0.1/8", "bits behind the prefix"},
        {"address=2001:db8::1/64", "bits behind the prefix"},
        {"address=1111111111111111111111111111111111111111111111111111", "is no address"},
        {"san=a.example", "must begin with DNS:"},
        {"uid=1,address=::1", "no client can meet"},
        {"psk=a,dn=b", "no client can meet"},
        {"psk=a,san=DNS:b", "no client can meet"},
        {"uid=1,uid=2", "given twice"},
    };
    struct nbd_access access;

    nbd_access_init(&access);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error error = {""};

        assert_int_equal(nbd_access_add_text(&access, rows[i].rule, &error), -EINVAL);
        if (!strstr(error.text, rows[i].says))
            fail_msg("'%s': %s", rows[i].rule, error.text);
    }
    assert_true(list_empty(&access.rules));
    nbd_access_fini(&access);
}

static void test_sockets(void **state)
{
    struct nbd_identity identity;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    nbd_identity_of_socket(fds[0], &identity);
    assert_int_equal(identity.address.ss_family, AF_UNIX);
    assert_int_equal(identity.uid, getuid());
    assert_int_equal(identity.gid, getgid());
    assert_int_equal(identity.group_count, getgroups(0, NULL));
    assert_int_equal(identity.proof, NBD_PROOF_NONE);
    nbd_identity_fini(&identity);
    nbd_identity_fini(&identity);
    close(fds[0]);
    close(fds[1]);
    nbd_identity_of_socket(-1, &identity);
    assert_int_equal(identity.address.ss_family, AF_UNSPEC);
    nbd_identity_fini(&identity);
}

static void test_describe(void **state)
{
    struct nbd_identity mapped = from("::ffff:192.0.2.1"),
                        certificate = with_certificate("O=A\\, B,CN='\nx");
    char text[200];

    assert_string_equal(nbd_identity_describe(&local, text, sizeof(text)),
                        "uid 1000, gid 100, no TLS identity");
    assert_string_equal(nbd_identity_describe(&mapped, text, sizeof(text)),
                        "address 192.0.2.1, no TLS identity");
    assert_string_equal(nbd_identity_describe(&certificate, text, sizeof(text)),
                        "address 192.0.2.1, certificate 'O=A\\, B,CN='\\x0ax'");
    assert_string_equal(nbd_identity_describe(&unknown, text, sizeof(text)),
                        "of unknown origin, no TLS identity");
    assert_int_equal(strlen(nbd_identity_describe(&certificate, text, 5)), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody_named), cmocka_unit_test(test_users),
        cmocka_unit_test(test_addresses),    cmocka_unit_test(test_names),
        cmocka_unit_test(test_authorize),    cmocka_unit_test(test_bad_rules),
        cmocka_unit_test(test_sockets),      cmocka_unit_test(test_describe),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
