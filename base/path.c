/* SPDX-License-Identifier: BSD-3-Clause */
/* Making names absolute. */
#include "base/path.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *path_absolute(const char *path)
{
    char *directory, *absolute;

    if (path[0] == '/')
        return strdup(path);
    directory = getcwd(NULL, 0);
    if (!directory)
        return NULL;
    if (asprintf(&absolute, "%s/%s", directory, path) < 0)
        absolute = NULL;
    free(directory);
    return absolute;
}
