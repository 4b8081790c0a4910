/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The LUKS format, version 1: an encrypted disk behind a header and key slots.  It keeps no tables:
 * its map passes every range on, as encrypted, and the core does the rest.  What the disk does not
 * use is noise, never zeroes: holes of the file mean nothing.
 */
#include "blockcore/luks.h"
#include "base/checked.h"
#include "blockcore/create.h"
#include "blockcore/drivers.h"
#include "blockcore/node.h"

#include <errno.h>
#include <inttypes.h>

struct luks {
    char *key_secret;
    struct luks_header header;
    struct cipher *cipher; /* NULL: opened for metadata alone */
    uint64_t payload;      /* byte of the file where the disk begins */
};

static const struct option_row luks_option_rows[] = {
    {"key-secret", OPTION_STRING, offsetof(struct luks, key_secret), NULL,
     "id of the secret that unlocks the disk"},
    {0},
};

static int open_file(struct node *node, struct node_open *open, struct error *error)
{
    unsigned perm = PERM_CONSISTENT_READ, shared = PERM_ALL & ~(unsigned)PERM_RESIZE;

    if (open->flags & NODE_WRITABLE) {
        perm |= PERM_WRITE;
        shared &= ~(unsigned)PERM_WRITE;
    }
    return node_open_file(node, open, perm, shared, error);
}

static int check_payload(struct node *node, struct error *error)
{
    struct luks *luks = node->state;

    if (luks->header.payload_sector == 0)
        return error_set(error, ENOTSUP,
                         "its header is detached, and says nothing about where the disk is: that "
                         "is not supported");
    luks->payload = (uint64_t)luks->header.payload_sector * CIPHER_SECTOR;
    if (luks->payload > node->file->size)
        return error_set(error, EINVAL,
                         "the payload begins at byte %" PRIu64
                         ", beyond the end of the file (%" PRIu64 " bytes)",
                         luks->payload, node->file->size);
    node->size = align_down(node->file->size - luks->payload, CIPHER_SECTOR);
    return 0;
}

static int unlock(struct node *node, struct node_open *open, struct error *error)
{
    struct luks *luks = node->state;
    const struct luks_area area = {node->file, 0, node->file->size};
    const struct secret *secret;
    int err = luks_read_header(&area, &luks->header, error);

    if (err == 0)
        err = check_payload(node, error);
    if (err < 0 || (open->flags & NODE_NO_DATA))
        return err;
    err = luks_find_secret(open->context->secrets, "key-secret", luks->key_secret, &secret, error);
    return err < 0 ? err : luks_open(&area, &luks->header, secret, &luks->cipher, error);
}

static int luks_format_open(struct node *node, struct node_open *open, struct error *error)
{
    int err = options_take(open->options, luks_option_rows, node->state, "driver 'luks'", error);

    if (err == 0)
        err = open_file(node, open, error);
    if (err < 0)
        return err;
    err = unlock(node, open, error);
    if (err < 0)
        error_prefix(error, "%s: ", node_name(node));
    node->encrypted = true;
    return err;
}

static void luks_format_close(struct node *node)
{
    struct luks *luks = node->state;

    cipher_free(luks->cipher);
    options_release(luks_option_rows, luks);
}

static int luks_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    const struct luks *luks = node->state;

    *ret = (struct extent){
        .kind = EXTENT_DATA,
        .flags = EXTENT_WRITABLE | EXTENT_ENCRYPTED,
        .length = length,
        .child = node->file,
        .child_offset = luks->payload + offset,
        .cipher = luks->cipher,
        .cipher_offset = offset,
    };
    return 0;
}

static int luks_header_area(struct node *node, struct luks_area *ret, const char **ret_key_secret)
{
    const struct luks *luks = node->state;

    *ret = (struct luks_area){node->file, 0, luks->payload};
    *ret_key_secret = luks->key_secret;
    return 0;
}

/* New images. */

