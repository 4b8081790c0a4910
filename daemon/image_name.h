/* SPDX-License-Identifier: BSD-3-Clause */
/* What the name of an image on the command line means. */
#ifndef EVNBD_DAEMON_IMAGE_NAME_H
#define EVNBD_DAEMON_IMAGE_NAME_H

#include "base/error.h"

#include <stdbool.h>

/* Whether the name is json:{...}, the options of an image. */
bool image_name_is_json(const char *name);

/*
 * The path that `name` stands for, which is all of it or, after "file:", its rest; json:{...} stays
 * as it is, and so do names of the drivers for other machines ("nbd://...").  Names of other
 * protocols are refused with a sentence: a colon before the first slash ends the name of a
 * protocol, whatever files there are.  Looks at nothing but the name.  Returns 0 or -EINVAL;
 * *ret_path points into `name`.
 */
int image_name_path(const char *name, const char **ret_path, struct error *error);

#endif
