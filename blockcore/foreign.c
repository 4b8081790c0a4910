/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A file of a format that nobody here can open must not be taken for a raw disk: its size would be
 * wrong, and the first write would destroy its header.  A format that gets a driver leaves this
 * list.
 */
#include "blockcore/foreign.h"

#include "base/checked.h"

#include <string.h>
#include <strings.h>

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

static const uint8_t *skip_blanks(const uint8_t *p, const uint8_t *end)
{
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    return p;
}

/* "version=N", with blanks or without, and whatever N is: readers differ. */
static bool is_version(const uint8_t *p, const uint8_t *end)
{
    static const char word[] = "version";
    const uint8_t *digits;

    if (!range_within(0, strlen(word), (uint64_t)(end - p)) ||
        strncasecmp((const char *)p, word, strlen(word)) != 0)
        return false;
    p = skip_blanks(p + strlen(word), end);
    if (p == end || *p != '=')
        return false;
    digits = p = skip_blanks(p + 1, end);
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    if (p == digits)
        return false;
    p = skip_blanks(p, end);
    return p == end || *p == '\n' || *p == '\r' || *p == '\0';
}

/*
 * The descriptor of a VMDK image is a text, which needs no magic: its version is the first line
 * that is neither a comment nor blank.
 */
static bool is_vmdk_text(const struct probe *probe)
{
    const uint8_t *p = probe->data, *end = p + probe->length;

    while (p < end) {
        p = skip_blanks(p, end);
        if (p < end && *p == '#') {
            p = memchr(p, '\n', (size_t)(end - p));
            if (!p)
                return false;
        }
        if (p == end || (*p != '\n' && *p != '\r'))
            return is_version(p, end);
        p++;
    }
    return false;
}

const char *foreign_format(const struct probe *probe)
{
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        const struct magic *m = &formats[i].magic;

        if (range_within(m->offset, m->length, probe->length) &&
            memcmp(probe->data + m->offset, m->bytes, m->length) == 0)
            return formats[i].name;
    }
    return is_vmdk_text(probe) ? "vmdk" : NULL;
}
