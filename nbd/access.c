/* SPDX-License-Identifier: BSD-3-Clause */
/* Rules about clients: parsing and matching. Nothing here touches a socket. */
#include "nbd/access.h"

#include "base/checked.h"
#include "base/size.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* A network: the first `bits` bits of an IPv6 address; IPv4 is mapped into it. */
struct network {
    uint8_t bytes[16];
    unsigned bits;
};

struct rule {
    struct list link;
    bool has_uid, has_gid;
    uint64_t uid, gid;
    char *address;          /* NULL: whatever it is; the same below */
    struct network network; /* what `address` says */
    char *dn, *san, *psk;
};

static const struct option_row rows[] = {
    {"uid", OPTION_NUMBER, offsetof(struct rule, uid), NULL, "user of a Unix socket's client"},
    {"gid", OPTION_NUMBER, offsetof(struct rule, gid), NULL, "group of a Unix socket's client"},
    {"address", OPTION_STRING, offsetof(struct rule, address), NULL,
     "IP address, or network such as 10.0.0.0/8"},
    {"dn", OPTION_STRING, offsetof(struct rule, dn), NULL,
     "distinguished name of the client's certificate"},
    {"san", OPTION_STRING, offsetof(struct rule, san), NULL,
     "alternative name of the client's certificate, such as DNS:host"},
    {"psk", OPTION_STRING, offsetof(struct rule, psk), NULL,
     "user name of the client's pre-shared key"},
    {NULL},
};

static const uint8_t mapped_prefix[12] = {[10] = 0xff, [11] = 0xff};

/* ---- Parsing ---- */

/* Splits "address/bits" and reads both. 0 or -EINVAL. */
static int parse_network(const char *text, struct network *ret)
{
    size_t length = strcspn(text, "/");
    uint64_t bits = 128, shift = 0;
    char address[INET6_ADDRSTRLEN];

    if (length >= sizeof(address))
        return -EINVAL;
    memcpy(address, text, length);
    address[length] = '\0';
    if (inet_pton(AF_INET, address, ret->bytes + 12) == 1) {
        memcpy(ret->bytes, mapped_prefix, sizeof(mapped_prefix));
        shift = 96;
    } else if (inet_pton(AF_INET6, address, ret->bytes) != 1) {
        return -EINVAL;
    }
    if (text[length] && number_parse(text + length + 1, 128 - shift, &bits) < 0)
        return -EINVAL;
    ret->bits = (unsigned)(text[length] ? bits + shift : bits);
    return 0;
}

/* Whether the first `bits` bits are the same. */
static bool same_start(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned bytes = bits / 8, rest = bits % 8;

    if (memcmp(a, b, bytes) != 0)
        return false;
    return rest == 0 || (a[bytes] ^ b[bytes]) >> (8 - rest) == 0;
}

/* Bits beyond the prefix are more likely a slip than meant. */
static bool has_host_bits(const struct network *network)
{
    for (unsigned i = network->bits; i < 128; i++) {
        if (network->bytes[i / 8] & 0x80 >> i % 8)
            return true;
    }
    return false;
}

static int check_address(struct rule *rule, struct error *error)
{
    char shown[80];

    error_escape(shown, sizeof(shown), rule->address, strlen(rule->address));
    if (parse_network(rule->address, &rule->network) < 0)
        return error_set(error, EINVAL,
                         "'%s' is no address of a client: an IPv4 or IPv6 address is needed, or "
                         "one with the length of a prefix, such as 10.0.0.0/8",
                         shown);
    if (has_host_bits(&rule->network))
        return error_set(error, EINVAL,
                         "'%s' is no network: bits behind the prefix are set; shorten the address "
                         "or lengthen the prefix",
                         shown);
    return 0;
}

/* An empty value is most likely a variable of a script that was not set. */
static int check_not_empty(const struct rule *rule, struct error *error)
{
    const struct option_row *row = rows;

    for (; row->name; row++) {
        const char *value;

        if (row->type != OPTION_STRING)
            continue;
        value = *(char *const *)((const char *)rule + row->offset);
        if (value && !*value)
            return error_set(error, EINVAL, "a rule's %s must not be empty: it is the %s",
                             row->name, row->help);
    }
    return 0;
}

