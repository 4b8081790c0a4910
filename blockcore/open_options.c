/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Options that nodes of every driver have.  What a node does not say it takes from the node above,
 * or from the command line; it cannot give itself more than those have, so that --read-only is a
 * promise.
 */
#include "blockcore/open.h"

enum { DISCARD_IGNORE, DISCARD_OFF, DISCARD_UNMAP, DISCARD_ON };

struct common {
    bool read_only, direct, no_flush, force_share;
    int discard, detect_zeroes;
    char *node_name;
};

static const char *const discard_words[] = {"ignore", "off", "unmap", "on", NULL};
static const char *const detect_words[] = {"off", "on", "unmap", NULL};

static const struct option_row common_rows[] = {
    {"read-only", OPTION_BOOL, offsetof(struct common, read_only), NULL,
     "do not write to the node"},
    {"cache.direct", OPTION_BOOL, offsetof(struct common, direct), NULL,
     "go around the page cache"},
    {"cache.no-flush", OPTION_BOOL, offsetof(struct common, no_flush), NULL,
     "do not wait until writes are durable"},
    {"force-share", OPTION_BOOL, offsetof(struct common, force_share), NULL,
     "let other programs write to the image meanwhile"},
    {"discard", OPTION_ENUM, offsetof(struct common, discard), discard_words,
     "what to do with space that is trimmed"},
    {"detect-zeroes", OPTION_ENUM, offsetof(struct common, detect_zeroes), detect_words,
     "turn written zeroes into holes"},
    {"node-name", OPTION_STRING, offsetof(struct common, node_name), NULL, "a name for the node"},
    {0},
};

static unsigned with_flag(unsigned flags, unsigned flag, bool set)
{
    return set ? flags | flag : flags & ~flag;
}

static unsigned flags_of(const struct common *common, unsigned flags)
{
    bool unmap = common->discard == DISCARD_UNMAP || common->discard == DISCARD_ON;

    flags = with_flag(flags, NODE_NO_CACHE, common->direct);
    flags = with_flag(flags, NODE_NO_FLUSH, common->no_flush);
    flags = with_flag(flags, NODE_FORCE_SHARE, common->force_share);
    return with_flag(flags, NODE_UNMAP, unmap);
}

static int check(const struct common *common, const struct node_open *open, struct error *error)
{
    bool writable = open->flags & NODE_WRITABLE;

    if (common->read_only && writable)
        return error_set(error, EROFS,
                         "Block node is read-only: its option 'read-only' is on, but it is to be "
                         "opened for writing (--read-only exports it without)");
    if (common->force_share && writable)
        return error_set(error, EINVAL,
                         "force-share=on can only be used with read-only images (--read-only)");
    if (common->detect_zeroes == NODE_DETECT_ZEROES_OFF)
        return 0;
    if (open->parent)
        return error_set(
            error, EINVAL,
            "the option 'detect-zeroes' is for the node that is exported; a node below "
            "has it");
    if (common->detect_zeroes == NODE_DETECT_ZEROES_UNMAP && !(open->flags & NODE_UNMAP))
        return error_set(error, EINVAL,
                         "setting detect-zeroes to unmap is not allowed without setting discard "
                         "operation to unmap (discard=unmap)");
    return 0;
}

int open_common_options(struct node_open *open, enum node_detect_zeroes *ret_detect_zeroes,
                        struct error *error)
{
    struct common common = {
        .direct = open->flags & NODE_NO_CACHE,
        .no_flush = open->flags & NODE_NO_FLUSH,
        .force_share = open->flags & NODE_FORCE_SHARE,
        .discard = open->flags & NODE_UNMAP ? DISCARD_UNMAP : DISCARD_IGNORE,
    };
    int err = options_take(open->options, common_rows, &common, "a node", error);

    if (err == 0) {
        open->flags = flags_of(&common, open->flags);
        err = check(&common, open, error);
    }
    if (err == 0 && common.force_share)
        open->shared = PERM_ALL;
    *ret_detect_zeroes = (enum node_detect_zeroes)common.detect_zeroes;
    options_release(common_rows, &common);
    return err;
}
