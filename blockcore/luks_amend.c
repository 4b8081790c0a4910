/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the key slots of a LUKS volume. See luks.h.
 *
 * Adding: key material first, durably, then the header that makes it valid.  Erasing: the material
 * is overwritten with random bytes, more than once and durably each time, then the slot becomes
 * free; what a disk keeps of old sectors cannot be reached from here.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "base/sys.h"
#include "blockcore/block.h"
#include "blockcore/luks_key.h"

#include <errno.h>
#include <inttypes.h>

#define ERASE_PASSES 3

/* A change of key slots. */
struct luks_amend {
    bool erase;                      /* else a key is added */
    int keyslot;                     /* -1: erase: those that old_secret opens; add: a free one */
    const struct secret *unlock;     /* opens the volume; not needed to erase by number */
    const struct secret *old_secret; /* erase: what opens the slots that go */
    const struct secret *new_secret; /* add */
    uint64_t iter_time;              /* add: milliseconds */
    bool force;                      /* the last slot may go, a used one may be replaced */
};

static unsigned count_active(const struct luks_header *h)
{
    unsigned count = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        count += h->slots[i].active;
    return count;
}

static int overwrite(const struct luks_area *area, const struct luks_header *h, unsigned index)
{
    const struct luks_slot *slot = &h->slots[index];
    size_t bytes = luks_material_sectors(h->key_bytes, slot->stripes) * CIPHER_SECTOR;
    uint8_t *noise = buffer_get(bytes);
    int err = noise ? 0 : -ENOMEM;

    for (unsigned i = 0; i < ERASE_PASSES && err == 0; i++) {
        err = sys->random(noise, bytes);
        if (err == 0)
            err = block_write(area->file, noise, bytes,
                              area->offset + (uint64_t)slot->sector * CIPHER_SECTOR, BLOCK_FUA);
    }
    buffer_put(noise, bytes);
    return err;
}

static int erase_slot(const struct luks_area *area, struct luks_header *h, unsigned index,
                      struct error *error)
{
    int err = overwrite(area, h, index);

    if (err < 0)
        return error_set_errno(error, -err, "cannot overwrite key slot %u", index);
    h->slots[index].active = false;
    h->slots[index].iterations = 0;
    return luks_write_header(area, h, error);
}

/* Which slots are to go, as bits: the one that was named, or all that the old secret opens. */
static int find_erased(const struct luks_area *area, const struct luks_header *h,
                       const struct luks_amend *amend, unsigned *ret, struct error *error)
{
    uint8_t key[CIPHER_KEY_MAX];

    *ret = 0;
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int err = 0;

        if (!h->slots[i].active || (amend->keyslot >= 0 && (unsigned)amend->keyslot != i))
            continue;
        if (amend->old_secret)
            err = luks_try_slot(area, h, i, amend->old_secret, key);
        if (err == 0)
            *ret |= 1u << i;
        else if (err != -EACCES && err != -ETIME)
            return error_set_errno(error, -err, "cannot read key slot %u", i);
    }
    secret_wipe(key, sizeof(key));
    if (*ret == 0 && amend->keyslot >= 0)
        return error_set(error, EINVAL, "key slot %d is not in use%s", amend->keyslot,
                         amend->old_secret ? ", or does not open with the old secret" : "");
    if (*ret == 0)
        return error_set(error, EACCES, "no key slot opens with the old secret");
    return 0;
}

static int erase(const struct luks_area *area, struct luks_header *h,
                 const struct luks_amend *amend, struct error *error)
{
    unsigned slots;
    int err;

    if (amend->keyslot < 0 && !amend->old_secret)
        return error_set(error, EINVAL,
                         "which key slot is to be erased must be said: by its number (keyslot), or "
                         "by the secret that opens it (old-secret)");
    err = find_erased(area, h, amend, &slots, error);
    if (err < 0)
        return err;
    if ((unsigned)__builtin_popcount(slots) == count_active(h) && !amend->force)
        return error_set(error, EPERM,
                         "no key slot would be left in use, and the data would be lost for ever: "
                         "that needs force");
    for (unsigned i = 0; i < LUKS_SLOTS && err == 0; i++) {
        if (slots & 1u << i)
            err = erase_slot(area, h, i, error);
    }
    return err;
}

/* Whether key material can be put where the slot says. */
static int check_usable(const struct luks_area *area, const struct luks_header *h, unsigned index,
                        struct error *error)
{
    struct luks_header trial = *h;
    int err = luks_slot_check(h, index, error);

    trial.slots[index].active = true;
    return err < 0 ? err : luks_header_check_area(&trial, area->length, error);
}

/* The slot for a new key. */
static int find_free(const struct luks_area *area, const struct luks_header *h,
                     const struct luks_amend *amend, unsigned *ret, struct error *error)
{
    if (amend->keyslot >= 0) {
        *ret = (unsigned)amend->keyslot;
        if (!h->slots[*ret].active || amend->force)
            return check_usable(area, h, *ret, error);
        return error_set(error, EPERM,
                         "key slot %u is in use: to put another key there needs force", *ret);
    }
    for (*ret = 0; *ret < LUKS_SLOTS; (*ret)++) {
        if (!h->slots[*ret].active && check_usable(area, h, *ret, NULL) == 0)
            return 0;
    }
    return error_set(error, ENOSPC, "none of the %d key slots is free", LUKS_SLOTS);
}