static int check_san(const char *san, struct error *error)
{
    static const char *const kinds[] = {"DNS:", "EMAIL:", "URI:", "IP:"};

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        size_t length = strlen(kinds[i]);

        if (strncmp(san, kinds[i], length) == 0 && san[length])
            return 0;
    }
    return error_set(error, EINVAL,
                     "a rule's san must begin with DNS:, EMAIL:, URI: or IP:, and a name follows, "
                     "as in san=DNS:client.example.com");
}

static int check_rule(struct rule *rule, struct error *error)
{
    bool unix_peer = rule->has_uid || rule->has_gid;

    if (rule->uid >= UINT32_MAX || rule->gid >= UINT32_MAX)
        return error_set(error, EINVAL, "a rule's uid and gid must be below %" PRIu32, UINT32_MAX);
    if (check_not_empty(rule, error) < 0 || (rule->san && check_san(rule->san, error) < 0))
        return -EINVAL;
    if ((unix_peer && rule->address) || ((rule->dn || rule->san) && rule->psk))
        return error_set(error, EINVAL,
                         "no client can meet this rule: it has either an address or a user, and "
                         "either a certificate or a pre-shared key");
    if (!unix_peer && !rule->address && !rule->dn && !rule->san && !rule->psk)
        return error_set(error, EINVAL,
                         "the rule has no condition: uid, gid, address, dn, san or "
                         "psk is needed");
    return rule->address ? check_address(rule, error) : 0;
}

static void rule_free(struct rule *rule)
{
    options_release(rows, rule);
    free(rule);
}

int nbd_access_add(struct nbd_access *access, json_t *tree, struct error *error)
{
    struct rule *rule = calloc(1, sizeof(*rule));
    int r;

    if (!rule)
        return error_set(error, ENOMEM, "out of memory");
    rule->has_uid = json_object_get(tree, "uid");
    rule->has_gid = json_object_get(tree, "gid");
    r = options_take(tree, rows, rule, "an access rule", error);
    if (r == 0)
        r = options_finish(tree, rows, "an access rule", error);
    if (r == 0)
        r = check_rule(rule, error);
    if (r < 0) {
        rule_free(rule);
        return r;
    }
    list_append(&access->rules, &rule->link);
    return 0;
}

int nbd_access_add_text(struct nbd_access *access, const char *text, struct error *error)
{
    json_t *tree;
    int r = options_parse(text, NULL, &tree, error);

    if (r < 0)
        return r;
    r = nbd_access_add(access, tree, error);
    json_decref(tree);
    return r;
}

void nbd_access_init(struct nbd_access *access)
{
    *access = (struct nbd_access){0};
    list_init(&access->rules);
}

void nbd_access_fini(struct nbd_access *access)
{
    struct list *node;

    while ((node = list_pop(&access->rules)))
        rule_free(list_entry(node, struct rule, link));
}

/* ---- Matching ---- */

/* The client's address, IPv4 mapped. False: it has none. */
static bool address_of(const struct nbd_identity *identity, uint8_t bytes[16])
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)&identity->address;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&identity->address;

    if (identity->address.ss_family == AF_INET) {
        memcpy(bytes, mapped_prefix, sizeof(mapped_prefix));
        memcpy(bytes + 12, &in->sin_addr, 4);
    } else if (identity->address.ss_family == AF_INET6) {
        memcpy(bytes, &in6->sin6_addr, 16);
    } else {
        return false;
    }
    return true;
}

static bool in_network(const struct nbd_identity *identity, const struct network *network)
{
    uint8_t bytes[16];

    return address_of(identity, bytes) && same_start(bytes, network->bytes, network->bits);
}

static bool in_group(const struct nbd_identity *identity, uint64_t gid)
{
    for (size_t i = 0; i < identity->group_count; i++) {
        if (identity->groups[i] == gid)
            return true;
    }
    return identity->gid == gid;
}

