/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Encrypted qcow2 images.  Only guest data is encrypted: with LUKS, whose header and key material
 * are in clusters of their own, sectors are numbered by their place in the file that holds the
 * data; with the old AES method, by their place in the disk.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2.h"
#include "blockcore/luks.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define AES_KEY_BYTES 16

/* The words of encrypt.format, by crypt_method - 1. */
const char *const qcow2_crypt_words[] = {"aes", "luks", NULL};

static const struct cipher_kind aes_kind = {
    .algorithm = CIPHER_AES, .mode = CIPHER_CBC, .iv = CIPHER_IV_PLAIN64};

/* Whether this build can do it. */
static int check_aes(struct error *error)
{
    const char *why;
    int err = cipher_kind_check(&aes_kind, AES_KEY_BYTES, &why);

    return err < 0 ? error_set(error, -err, "cannot encrypt with AES: %s", why) : 0;
}

/* The passphrase is the key: cut, or filled up with zeroes. No value tells whether it is right. */
static int open_aes(struct qcow2 *q, const struct secret *secret, struct error *error)
{
    uint8_t key[AES_KEY_BYTES] = {0};
    int err = check_aes(error);

    if (err < 0)
        return err;
    memcpy(key, secret->data, min_u64(secret->length, sizeof(key)));
    err = cipher_new(&aes_kind, key, sizeof(key), &q->cipher);
    secret_wipe(key, sizeof(key));
    return err < 0 ? error_set_errno(error, -err, "cannot set up the cipher") : 0;
}

static int open_luks(struct qcow2 *q, const struct secret *secret, struct error *error)
{
    const struct luks_area area = {q->file, q->header.crypto_offset, q->header.crypto_length};
    struct luks_header header;
    int err = luks_read_header(&area, &header, error);

    return err < 0 ? err : luks_open(&area, &header, secret, &q->cipher, error);
}

int qcow2_crypt_open(struct qcow2 *q, struct node_open *open, struct error *error)
{
    uint32_t method = q->header.crypt_method;
    const struct secret *secret;
    int err;

    if (method == QCOW2_CRYPT_NONE) {
        if (q->options.key_secret || q->options.crypt_format >= 0)
            return error_set(error, EINVAL,
                             "the option 'encrypt' is given, but the image is not encrypted");
        return 0;
    }
    q->node->encrypted = true;
    if (q->options.crypt_format >= 0 && (uint32_t)q->options.crypt_format + 1 != method)
        return error_set(error, EINVAL,
                         "the option 'encrypt.format' is '%s', but the image is encrypted with %s",
                         qcow2_crypt_words[q->options.crypt_format], qcow2_crypt_words[method - 1]);
    if (open->flags & (NODE_NO_DATA | NODE_REPAIR))
        return 0;
    err = luks_find_secret(open->context->secrets, "encrypt.key-secret", q->options.key_secret,
                           &secret, error);
    if (err < 0)
        return err;
    return method == QCOW2_CRYPT_LUKS ? open_luks(q, secret, error) : open_aes(q, secret, error);
}

/* What numbers the sectors of data at a place. */
static uint64_t cipher_offset(const struct qcow2 *q, uint64_t guest, uint64_t host)
{
    return q->header.crypt_method == QCOW2_CRYPT_LUKS ? host : guest;
}

void qcow2_crypt_extent(const struct qcow2 *q, uint64_t offset, struct extent *e)
{
    if (q->header.crypt_method == QCOW2_CRYPT_NONE || e->kind != EXTENT_DATA)
        return;
    e->flags |= EXTENT_ENCRYPTED;
    e->cipher = q->cipher;
    e->cipher_offset = cipher_offset(q, offset, e->child_offset);
}

void qcow2_crypt_allocation(const struct qcow2 *q, struct allocation *a)
{
    if (q->header.crypt_method == QCOW2_CRYPT_NONE)
        return;
    a->reads_zero = false;
    a->cipher = q->cipher;
    a->cipher_offset = cipher_offset(q, a->offset, a->child_offset);
}

int qcow2_luks_area(struct node *node, struct luks_area *ret, const char **ret_key_secret)
{
    const struct qcow2 *q = node->state;

    if (q->header.crypt_method != QCOW2_CRYPT_LUKS)
        return -ENOTSUP;
    *ret = (struct luks_area){q->file, q->header.crypto_offset, q->header.crypto_length};
    *ret_key_secret = q->options.key_secret;
    return 0;
}

void qcow2_crypt_create_init(struct qcow2_crypt_create *c)
{
    c->format = -1;
    luks_options_init(&c->luks);
}

/* An option that only LUKS has, or NULL. */
static const char *luks_only(const struct luks_options *o)
{
    struct luks_options usual;

    luks_options_init(&usual);
    return o->cipher_alg >= 0                ? "encrypt.cipher-alg"
           : o->cipher_mode >= 0             ? "encrypt.cipher-mode"
           : o->ivgen_alg >= 0               ? "encrypt.ivgen-alg"
           : o->ivgen_hash_alg >= 0          ? "encrypt.ivgen-hash-alg"
           : o->hash_alg >= 0                ? "encrypt.hash-alg"
           : o->iter_time != usual.iter_time ? "encrypt.iter-time"
                                             : NULL;
}

int qcow2_crypt_create_judge(struct qcow2_crypt_create *c, struct error *error)
{
    const char *option = luks_only(&c->luks);
    int err;

    if (c->encryption && c->format >= 0)
        return error_set(error, EINVAL,
                         "'encryption' is the old name of 'encrypt.format', and both are given");
    c->method = c->encryption ? QCOW2_CRYPT_AES : (uint32_t)(c->format + 1);
    if (c->method == QCOW2_CRYPT_NONE && (option || c->luks.key_secret))
        return error_set(error, EINVAL,
                         "'%s' is given, but not how to encrypt: encrypt.format=luks",
                         option ? option : "encrypt.key-secret");
    if (c->method == QCOW2_CRYPT_AES && option)
        return error_set(error, EINVAL, "'%s' is for encrypt.format=luks only", option);
    if (c->method == QCOW2_CRYPT_AES)
        return check_aes(error);
    if (c->method == QCOW2_CRYPT_NONE)
        return 0;
    err = luks_options_judge(&c->luks, &c->header, error);
    c->bytes = (uint64_t)c->header.payload_sector * CIPHER_SECTOR;
    return err;
}

int qcow2_crypt_create_find_secret(struct qcow2_crypt_create *c,
                                   const struct block_context *context, struct error *error)
{
    if (c->method == QCOW2_CRYPT_NONE)
        return 0;
    return luks_find_secret(context->secrets, "encrypt.key-secret", c->luks.key_secret, &c->secret,
                            error);
}

int qcow2_crypt_create_write(struct qcow2_crypt_create *c, struct node *file, uint64_t offset,
                             struct error *error)
{
    const struct luks_area area = {file, offset, c->bytes};

    if (c->method != QCOW2_CRYPT_LUKS)
        return 0;
    return luks_create(&area, &c->luks, &c->header, c->secret, error);
}
