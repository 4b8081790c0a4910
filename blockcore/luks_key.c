/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Keys and key slots of LUKS volumes: what is computed goes to a worker in one piece, with buffers
 * that it has for itself.  See luks_key.h.
 */
#include "blockcore/luks_key.h"

#include "base/buffer.h"
#include "base/checked.h"
#include "base/sys.h"
#include "base/worker.h"
#include "blockcore/block.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define ITERATIONS_MIN 1000
#define NS_PER_MS UINT64_C(1000000)
/* Derivations that would last longer are left out: an image can ask for hours. */
#define DERIVE_SECONDS_MAX 120
/* The digest gets less time than a slot: it is known only to who has opened one. */
#define DIGEST_SHARE 8

/* What a worker is given; `material` has whole sectors. */
struct key_job {
    const struct luks_header *header;
    const struct luks_slot *slot;
    const struct secret *secret;
    uint8_t *material;
    size_t material_bytes;
    uint8_t *key;
};

int luks_read_header(const struct luks_area *area, struct luks_header *ret, struct error *error)
{
    uint8_t data[LUKS_HEADER_BYTES];
    size_t length = min_u64(sizeof(data), area->length);
    int err = block_read(area->file, data, length, area->offset);

    if (err < 0)
        return error_set_errno(error, -err, "cannot read the LUKS header");
    err = luks_header_parse(data, length, ret, error);
    return err < 0 ? err : luks_header_check_area(ret, area->length, error);
}

int luks_write_header(const struct luks_area *area, const struct luks_header *header,
                      struct error *error)
{
    uint8_t data[LUKS_HEADER_BYTES];
    int err = block_flush(area->file);

    luks_header_write(header, data);
    if (err == 0)
        err = block_write(area->file, data, sizeof(data), area->offset, BLOCK_FUA);
    return err < 0 ? error_set_errno(error, -err, "cannot write the LUKS header") : 0;
}

/* In a worker. */
static int derive(const struct luks_header *header, const void *password, size_t password_length,
                  const uint8_t *salt, uint32_t iterations, uint8_t *out, size_t length)
{
    const struct pbkdf2 job = {
        .digest = header->digest,
        .password = password,
        .password_length = password_length,
        .salt = salt,
        .salt_length = LUKS_SALT_BYTES,
        .iterations = iterations,
        .limit_ns = DERIVE_SECONDS_MAX * 1000 * NS_PER_MS,
    };

    return pbkdf2_derive(&job, out, length);
}

static int slot_cipher(const struct key_job *job, struct cipher **ret)
{
    uint8_t slot_key[CIPHER_KEY_MAX];
    int err = derive(job->header, job->secret->data, job->secret->length, job->slot->salt,
                     job->slot->iterations, slot_key, job->header->key_bytes);

    if (err == 0)
        err = cipher_new(&job->header->kind, slot_key, job->header->key_bytes, ret);
    secret_wipe(slot_key, sizeof(slot_key));
    return err;
}

static int check_key(const struct luks_header *header, const uint8_t *key)
{
    uint8_t digest[LUKS_DIGEST_BYTES];
    uint8_t differs = 0;
    int err = derive(header, key, header->key_bytes, header->digest_salt, header->digest_iterations,
                     digest, sizeof(digest));

    for (unsigned i = 0; i < LUKS_DIGEST_BYTES; i++)
        differs |= digest[i] ^ header->key_digest[i];
    return err == 0 && differs ? -EACCES : err;
}

static int open_in_worker(void *arg)
{
    const struct key_job *job = arg;
    struct cipher *cipher;
    int err = slot_cipher(job, &cipher);

    if (err < 0)
        return err;
    cipher_decrypt(cipher, job->material, job->material_bytes, 0);
    cipher_free(cipher);
    err = luks_merge(job->header->digest, job->header->key_bytes, job->slot->stripes, job->material,
                     job->key);
    return err < 0 ? err : check_key(job->header, job->key);
}

static int close_in_worker(void *arg)
{
    const struct key_job *job = arg;
    struct cipher *cipher;
    int err = luks_split(job->header->digest, job->header->key_bytes, job->slot->stripes, job->key,
                         job->material);

    if (err == 0)
        err = slot_cipher(job, &cipher);
    if (err < 0)
        return err;
    cipher_encrypt(cipher, job->material, job->material_bytes, 0);
    cipher_free(cipher);
    return 0;
}

static uint64_t material_offset(const struct luks_area *area, const struct luks_slot *slot)
{
    return area->offset + (uint64_t)slot->sector * CIPHER_SECTOR;
}

/* The material is no secret while it is encrypted; afterwards it is the key. */
static void put_material(struct key_job *job)
{
    secret_wipe(job->material, job->material_bytes);
    buffer_put(job->material, job->material_bytes);
}

