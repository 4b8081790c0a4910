/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The files are looked at as libnbd does: the same name, opened for reading.  libnbd reads them in
 * the midst of the handshake, so a file that goes and comes back meanwhile is found by its time of
 * change, which a new name sets too.
 */
#include "blockcore/protocol/nbd_trust.h"

#include "base/sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CA_NAME "ca-cert.pem"

bool nbd_trust_needed(const struct nbd_options *options)
{
    return options->tls && options->verify_peer && !options->tls_psk_file;
}

static int open_and_stat(const char *path, int flags, struct stat *st)
{
    int fd, r;

    do {
        fd = sys->openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags, 0);
    } while (fd == -EINTR);
    if (fd < 0)
        return fd;
    r = sys->fstat(fd, st);
    sys->close(fd);
    return r;
}

static int64_t changed_ns(const struct stat *st)
{
    return st->st_ctim.tv_sec * INT64_C(1000000000) + st->st_ctim.tv_nsec;
}

static int look_at_ca(struct nbd_trust *ret, const char *dir, const char *path, struct error *error)
{
    struct stat st;
    int r = open_and_stat(path, 0, &st);

    if (r < 0)
        return error_set_errno(error, -r,
                               "the certificate of the server cannot be verified without that of "
                               "its CA: unable to open '%s'",
                               path);
    if (!S_ISREG(st.st_mode))
        return error_set(error, EINVAL,
                         "the certificate of the server cannot be verified without that of its "
                         "CA: '%s' is not a regular file",
                         path);
    ret->ca.device = st.st_dev;
    ret->ca.inode = st.st_ino;
    ret->ca.changed_ns = changed_ns(&st);
    r = sys->fstatat(AT_FDCWD, dir, &st, 0);
    if (r < 0)
        return error_set_errno(error, -r, "unable to look at '%s'", dir);
    ret->dir.device = st.st_dev;
    ret->dir.inode = st.st_ino;
    ret->dir.changed_ns = changed_ns(&st);
    return 0;
}

int nbd_trust_look(struct nbd_trust *ret, const struct nbd_options *options, struct error *error)
{
    char *path;
    int err;

    memset(ret, 0, sizeof(*ret));
    if (!nbd_trust_needed(options))
        return 0;
    if (asprintf(&path, "%s/" CA_NAME, options->tls_certificates) < 0)
        return error_set(error, ENOMEM, "out of memory");
    err = look_at_ca(ret, options->tls_certificates, path, error);
    free(path);
    return err;
}

int nbd_trust_confirm(const struct nbd_trust *before, const struct nbd_options *options,
                      struct error *error)
{
    struct nbd_trust now;
    int err = nbd_trust_look(&now, options, error);

    if (err == 0 && memcmp(&now, before, sizeof(now)) != 0)
        err = error_set(error, ESTALE,
                        "the TLS certificates in '%s' have changed while the connection was made",
                        options->tls_certificates);
    return err;
}
