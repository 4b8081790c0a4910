/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 images for tests: a builder, and a checker that counts references on its own.  Neither uses
 * the code under test.
 */
#ifndef EVNBD_TESTS_QCOW2_IMAGE_H
#define EVNBD_TESTS_QCOW2_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QCOW2_IMAGE_SNAPSHOTS_MAX 4

/* An image being built. The first fields are set by the caller, zeroes are fine where possible. */
struct qcow2_image {
    unsigned version;
    unsigned cluster_bits;
    unsigned order; /* log2 of the refcount bits */
    uint64_t size;  /* bytes of the disk */
    uint64_t incompatible, compatible, autoclear;
    uint8_t compression_type;
    unsigned header_length;     /* 0: the usual */
    const char *backing;        /* name, or NULL */
    const char *backing_format; /* or NULL */
    const void *extensions;     /* more of them, ready-made */
    size_t extensions_length;

    uint8_t *data; /* `length` bytes, whole clusters */
    size_t length;
    size_t room; /* bytes allocated */
    uint64_t l1_offset;
    uint32_t l1_size;
    unsigned snapshots;
    uint64_t snapshot_l1[QCOW2_IMAGE_SNAPSHOTS_MAX];
    uint64_t compressed_end; /* where the last compressed cluster ends */
};

/* Makes room for header and L1 table; the fields above are set. */
void qcow2_image_start(struct qcow2_image *image);
/* Adds clusters of zeroes at the end; returns their offset. */
uint64_t qcow2_image_add(struct qcow2_image *image, uint64_t clusters);
/*
 * Sets an L2 entry; makes the table if there is none. Returns where the entry is.  An extended
 * entry becomes what the standard one says: all of it data, or zero.
 */
uint64_t qcow2_image_set(struct qcow2_image *image, uint64_t guest_cluster, uint64_t value);
/* Sets an extended L2 entry; returns where it is. */
uint64_t qcow2_image_set_extended(struct qcow2_image *image, uint64_t guest_cluster, uint64_t value,
                                  uint32_t data, uint32_t zero);
/* A data cluster of one byte; returns its offset. */
uint64_t qcow2_image_data(struct qcow2_image *image, uint64_t guest_cluster, uint8_t fill);
/*
 * A compressed cluster of one byte (raw deflate), close behind the one before it when `packed`.
 * Returns where its bytes are.
 */
uint64_t qcow2_image_compressed(struct qcow2_image *image, uint64_t guest_cluster, uint8_t fill,
                                bool packed);
/* Keeps what the disk holds now as a snapshot. No entry may be set afterwards. */
void qcow2_image_snapshot(struct qcow2_image *image);
/* Writes header, snapshot table, refcounts and copied bits. */
void qcow2_image_finish(struct qcow2_image *image);
void qcow2_image_fini(struct qcow2_image *image);

/* Raw deflate of `length` times `fill`, into `out`; returns the bytes written, below 256 KiB. */
size_t qcow2_image_deflate(uint8_t *out, size_t length, uint8_t fill);

struct qcow2_report {
    unsigned errors;  /* refcount below references, wrong copied bit, wrong pointer */
    unsigned lacking; /* of the errors: no copied bit where it may be, which only costs a copy */
    unsigned leaks;   /* refcount above references */
    char text[256];   /* the first error, else the first leak */
};

/* Adds 1 to counts[i] for each reference to cluster i; reports pointers that are wrong. */
void qcow2_image_count(const uint8_t *data, size_t length, uint64_t *counts,
                       struct qcow2_report *report);
/* Counts all references and compares them with the refcounts. */
void qcow2_image_check(const uint8_t *data, size_t length, struct qcow2_report *ret);

#endif