static int add(const struct luks_area *area, struct luks_header *h, const struct luks_amend *amend,
               struct error *error)
{
    uint8_t key[CIPHER_KEY_MAX];
    unsigned index = 0;
    int err;

    if (!amend->new_secret)
        return error_set(error, EINVAL, "a new key slot needs a new secret (new-secret)");
    err = luks_check_iter_time(amend->iter_time, error);
    if (err == 0)
        err = find_free(area, h, amend, &index, error);
    if (err < 0)
        return err;
    err = luks_unlock(area, h, amend->unlock, key, error);
    if (err == 0)
        err = luks_write_slot(area, h, index, key, amend->new_secret, amend->iter_time, error);
    secret_wipe(key, sizeof(key));
    return err < 0 ? err : luks_write_header(area, h, error);
}

static int change(const struct luks_area *area, const struct luks_amend *amend, struct error *error)
{
    struct luks_header h;
    int err = luks_read_header(area, &h, error);

    if (err < 0)
        return err;
    return amend->erase ? erase(area, &h, amend, error) : add(area, &h, amend, error);
}

struct options {
    int state;
    uint64_t keyslot, iter_time;
    char *new_secret, *old_secret;
};

static const char *const state_words[] = {"inactive", "active", NULL};

static const struct option_row rows[] = {
    {"state", OPTION_ENUM, offsetof(struct options, state), state_words,
     "active: a key is added; inactive: keys are erased"},
    {"new-secret", OPTION_STRING, offsetof(struct options, new_secret), NULL,
     "id of the secret that is to unlock the new key slot"},
    {"old-secret", OPTION_STRING, offsetof(struct options, old_secret), NULL,
     "id of the secret whose key slots are to be erased"},
    {"keyslot", OPTION_NUMBER, offsetof(struct options, keyslot), NULL,
     "number of the key slot, 0 to 7"},
    {"iter-time", OPTION_NUMBER, offsetof(struct options, iter_time), NULL,
     "milliseconds that the derivation of the key is to last, 2000 when not given"},
    {0},
};

/* Options that do not go together. */
static int judge(const struct options *o, struct error *error)
{
    if (o->state < 0)
        return error_set(error, EINVAL, "'state' must be given: active or inactive");
    if (o->state && o->old_secret)
        return error_set(error, EINVAL, "'old-secret' is for state=inactive only");
    if (!o->state && o->new_secret)
        return error_set(error, EINVAL, "'new-secret' is for state=active only");
    if (o->keyslot != UINT64_MAX && o->keyslot >= LUKS_SLOTS)
        return error_set(error, EINVAL,
                         "there is no key slot %" PRIu64 ": they are numbered from 0 to %d",
                         o->keyslot, LUKS_SLOTS - 1);
    return 0;
}

static int find_secrets(const struct secret_store *secrets, const struct options *o,
                        const char *key_secret, struct luks_amend *amend, struct error *error)
{
    int err = 0;

    if (o->state)
        err = luks_find_secret(secrets, "key-secret", key_secret, &amend->unlock, error);
    if (err == 0 && o->new_secret)
        err = luks_find_secret(secrets, "new-secret", o->new_secret, &amend->new_secret, error);
    if (err == 0 && o->old_secret)
        err = luks_find_secret(secrets, "old-secret", o->old_secret, &amend->old_secret, error);
    return err;
}

static int amend_node(struct node *node, const struct secret_store *secrets,
                      const struct options *o, bool force, struct error *error)
{
    struct luks_amend amend = {
        .erase = !o->state,
        .keyslot = o->keyslot == UINT64_MAX ? -1 : (int)o->keyslot,
        .iter_time = o->iter_time,
        .force = force,
    };
    const char *key_secret = NULL;
    struct luks_area area;
    int err =
        node->driver->luks_area ? node->driver->luks_area(node, &area, &key_secret) : -ENOTSUP;

    if (err < 0)
        return error_set(error, -err, "%s is not encrypted with LUKS, and has no key slots",
                         node_name(node));
    if (!node_writable(node))
        return error_set(error, EROFS, "%s is not open for writing", node_name(node));
    err = find_secrets(secrets, o, key_secret, &amend, error);
    return err < 0 ? err : change(&area, &amend, error);
}

int luks_amend(struct node *node, const struct secret_store *secrets, json_t *options, bool force,
               struct error *error)
{
    struct options o = {.state = -1, .keyslot = UINT64_MAX, .iter_time = LUKS_ITER_TIME_DEFAULT};
    json_t *copy = json_deep_copy(options);
    int err = copy ? options_take(copy, rows, &o, "the change of key slots", error)
                   : error_set(error, ENOMEM, "out of memory");

    if (err == 0)
        err = options_finish(copy, rows, "the change of key slots", error);
    if (err == 0)
        err = judge(&o, error);
    if (err == 0)
        err = amend_node(node, secrets, &o, force, error);
    json_decref(copy);
    options_release(rows, &o);
    return err;
}