static int job_init(struct key_job *job, const struct luks_header *header, unsigned index,
                    const struct secret *secret, uint8_t *key)
{
    const struct luks_slot *slot = &header->slots[index];

    *job = (struct key_job){.header = header, .slot = slot, .secret = secret, .key = key};
    job->material_bytes = luks_material_sectors(header->key_bytes, slot->stripes) * CIPHER_SECTOR;
    job->material = buffer_get(job->material_bytes);
    return job->material ? 0 : -ENOMEM;
}

int luks_try_slot(const struct luks_area *area, const struct luks_header *header, unsigned index,
                  const struct secret *secret, uint8_t *key)
{
    struct key_job job;
    int err = job_init(&job, header, index, secret, key);

    if (err < 0)
        return err;
    err = block_read(area->file, job.material, job.material_bytes, material_offset(area, job.slot));
    if (err == 0)
        err = co_run_in_worker(open_in_worker, &job);
    put_material(&job);
    if (err < 0)
        secret_wipe(key, CIPHER_KEY_MAX);
    return err;
}

static int refuse_secret(const struct luks_header *header, unsigned tried, int late,
                         struct error *error)
{
    if (late >= 0)
        return error_set(error, EACCES,
                         "key slot %d was not tried: its %" PRIu32 " iterations, or the %" PRIu32
                         " of the key's digest, would last longer than %d seconds%s",
                         late, header->slots[late].iterations, header->digest_iterations,
                         DERIVE_SECONDS_MAX, tried ? "; no other opens with this secret" : "");
    if (tried == 0)
        return error_set(error, EACCES, "it has no key slot in use: nothing can unlock it");
    return error_set(error, EACCES, "none of its key slots opens with this secret");
}

int luks_unlock(const struct luks_area *area, const struct luks_header *header,
                const struct secret *secret, uint8_t *key, struct error *error)
{
    unsigned tried = 0;
    int late = -1;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int err;

        if (!header->slots[i].active)
            continue;
        err = luks_try_slot(area, header, i, secret, key);
        if (err == 0)
            return 0;
        if (err == -ETIME)
            late = (int)i;
        else if (err == -EACCES)
            tried++;
        else
            return error_set_errno(error, -err, "cannot read key slot %u", i);
    }
    return refuse_secret(header, tried, late, error);
}

struct measure_job {
    enum digest digest;
    size_t length;
    uint64_t target_ns;
    uint32_t iterations;
};

static int measure_in_worker(void *arg)
{
    struct measure_job *job = arg;

    return pbkdf2_measure(job->digest, job->length, job->target_ns, &job->iterations);
}

/* Iterations that last so many milliseconds. */
static int choose_iterations(const struct luks_header *header, size_t length, uint64_t ms,
                             uint32_t *ret)
{
    struct measure_job job = {header->digest, length, ms * NS_PER_MS, 0};
    int err = co_run_in_worker(measure_in_worker, &job);

    *ret = (uint32_t)max_u64(job.iterations, ITERATIONS_MIN);
    return err;
}

struct digest_job {
    struct luks_header *header;
    const uint8_t *key;
};

static int digest_in_worker(void *arg)
{
    struct digest_job *job = arg;
    struct luks_header *h = job->header;

    return derive(h, job->key, h->key_bytes, h->digest_salt, h->digest_iterations, h->key_digest,
                  LUKS_DIGEST_BYTES);
}

int luks_make_digest(struct luks_header *header, const uint8_t *key, uint64_t iter_time,
                     struct error *error)
{
    struct digest_job job = {header, key};
    int err = choose_iterations(header, LUKS_DIGEST_BYTES, iter_time / DIGEST_SHARE,
                                &header->digest_iterations);

    if (err == 0)
        err = co_run_in_worker(digest_in_worker, &job);
    return err < 0 ? error_set_errno(error, -err, "cannot derive the digest of the key") : 0;
}

/* The last sector is filled up with random bytes, too. */
static int fill_slot(const struct luks_area *area, struct luks_header *header, unsigned index,
                     const uint8_t *key, const struct secret *secret)
{
    uint8_t copy[CIPHER_KEY_MAX];
    struct key_job job;
    int err = job_init(&job, header, index, secret, copy);

    if (err < 0)
        return err;
    memcpy(copy, key, header->key_bytes);
    err = sys->random(job.material, job.material_bytes);
    if (err == 0)
        err = co_run_in_worker(close_in_worker, &job);
    if (err == 0)
        err = block_write(area->file, job.material, job.material_bytes,
                          material_offset(area, job.slot), 0);
    put_material(&job);
    secret_wipe(copy, sizeof(copy));
    return err;
}

int luks_write_slot(const struct luks_area *area, struct luks_header *header, unsigned index,
                    const uint8_t *key, const struct secret *secret, uint64_t iter_time,
                    struct error *error)
{
    struct luks_slot *slot = &header->slots[index];
    int err = sys->random(slot->salt, LUKS_SALT_BYTES);

    if (err == 0)
        err = choose_iterations(header, header->key_bytes, iter_time, &slot->iterations);
    if (err == 0)
        err = fill_slot(area, header, index, key, secret);
    if (err < 0)
        return error_set_errno(error, -err, "cannot write key slot %u", index);
    slot->active = true;
    return 0;
}
