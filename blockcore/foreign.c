/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A file of a format that nobody here can open must not be taken for a raw disk: its size would be
 * wrong, and the first write would destroy its header.  A format that gets a driver leaves this
 * list.
 */
#include "blockcore/foreign.h"

#include "base/checked.h"

#include <string.h>

static const struct {
    const char *name;
    struct magic magic;
} formats[] = {
    {"qcow", {0, 8, "QFI\xfb\0\0\0\1"}},
    {"qed", {0, 4, "QED"}}, /* the NUL belongs to it */
    {"vhdx", {0, 8, "vhdxfile"}},
    {"vmdk", {0, 4, "KDMV"}},
    {"vmdk", {0, 4, "COWD"}},
    {"vmdk", {0, 8, "\xbe\xba\xfe\xca\0\0\0"}}, /* seSparse */
    {"vmdk", {0, 21, "# Disk DescriptorFile"}},
    {"vdi", {0x40, 4, "\x7f\x10\xda\xbe"}},
    {"parallels", {0, 16, "WithoutFreeSpace"}},
    {"parallels", {0, 16, "WithouFreSpacExt"}},
    {"vpc", {0, 8, "conectix"}},
    {"bochs", {0, 22, "Bochs Virtual HD Image"}},
    {"cloop", {0, 23, "#!/bin/sh\n#V2.0 Format\n"}},
};

const char *foreign_format(const struct probe *probe)
{
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        const struct magic *m = &formats[i].magic;

        if (range_within(m->offset, m->length, probe->length) &&
            memcmp(probe->data + m->offset, m->bytes, m->length) == 0)
            return formats[i].name;
    }
    return NULL;
}
