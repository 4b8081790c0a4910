/* SPDX-License-Identifier: BSD-3-Clause */
/* Base64: four characters of six bits make three bytes. */
#include "base/base64.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

static int digit_value(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = c ? strchr(digits, c) : NULL;

    return found ? (int)(found - digits) : -EINVAL;
}

int base64_decode(const char *text, size_t length, uint8_t *out, size_t *ret_length)
{
    uint32_t bits = 0;
    size_t used = 0;
    unsigned digits = 0, padding = 0; /* of the group that is being read */

    for (size_t i = 0; i < length; i++) {
        int value = text[i] == '=' ? 0 : digit_value(text[i]);

        if (isspace((unsigned char)text[i]))
            continue;
        if (value < 0 || (padding > 0 && (digits == 0 || text[i] != '=')))
            return -EINVAL;
        padding += text[i] == '=';
        bits = bits << 6 | (uint32_t)value;
        if (++digits < 4)
            continue;
        if (padding > 2)
            return -EINVAL;
        for (unsigned byte = 0; byte < 3 - padding; byte++)
            out[used++] = (uint8_t)(bits >> (16 - 8 * byte));
        digits = 0;
    }
    *ret_length = used;
    return digits == 0 ? 0 : -EINVAL;
}
