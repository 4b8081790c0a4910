/* SPDX-License-Identifier: BSD-3-Clause */
/* Keys and key slots of LUKS volumes; for luks.c and luks_amend.c. All run in a coroutine. */
#ifndef EVNBD_BLOCKCORE_LUKS_KEY_H
#define EVNBD_BLOCKCORE_LUKS_KEY_H

#include "blockcore/luks.h"

/* Writes it, when all that was written before is durable, and makes it durable. */
int luks_write_header(const struct luks_area *area, const struct luks_header *header,
                      struct error *error);

/* Whether a slot opens with the secret; then `key` has CIPHER_KEY_MAX bytes of it. 0, -EACCES... */
int luks_try_slot(const struct luks_area *area, const struct luks_header *header, unsigned index,
                  const struct secret *secret, uint8_t *key);
/* Tries all slots in use. Each that lasts too long is left out, and told when none fits. */
int luks_unlock(const struct luks_area *area, const struct luks_header *header,
                const struct secret *secret, uint8_t *key, struct error *error);

/* Sets digest and iterations; the salt is set. */
int luks_make_digest(struct luks_header *header, const uint8_t *key, uint64_t iter_time,
                     struct error *error);
/*
 * Puts the key into a slot that the secret opens: fills the slot of the header, which becomes
 * active, and writes the key material.  The header itself is not written.
 */
int luks_write_slot(const struct luks_area *area, struct luks_header *header, unsigned index,
                    const uint8_t *key, const struct secret *secret, uint64_t iter_time,
                    struct error *error);

#endif