static bool has_name(const struct nbd_identity *identity, enum nbd_identity_proof proof,
                     const char *name)
{
    return identity->proof == proof && identity->name && strcmp(identity->name, name) == 0;
}

static bool has_alt_name(const struct nbd_identity *identity, const char *name)
{
    bool is_host = strncmp(name, "DNS:", 4) == 0;

    for (size_t i = 0; i < identity->alt_name_count; i++) {
        const char *other = identity->alt_names[i];

        if (is_host ? strcasecmp(other, name) == 0 : strcmp(other, name) == 0)
            return identity->proof == NBD_PROOF_CERTIFICATE;
    }
    return false;
}

static bool rule_matches(const struct rule *rule, const struct nbd_identity *identity)
{
    bool local = identity->address.ss_family == AF_UNIX;

    return (!rule->has_uid || (local && identity->uid == rule->uid)) &&
           (!rule->has_gid || (local && in_group(identity, rule->gid))) &&
           (!rule->address || in_network(identity, &rule->network)) &&
           (!rule->dn || has_name(identity, NBD_PROOF_CERTIFICATE, rule->dn)) &&
           (!rule->san || has_alt_name(identity, rule->san)) &&
           (!rule->psk || has_name(identity, NBD_PROOF_KEY, rule->psk));
}

static bool some_rule_matches(const struct nbd_access *access, const struct nbd_identity *identity)
{
    list_for_each(it, &access->rules)
    {
        if (rule_matches(list_entry(it, struct rule, link), identity))
            return true;
    }
    return list_empty(&access->rules);
}

bool nbd_access_allows(const struct nbd_access *access, const struct nbd_identity *identity)
{
    static const struct nbd_identity unknown = {.address.ss_family = AF_UNSPEC};
    const struct nbd_answer *answer;

    if (!access)
        return true;
    if (!identity)
        identity = &unknown;
    if (!some_rule_matches(access, identity))
        return false;
    if (!access->authorizer)
        return true;
    answer = nbd_identity_answer(identity, access->authorizer);
    return answer && answer->yes;
}

const struct nbd_authorizer *nbd_access_unasked(const struct nbd_access *access,
                                                const struct nbd_identity *identity)
{
    if (!access || !access->authorizer || !identity->name ||
        nbd_identity_answer(identity, access->authorizer) || !some_rule_matches(access, identity))
        return NULL;
    return access->authorizer;
}

/* ---- Telling ---- */

static void describe_socket(const struct nbd_identity *identity, char *out, size_t out_size)
{
    char text[INET6_ADDRSTRLEN];
    uint8_t bytes[16];

    if (identity->address.ss_family == AF_UNIX) {
        snprintf(out, out_size, "uid %u, gid %u", identity->uid, identity->gid);
    } else if (address_of(identity, bytes)) {
        bool mapped = memcmp(bytes, mapped_prefix, sizeof(mapped_prefix)) == 0;

        inet_ntop(mapped ? AF_INET : AF_INET6, mapped ? bytes + 12 : bytes, text, sizeof(text));
        snprintf(out, out_size, "address %s", text);
    } else {
        snprintf(out, out_size, "of unknown origin");
    }
}

char *nbd_identity_describe(const struct nbd_identity *identity, char *out, size_t out_size)
{
    static const char *const proofs[] = {
        [NBD_PROOF_NONE] = "no TLS identity",
        [NBD_PROOF_CERTIFICATE] = "certificate",
        [NBD_PROOF_KEY] = "pre-shared key",
    };
    char socket[80], name[256];

    describe_socket(identity, socket, sizeof(socket));
    if (identity->name)
        snprintf(out, out_size, "%s, %s '%s'", socket, proofs[identity->proof],
                 error_printable(name, sizeof(name), identity->name, strlen(identity->name)));
    else
        snprintf(out, out_size, "%s, %s", socket, proofs[NBD_PROOF_NONE]);
    return out;
}
