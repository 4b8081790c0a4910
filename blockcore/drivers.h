/* SPDX-License-Identifier: BSD-3-Clause */
/* The drivers of this program, in the order in which they are probed. Tests pass their own array.
 */
#ifndef EVNBD_BLOCKCORE_DRIVERS_H
#define EVNBD_BLOCKCORE_DRIVERS_H

#include "blockcore/driver.h"

extern const struct driver *const block_drivers[]; /* NULL-terminated */

extern const struct driver driver_file;        /* protocol/file.c */
extern const struct driver driver_host_device; /* protocol/file.c */
extern const struct driver driver_nbd;         /* protocol/nbd.c */
extern const struct driver driver_raw;         /* format/raw.c */
extern const struct driver driver_qcow2;       /* format/qcow2.c */
extern const struct driver driver_luks;        /* format/luks.c */
extern const struct driver driver_null_co;     /* protocol/null.c */
extern const struct driver driver_null_aio;
extern const struct driver driver_cache; /* filter/cache.c; the same below */
extern const struct driver driver_copy_on_read;
extern const struct driver driver_delay;
extern const struct driver driver_detect_zeroes;
extern const struct driver driver_error;
extern const struct driver driver_partition;
extern const struct driver driver_throttle;

#endif
