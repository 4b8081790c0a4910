/* SPDX-License-Identifier: BSD-3-Clause */
/* Image formats that are known by their first bytes and cannot be opened by this program. */
#ifndef EVNBD_BLOCKCORE_FOREIGN_H
#define EVNBD_BLOCKCORE_FOREIGN_H

#include "blockcore/driver.h"

/* The name of the format that the bytes show, or NULL. */
const char *foreign_format(const struct probe *probe);

#endif
