/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The qcow2 driver: its table of functions, the header fields that are patched in place, and
 * what happens when an image contradicts itself. The picture of the whole is in qcow2.h.
 */
#include "blockcore/format/qcow2.h"

#include "base/checked.h"
#include "base/log.h"
#include "base/trace.h"
#include "blockcore/drivers.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define TEXT_MAX 256

void qcow2_l1_set(struct qcow2 *q, uint64_t l1_index, uint64_t value)
{
    q->l1[l1_index] = value;
    q->l1_dirty[l1_index / QCOW2_L1_SECTOR_ENTRIES] = true;
    q->l1_any_dirty = true;
}

int qcow2_switch(struct qcow2 *q, uint64_t at, const void *data, size_t length)
{
    int err = block_write(q->file, data, length, at, 0);

    if (err < 0) {
        q->corrupt = true;
        log_error("%s: writing metadata failed midway; the image takes no more writes until it is "
                  "opened again",
                  node_name(q->node));
    }
    return err;
}

/* What is pending is free once all else is on disk. */
static int qcow2_reclaim(struct node *node)
{
    struct qcow2 *q = node->state;

    return q->pending.count > 0 && !q->corrupt ? qcow2_flush(node) : -ENOSPC;
}

int qcow2_patch_header(struct qcow2 *q, uint64_t at, uint64_t value)
{
    uint8_t data[8];
    int err;

    put_be64(data, value);
    err = block_write(q->file, data, sizeof(data), at, 0);
    return err < 0 ? err : block_flush(q->file);
}

/*
 * Parts of the L1 table may be holes of the file: they must have room when a flush changes them.
 * Where only writing makes room, all of it is written as it is.
 */
static int reserve_l1(struct qcow2 *q)
{
    uint64_t bytes = (uint64_t)q->header.l1_size * 8;
    int err = bytes > 0 ? block_reserve(q->file, q->header.l1_offset, bytes) : 0;

    if (err == -EOPNOTSUPP)
        err = qcow2_l1_rewrite(q);
    q->l1_room = err == 0;
    return err;
}

/*
 * Of the autoclear features we keep bitmaps and raw data files consistent, and no other: whoever
 * knows those must learn that, before anything is written.
 */
static int get_write_ready(struct qcow2 *q)
{
    uint64_t kept = q->header.has_bitmaps ? QCOW2_AUTOCLEAR_BITMAPS : 0;
    int err = qcow2_bitmaps_begin(q);

    kept = q->header.autoclear & (kept | qcow2_autoclear_kept(q));
    if (err == 0 && q->header.autoclear != kept)
        err = qcow2_patch_header(q, QCOW2_AT_AUTOCLEAR, kept);
    if (err < 0)
        return err;
    q->header.autoclear = kept;
    q->write_ready = true;
    qcow2_bitmaps_update_tracking(q);
    return 0;
}

/* Writing back may have found that the image is corrupt. */
static int begin(struct qcow2 *q)
{
    int err = 0;

    if (q->corrupt)
        return -EIO;
    if (!q->l1_room)
        err = reserve_l1(q);
    return err == 0 && !q->write_ready ? get_write_ready(q) : err;
}

int qcow2_begin_change(struct qcow2 *q)
{
    int err = q->pending.count < QCOW2_PENDING_MAX ? 0 : qcow2_write_back(q);

    return err < 0 ? err : begin(q);
}

int qcow2_lock_to_change(struct qcow2 *q)
{
    int err = q->pending.count < QCOW2_PENDING_MAX ? 0 : qcow2_flush(q->node);

    co_mutex_lock(&q->lock);
    return err < 0 ? err : begin(q);
}

static int mark_corrupt(struct qcow2 *q, const char *text)
{
    if (q->corrupt)
        return -EIO;
    log_error("%s is broken and takes no more writes: %s", node_name(q->node), text);
    q->corrupt = true;
    if (q->header.version < 3)
        return -EIO;
    q->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
    if (qcow2_patch_header(q, QCOW2_AT_INCOMPATIBLE, q->header.incompatible) < 0)
        log_error("%s could not be marked corrupt", node_name(q->node));
    return -EIO;
}

static int log_text_once(struct qcow2 *q, const char *text)
{
    if (!q->broken_logged)
        log_error("%s: %s", node_name(q->node), text);
    q->broken_logged = true;
    return -EIO;
}

#define FORMAT_TEXT(text, format)                                                                  \
    do {                                                                                           \
        va_list ap;                                                                                \
        va_start(ap, format);                                                                      \
        vsnprintf(text, sizeof(text), format, ap);                                                 \
        va_end(ap);                                                                                \
    } while (0)

int qcow2_set_corrupt(struct qcow2 *q, const char *format, ...)
{
    char text[TEXT_MAX];

    FORMAT_TEXT(text, format);
    return mark_corrupt(q, text);
}

int qcow2_report_broken(struct qcow2 *q, const char *format, ...)
{
    char text[TEXT_MAX];
    int err;

    FORMAT_TEXT(text, format);
    if (!node_writable(q->node))
        return qcow2_log_once(q, "the image is broken: %s", text);
    if (q->corrupt)
        return -EIO;
    if (!coroutine_self())
        return -EAGAIN;
    co_mutex_lock(&q->lock);
    err = mark_corrupt(q, text);
    co_mutex_unlock(&q->lock);
    return err;
}

int qcow2_log_once(struct qcow2 *q, const char *format, ...)
{
    char text[TEXT_MAX];

    FORMAT_TEXT(text, format);
    return log_text_once(q, text);
}

/* Version 1 has the same magic and is another format. */
static bool qcow2_match(const struct probe *probe)
{
    return probe->length >= 8 && get_be32(probe->data + 4) >= 2;
}

static const struct magic qcow2_magics[] = {{0, 4, "QFI\xfb"}, {0}};

const struct driver driver_qcow2 = {
    .name = "qcow2",
    .kind = DRIVER_FORMAT,
    .state_size = sizeof(struct qcow2),
    .magics = qcow2_magics,
    .options = qcow2_option_rows,
    .match = qcow2_match,
    .open = qcow2_open,
    .opened = qcow2_opened,
    .close = qcow2_close,
    .map = qcow2_map,
    .decode = qcow2_decode,
    .allocate = qcow2_allocate,
    .commit = qcow2_commit,
    .abort = qcow2_abort,
    .zero = qcow2_zero,
    .discard = qcow2_discard,
    .write_compressed = qcow2_write_compressed,
    .flush = qcow2_flush,
    .reclaim = qcow2_reclaim,
    .snapshots = &qcow2_snapshot_ops,
    .luks_area = qcow2_luks_area,
    .bitmap = qcow2_bitmap_get,
    .bitmap_add = qcow2_bitmap_add,
    .track = qcow2_track,
    .resize_prepare = qcow2_resize_prepare,
    .resize = qcow2_resize,
    .resize_finish = qcow2_resize_finish,
    .size_unit = 512,
    .check = qcow2_check,
    .amend = qcow2_amend,
    .amend_options = qcow2_amend_options,
    .change_backing = qcow2_change_backing,
    .create = qcow2_create,
    .measure = qcow2_measure,
    .create_options = qcow2_create_options,
};
