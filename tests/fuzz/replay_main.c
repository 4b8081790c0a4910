/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A main for fuzz targets where libFuzzer is not linked: runs the files that it is given, and the
 * files in the directories that it is given, once each.  So every seed and every past finding is a
 * test with any compiler.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned long files;

__attribute__((noreturn)) static void die(const char *what, const char *path)
{
    fprintf(stderr, "cannot %s '%s': %s\n", what, path, strerror(errno));
    exit(1);
}

static void replay_file(const char *path, size_t size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = malloc(size); /* exactly, so that a sanitizer sees what runs past it */

    if (!file || (size > 0 && !data) || fread(data, 1, size, file) != size)
        die("read", path);
    fclose(file);
    /* Before it runs: then the last line names the file that ended the program. */
    fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    files++;
}

static void replay(const char *path);

static void replay_directory(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);

    if (count < 0)
        die("list", path);
    for (int i = 0; i < count; i++) {
        char *name;

        if (entries[i]->d_name[0] != '.') {
            if (asprintf(&name, "%s/%s", path, entries[i]->d_name) < 0)
                die("name", path);
            replay(name);
            free(name);
        }
        free(entries[i]);
    }
    free(entries);
}

static void replay(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        die("open", path);
    if (S_ISDIR(st.st_mode))
        replay_directory(path);
    else
        replay_file(path, (size_t)st.st_size);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        replay(argv[i]);
    printf("%lu inputs replayed\n", files);
    return files > 0 ? 0 : 1;
}