struct create {
    uint64_t size;
    int preallocation;
    struct luks_options luks;
};

static const struct option_row luks_create_rows[] = {
    {"size", OPTION_SIZE, offsetof(struct create, size), NULL, "bytes of the disk"},
    {"preallocation", OPTION_ENUM, offsetof(struct create, preallocation), preallocation_words,
     "what is allocated at once"},
    LUKS_OPTION_ROWS("", struct create, luks),
    {0},
};

/* `options` loses what is known here. *o is to be released. */
static int take_options(json_t *options, struct create *o, struct luks_header *header,
                        struct error *error)
{
    int err;

    *o = (struct create){.size = UINT64_MAX};
    luks_options_init(&o->luks);
    err = options_take(options, luks_create_rows, o, "format 'luks'", error);
    if (err == 0)
        err = options_finish(options, luks_create_rows, "format 'luks'", error);
    if (err == 0)
        err = luks_options_judge(&o->luks, header, error);
    if (err < 0)
        return err;
    if (o->size == UINT64_MAX)
        return error_set(error, EINVAL, "a new image needs a size");
    if (o->size > OFFSET_MAX - 512 * MIB)
        return error_set(error, EFBIG, "the size is %" PRIu64 " bytes, which no file can have",
                         o->size);
    if (o->preallocation == PREALLOCATION_METADATA)
        return error_set(error, EINVAL,
                         "preallocation=metadata means nothing for the format luks, which has no "
                         "tables");
    o->size = align_up(o->size, CIPHER_SECTOR);
    return 0;
}

static int write_image(const struct create *o, struct luks_header *header, struct node *file,
                       const struct secret *secret, struct error *error)
{
    uint64_t payload = (uint64_t)header->payload_sector * CIPHER_SECTOR;
    const struct luks_area area = {file, 0, payload};
    int err =
        block_preallocate(file, payload, payload + o->size, (enum preallocation)o->preallocation);

    if (err < 0)
        return error_set_errno(error, -err, "cannot make room for the new image %s",
                               node_name(file));
    return luks_create(&area, &o->luks, header, secret, error);
}

static int create(const struct create *o, struct luks_header *header,
                  const struct block_create_target *target, struct error *error)
{
    const struct secret *secret;
    struct node *file;
    int err = luks_find_secret(target->context->secrets, "key-secret", o->luks.key_secret, &secret,
                               error);

    if (err == 0)
        err = block_create_file(target, &file, error);
    if (err < 0)
        return err;
    err = write_image(o, header, file, secret, error);
    node_unref(file);
    return err;
}

static int luks_format_create(const struct block_create_target *target, json_t *options,
                              struct error *error)
{
    struct luks_header header;
    struct create o;
    int err = take_options(options, &o, &header, error);

    if (err == 0)
        err = create(&o, &header, target, error);
    options_release(luks_create_rows, &o);
    return err;
}

static int luks_measure(json_t *options, struct block_measure *ret, struct error *error)
{
    struct luks_header header;
    struct create o;
    int err;

    json_object_del(options, "data_size"); /* data does not matter: all of the disk has storage */
    err = take_options(options, &o, &header, error);
    if (err == 0)
        ret->required = ret->fully_allocated =
            o.size + (uint64_t)header.payload_sector * CIPHER_SECTOR;
    options_release(luks_create_rows, &o);
    return err;
}

/* Other versions, too: what begins like this is no raw disk. */
static const struct magic luks_magics[] = {{0, LUKS_MAGIC_BYTES, LUKS_MAGIC}, {0}};

const struct driver driver_luks = {
    .name = "luks",
    .kind = DRIVER_FORMAT,
    .state_size = sizeof(struct luks),
    .magics = luks_magics,
    .options = luks_option_rows,
    .open = luks_format_open,
    .close = luks_format_close,
    .map = luks_map,
    .luks_area = luks_header_area,
    .create = luks_format_create,
    .measure = luks_measure,
    .create_options = luks_create_rows,
};
