/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files of credentials and of rules: read as a whole while clients are served, and looked at again
 * to see whether they have changed.  Only regular files are read, since others could let the server
 * wait.  Inside of tls/.
 */
#ifndef EVNBD_TLS_FILES_H
#define EVNBD_TLS_FILES_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Longest file of credentials, in bytes. */
#define TLS_FILE_BYTES_MAX (1 << 20)

/* What tells one state of a file from another; all zeroes: there is none. */
struct tls_stamp {
    uint64_t device, inode, size;
    int64_t modified_ns, changed_ns;
};

struct tls_file {
    char *path;        /* NULL: not used */
    const char *label; /* what messages call it: "the CA certificate" */
    bool needed;       /* else it may be missing */
    bool secret;       /* others should not be able to read it */
    struct tls_stamp stamp;
    bool settled;  /* the stamp was old when it was taken: no later change can have the same one */
    mode_t mode;   /* when it was read */
    uint8_t *data; /* NULL: there is none */
    size_t length;
};

/* Reads the file and takes its stamp. Negative errno with a sentence; then it has no data. */
int tls_file_read(struct tls_file *file, struct error *error);
/* Whether nobody but its owner can read or change the file, if that matters; else a sentence. */
bool tls_file_is_secret(const struct tls_file *file, struct error *error);
/* Whether there was a file when the stamp was taken. */
bool tls_file_was_there(const struct tls_file *file);
/* Whether the file is in another state than the stamp tells. Lack of memory: it is not. */
bool tls_file_changed(const struct tls_file *file);
/* Takes the stamp of the file as it is now; lack of memory leaves the old one. */
void tls_file_restamp(struct tls_file *file);
/* Whether a negative errno only says that descriptors or memory have run out: later it may work. */
bool tls_file_is_lack(int err);
/* Wipes and frees the data. */
void tls_file_drop(struct tls_file *file);

#endif
