/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From the description of a secret to its bytes: fetch, decode, decrypt, each into a buffer that is
 * wiped.
 */
#include "tls/secret_object.h"

#include "base/base64.h"
#include "base/file_read.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What a secret may take as it is written: base64, and white space in it. */
#define WRITTEN_BYTES_MAX (2 * SECRET_BYTES_MAX)

struct bytes {
    uint8_t *data; /* allocated */
    size_t length;
};

static void bytes_free(struct bytes *bytes)
{
    secret_wipe(bytes->data, bytes->length);
    free(bytes->data);
    *bytes = (struct bytes){0};
}

/* ---- Where it comes from ---- */

static int copy_text(const char *text, struct bytes *ret, struct error *error)
{
    ret->length = strlen(text);
    ret->data = (uint8_t *)strdup(text);
    return ret->data ? 0 : error_set(error, ENOMEM, "out of memory");
}

static int read_keyring(uint64_t serial, struct bytes *ret, struct error *error)
{
    long n;

    ret->data = malloc(WRITTEN_BYTES_MAX);
    if (!ret->data)
        return error_set(error, ENOMEM, "out of memory");
    n = syscall(SYS_keyctl, KEYCTL_READ, (int32_t)serial, ret->data, WRITTEN_BYTES_MAX);
    if (n < 0)
        return error_set_errno(error, errno, "Unable to read the key with the serial number %d",
                               (int)serial);
    if (n > WRITTEN_BYTES_MAX)
        return error_set(error, EFBIG, "the key with the serial number %d has more than %d bytes",
                         (int)serial, WRITTEN_BYTES_MAX);
    ret->length = (size_t)n;
    return 0;
}

static int fetch(const struct secret_object *object, struct bytes *ret, struct error *error)
{
    if (object->in_keyring && (object->serial == 0 || object->serial > INT32_MAX))
        return error_set(error, EINVAL, "'serial' must be the number of a key, as keyctl shows it");
    if (object->in_keyring)
        return read_keyring(object->serial, ret, error);
    if (object->data && object->file)
        return error_set(error, EINVAL, "'file' and 'data' are mutually exclusive");
    if (!object->data && !object->file)
        return error_set(error, EINVAL, "Either 'file' or 'data' must be provided");
    if (object->data)
        return copy_text(object->data, ret, error);
    return file_read(object->file, WRITTEN_BYTES_MAX, &ret->data, &ret->length, error);
}

/* ---- How it is written ---- */

static int decode(struct bytes *bytes, const char *what, struct error *error)
{
    struct bytes decoded = {.data = malloc(BASE64_BYTES_MAX(bytes->length))};
    int r;

    if (!decoded.data)
        return error_set(error, ENOMEM, "out of memory");
    r = base64_decode((const char *)bytes->data, bytes->length, decoded.data, &decoded.length);
    if (r < 0) {
        secret_wipe(decoded.data, BASE64_BYTES_MAX(bytes->length));
        free(decoded.data);
        return error_set(error, EINVAL, "Base64 of its %s contains invalid characters or is cut",
                         what);
    }
    bytes_free(bytes);
    *bytes = decoded;
    return 0;
}

/* ---- What it is encrypted with ---- */

static int read_iv(const struct secret_object *object, uint8_t iv[SECRET_IV_BYTES],
                   struct error *error)
{
    struct bytes bytes = {0};
    int r;

    if (!object->iv)
        return error_set(error, EINVAL, "IV is required to decrypt secret: add iv=BASE64");
    r = copy_text(object->iv, &bytes, error);
    if (r == 0)
        r = decode(&bytes, "iv", error);
    if (r == 0 && bytes.length != SECRET_IV_BYTES)
        r = error_set(error, EINVAL, "IV should be %d bytes in length not %zu", SECRET_IV_BYTES,
                      bytes.length);
    if (r == 0)
        memcpy(iv, bytes.data, SECRET_IV_BYTES);
    bytes_free(&bytes);
    return r;
}

static int unwrap(const struct secret_object *object, const struct secret_store *store,
                  struct bytes *bytes, struct error *error)
{
    const struct secret *key = secret_store_find(store, object->keyid);
    uint8_t iv[SECRET_IV_BYTES];
    size_t length = 0;
    int r;

    if (!key)
        return error_set(error, ENOENT, "No secret with id '%s'", object->keyid);
    if (key->length != SECRET_KEY_BYTES)
        return error_set(error, EINVAL, "Key should be %d bytes in length, but '%s' has %zu",
                         SECRET_KEY_BYTES, object->keyid, key->length);
    r = read_iv(object, iv, error);
    if (r == 0)
        r = secret_unwrap(key->data, iv, bytes->data, bytes->length, &length, error);
    if (r == 0) {
        secret_wipe(bytes->data + length, bytes->length - length);
        bytes->length = length;
    }
    return r;
}

int secret_object_load(const struct secret_object *object, const char *id,
                       struct secret_store *store, struct error *error)
{
    struct bytes bytes = {0};
    int r = 0;

    if (object->iv && !object->keyid)
        r = error_set(error, EINVAL, "'iv' is of use only together with 'keyid'");
    if (r == 0)
        r = fetch(object, &bytes, error);
    if (r == 0 && object->format == SECRET_BASE64)
        r = decode(&bytes, "data", error);
    if (r == 0 && object->keyid)
        r = unwrap(object, store, &bytes, error);
    if (r == 0)
        r = secret_store_add(store, id, bytes.data, bytes.length, error);
    bytes_free(&bytes);
    return r;
}

static void wipe_text(char **text)
{
    if (*text)
        secret_wipe(*text, strlen(*text));
    free(*text);
    *text = NULL;
}

void secret_object_fini(struct secret_object *object)
{
    wipe_text(&object->data);
    wipe_text(&object->file);
    wipe_text(&object->keyid);
    wipe_text(&object->iv);
}
