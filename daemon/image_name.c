/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names of images.  What a name means must not depend on which files there are, or a file that
 * somebody puts into a directory would change it.
 */
#include "daemon/image_name.h"

#include "blockcore/drivers.h"
#include "blockcore/node.h"

#include <errno.h>
#include <string.h>

#define NAME_SHOWN 200

bool image_name_is_json(const char *name)
{
    static const char json[] = "json:";

    return !strncmp(name, json, strlen(json));
}

int image_name_path(const char *name, const char **ret_path, struct error *error)
{
    static const char file[] = "file:";
    size_t protocol = strcspn(name, ":/");
    char shown[NAME_SHOWN], prefix[64];

    *ret_path = name;
    if (name[protocol] != ':' || image_name_is_json(name) || driver_of_name(block_drivers, name))
        return 0;
    if (!strncmp(name, file, strlen(file)) && !driver_of_name(block_drivers, name + strlen(file))) {
        *ret_path = name + strlen(file);
        return 0;
    }
    error_escape(shown, sizeof(shown), name, strlen(name));
    return error_set(
        error, EINVAL,
        "Failed to open '%s': the protocol '%s' is not supported yet; give the path of "
        "a file or device, and write ./ in front of a file name with a colon",
        shown, error_escape(prefix, sizeof(prefix), name, protocol));
}
