/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The fault injector behind the seam: the k-th call of chosen kinds fails, or moves fewer bytes.
 *
 *     for (unsigned k = 1; ; k++) {
 *         fault_arm(&(struct fault_plan){.calls = FAULT_FILE, .nth = k, .error = EIO});
 *         ... the test: it succeeds, or fails with EIO and has harmed nothing ...
 *         if (!fault_fired())
 *             break;
 *     }
 */
#ifndef EVNBD_TESTS_FAULT_H
#define EVNBD_TESTS_FAULT_H

#include <stdbool.h>
#include <stddef.h>

enum fault_call {
    FAULT_OPENAT = 1 << 0,
    FAULT_FSTAT = 1 << 1,
    FAULT_PREADV = 1 << 2,
    FAULT_PWRITEV = 1 << 3,
    FAULT_FDATASYNC = 1 << 4,
    FAULT_FALLOCATE = 1 << 5,
    FAULT_FTRUNCATE = 1 << 6,
    FAULT_LSEEK = 1 << 7,
    FAULT_IOCTL = 1 << 8,
    FAULT_LOCK = 1 << 9,
    FAULT_UNLINKAT = 1 << 10,
    FAULT_SOCKET = 1 << 11,
    FAULT_BIND = 1 << 12,
    FAULT_LISTEN = 1 << 13,
    FAULT_CONNECT = 1 << 14,
    FAULT_ACCEPT = 1 << 15,
    FAULT_SETSOCKOPT = 1 << 16,
    FAULT_SHUTDOWN = 1 << 17,
    FAULT_RECVMSG = 1 << 18,
    FAULT_SENDMSG = 1 << 19,
    FAULT_SENDFILE = 1 << 20,
    FAULT_RANDOM = 1 << 21,
    FAULT_FSTATAT = 1 << 22,
    FAULT_TRANSFER = FAULT_PREADV | FAULT_PWRITEV,
    FAULT_FILE = ((1 << 11) - 1) | FAULT_FSTATAT,
    FAULT_NET = ((1 << 21) - 1) & ~FAULT_FILE,
};

struct fault_plan {
    unsigned calls; /* set of enum fault_call: those counted and hit */
    unsigned nth;   /* 1: the first from now on; 0: none, only count */
    bool sticky;    /* all from the nth on */
    int error;      /* positive errno; 0: the transfer is cut short (other calls are let through) */
    size_t
        short_to; /* most bytes that a cut transfer moves; 0: half of what was asked, at least 1 */
};

void fault_install(void);
void fault_remove(void);

/* Starts counting anew. May be called while worker threads are idle only. */
void fault_arm(const struct fault_plan *plan);

/* Calls counted since fault_arm, and whether one was hit. */
unsigned fault_count(void);
bool fault_fired(void);

#endif
