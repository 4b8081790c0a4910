/* SPDX-License-Identifier: BSD-3-Clause */
/* Which partition is meant. */
#include "base/checked.h"
#include "base/size.h"
#include "blockcore/partition.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define SHOWN_MAX 160

int partition_choice_parse(const char *text, struct partition_choice *ret, struct error *error)
{
    static const char label[] = "label=", uuid[] = "uuid=";
    char shown[SHOWN_MAX];
    uint64_t number = 0;

    *ret = (struct partition_choice){0};
    if (strncmp(text, label, strlen(label)) == 0 && text[strlen(label)])
        ret->label = text + strlen(label);
    else if (strncmp(text, uuid, strlen(uuid)) == 0 && text[strlen(uuid)])
        ret->uuid = text + strlen(uuid);
    else if (number_parse(text, UINT32_MAX, &number) < 0 || number == 0)
        return error_set(error, EINVAL,
                         "Invalid partition '%s': a number from 1 on, label=NAME, uuid=UUID or "
                         "list is needed",
                         error_escape(shown, sizeof(shown), text, strlen(text)));
    ret->number = (uint32_t)number;
    return 0;
}

static bool matches(const struct partition_choice *choice, const struct partition *partition)
{
    if (choice->label)
        return strcmp(choice->label, partition->label) == 0;
    if (choice->uuid)
        return strcasecmp(choice->uuid, partition->uuid) == 0;
    return choice->number == partition->number;
}

/* The choice, for messages. */
static const char *describe(const struct partition_choice *choice, char out[SHOWN_MAX])
{
    const char *word = choice->label ? choice->label : choice->uuid;
    char shown[SHOWN_MAX - 16];

    if (word)
        snprintf(out, SHOWN_MAX, "with the %s '%s'", choice->label ? "label" : "UUID",
                 error_escape(shown, sizeof(shown), word, strlen(word)));
    else
        snprintf(out, SHOWN_MAX, "%" PRIu32, choice->number);
    return out;
}

/* "1, 2 'root', 5": numbers, and labels where these were asked for. */
static void list_known(const struct partition_table *table, const struct partition_choice *choice,
                       char *out, size_t out_size)
{
    size_t used = 0;

    *out = '\0';
    for (size_t i = 0; i < table->count && used < out_size; i++) {
        const struct partition *item = &table->items[i];
        const char *word = choice->label ? item->label : choice->uuid ? item->uuid : "";
        char shown[SHOWN_MAX];

        error_escape(shown, sizeof(shown), word, strlen(word));
        used += (size_t)snprintf(out + used, out_size - used, "%s%" PRIu32 "%s%s%s",
                                 used > 0 ? ", " : "", item->number, *word ? " '" : "", shown,
                                 *word ? "'" : "");
    }
    if (used >= out_size)
        memcpy(out + out_size - 4, "...", 4);
}

static int not_found(const struct partition_table *table, const struct partition_choice *choice,
                     struct error *error)
{
    char wanted[SHOWN_MAX], known[ERROR_TEXT_MAX / 2];

    list_known(table, choice, known, sizeof(known));
    return error_set(error, ENOENT, "Could not find partition %s: the %s has %s%s",
                     describe(choice, wanted), table->scheme,
                     table->count > 0 ? "the partitions " : "no partitions", known);
}

int partition_find(const struct partition_table *table, const struct partition_choice *choice,
                   uint64_t disk_size, const struct partition **ret, struct error *error)
{
    const struct partition *found = NULL;
    char wanted[SHOWN_MAX];

    for (size_t i = 0; i < table->count; i++) {
        if (!matches(choice, &table->items[i]))
            continue;
        if (found)
            return error_set(error, EINVAL,
                             "Could not find partition %s: %" PRIu32 " and %" PRIu32
                             " are such; choose one by its number",
                             describe(choice, wanted), found->number, table->items[i].number);
        found = &table->items[i];
    }
    if (!found)
        return not_found(table, choice, error);
    if (!range_within(found->offset, found->size, disk_size))
        return error_set(error, EINVAL,
                         "Discovered partition %" PRIu32 " at offset %" PRIu64 " size %" PRIu64
                         ", but size exceeds file length %" PRIu64,
                         found->number, found->offset, found->size, disk_size);
    *ret = found;
    return 0;
}
