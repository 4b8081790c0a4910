/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The filter `detect-zeroes`: writes of nothing but zeroes become zeroing, wherever in a tree it
 * stands.  The option of that name does the same for what clients of the export write.
 */
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/filter.h"

#include <errno.h>

struct detect {
    bool unmap; /* option */
};

static const struct option_row detect_options[] = {
    {"unmap", OPTION_BOOL, offsetof(struct detect, unmap), NULL,
     "give back the space of the zeroes, if discard=unmap allows it"},
    {0},
};

static int detect_open(struct node *node, struct node_open *open, struct error *error)
{
    struct detect *detect = node->state;
    int err = options_take(open->options, detect_options, detect, "driver 'detect-zeroes'", error);

    if (err == 0 && detect->unmap && !(open->flags & NODE_UNMAP))
        err = error_set(error, EINVAL,
                        "the option 'unmap' of driver 'detect-zeroes' needs discard=unmap, so that "
                        "space can be given back");
    return err == 0 ? filter_open_file(node, open, error) : err;
}

static int detect_pwritev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    const struct detect *detect = node->state;

    return block_writev_detecting(node->file, iov, iovcnt, offset,
                                  detect->unmap ? ZERO_MAY_UNMAP : 0);
}

const struct driver driver_detect_zeroes = {
    .name = "detect-zeroes",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct detect),
    .options = detect_options,
    .open = detect_open,
    .pwritev = detect_pwritev,
};
