/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of drivers; formats in the order in which they are probed. */
#include "blockcore/drivers.h"

const struct driver *const block_drivers[] = {
};
