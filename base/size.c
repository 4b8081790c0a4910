/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Numbers and sizes as people write them.  No strtoull: it takes blanks, signs and wraps negative
 * numbers.  Wrong characters are found even after digits that do not fit, so that -ERANGE always
 * means a number of the right form.
 */
#include "base/size.h"

#include "base/checked.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FRACTION_DIGITS_MAX 18

/* A number that is too large stays at UINT64_MAX, with `overflow` set. */
struct digits {
    uint64_t value;
    bool overflow;
    size_t count; /* digits read */
};

static unsigned digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return (unsigned)(c - '0');
    if (c >= 'a' && c <= 'f')
        return (unsigned)(c - 'a') + 10;
    if (c >= 'A' && c <= 'F')
        return (unsigned)(c - 'A') + 10;
    return 16;
}

static struct digits read_digits(const char *text, unsigned base)
{
    struct digits d = {0};

    for (unsigned v; (v = digit_value(text[d.count])) < base; d.count++) {
        if (d.overflow || mul_overflows(d.value, base, &d.value) ||
            add_overflows(d.value, v, &d.value)) {
            d.overflow = true;
            d.value = UINT64_MAX;
        }
    }
    return d;
}

static bool is_hexadecimal(const char *text)
{
    return text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
}

int number_parse(const char *text, uint64_t max, uint64_t *ret)
{
    unsigned base = 10;
    struct digits d;

    if (is_hexadecimal(text)) {
        base = 16;
        text += 2;
    } else if (text[0] == '0') {
        base = 8;
    }
    d = read_digits(text, base);
    if (d.count == 0 || text[d.count] != '\0')
        return -EINVAL;
    if (d.overflow || d.value > max)
        return -ERANGE;
    *ret = d.value;
    return 0;
}

/* The power of two of a suffix, 0 for none; -EINVAL when `text` is something else. */
static int suffix_shift(const char *text)
{
    static const char suffixes[] = "BKMGTPE";
    const char *at;

    if (text[0] == '\0')
        return 0;
    at = strchr(suffixes, toupper((unsigned char)text[0]));
    if (!at || text[1] != '\0')
        return -EINVAL;
    return 10 * (int)(at - suffixes);
}

/* The fraction 0.`text` (`count` digits) times 2^shift, which must be whole. */
static int fraction_scale(const char *text, size_t count, int shift, uint64_t *ret)
{
    unsigned __int128 scaled;
    uint64_t fraction = 0;
    uint64_t power = 1;

    while (count > 0 && text[count - 1] == '0')
        count--;
    if (count > FRACTION_DIGITS_MAX)
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        fraction = fraction * 10 + digit_value(text[i]);
        power *= 10;
    }
    scaled = (unsigned __int128)fraction << shift;
    if (scaled % power != 0)
        return -EINVAL;
    *ret = (uint64_t)(scaled / power);
    return 0;
}

static int decimal_size(const char *text, uint64_t *ret)
{
    struct digits whole = read_digits(text, 10);
    struct digits fraction = {0};
    const char *fraction_text;
    uint64_t part;
    int shift;

    text += whole.count;
    fraction_text = text + 1;
    if (text[0] == '.') {
        fraction = read_digits(fraction_text, 10);
        if (fraction.count == 0)
            return -EINVAL;
        text = fraction_text + fraction.count;
    }
    shift = suffix_shift(text);
    if (whole.count == 0 || shift < 0)
        return -EINVAL;
    if (fraction_scale(fraction_text, fraction.count, shift, &part) < 0)
        return -EINVAL;
    if (whole.overflow || mul_overflows(whole.value, (uint64_t)1 << shift, ret) ||
        add_overflows(*ret, part, ret))
        return -ERANGE;
    return 0;
}

int size_parse(const char *text, uint64_t *ret)
{
    uint64_t size;
    int r =
        is_hexadecimal(text) ? number_parse(text, OFFSET_MAX, &size) : decimal_size(text, &size);

    if (r < 0)
        return r;
    if (size > OFFSET_MAX)
        return -ERANGE;
    *ret = size;
    return 0;
}

char *size_format(char *out, size_t out_size, uint64_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)size;
    size_t unit = 0;

    /* 999.5 and more would be printed as 1e+03. */
    while (value >= 999.5 && unit + 1 < ARRAY_SIZE(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(out, out_size, "%.3g %s", value, units[unit]);
    return out;
}
