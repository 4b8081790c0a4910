/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * inih splits the lines into names and values.  It is handed them one by one, from memory, so that
 * the number of the line is known here when it calls back, and so that what it would cut or join
 * (long lines, long titles, a section that is opened a second time) is refused instead.
 */
#include "daemon/config_file.h"

#include "base/checked.h"
#include "base/file_read.h"
#include "daemon/image_name.h"

#include <dirent.h>
#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (1024 * 1024)
#define LINE_MAX_BYTES 4096
#define WHITE_SPACE " \t\r\v\f" /* that inih skips before a title */
#define BYTE_ORDER_MARK "\xef\xbb\xbf"
#define TITLE_MAX 48 /* inih keeps so many bytes of it */

struct text {
    struct list link;
    char bytes[];
};

struct reading {
    struct config *config;
    const char *path;
    const char *next; /* line that inih has not seen */
    unsigned line;    /* that it looks at */

    char title[TITLE_MAX + 1]; /* of the section; "" before the first */
    struct config_part *part;  /* NULL: [server], or none */
    struct cli_setter server;  /* all files have their say */
    struct cli_setter of_part;

    int err;
    struct error *error;
};

/* Puts the place before what is wrong there. */
static int wrong(struct reading *r, int err)
{
    if (r->line > 0)
        error_prefix(r->error, "%s:%u: ", r->path, r->line);
    else
        error_prefix(r->error, "%s: ", r->path);
    r->err = err;
    return err;
}

static int no_memory(struct reading *r)
{
    return wrong(r, error_set(r->error, ENOMEM, "out of memory"));
}

static const char *keep(struct config *config, const char *bytes)
{
    size_t size = strlen(bytes) + 1;
    struct text *text = malloc(sizeof(*text) + size);

    if (!text)
        return NULL;
    memcpy(text->bytes, bytes, size);
    list_append(&config->texts, &text->link);
    return text->bytes;
}

/* ---- Sections ---- */

static struct config_part *part_new(struct reading *r, const char *label)
{
    struct config_part *part = calloc(1, sizeof(*part));
    char where[PATH_MAX + 16];

    if (!part)
        return NULL;
    snprintf(where, sizeof(where), "%s:%u", r->path, r->line);
    part->arguments = arguments_of_config();
    part->label = keep(r->config, label);
    part->where = keep(r->config, where);
    if (part->label && part->where)
        return part;
    free(part);
    return NULL;
}

static bool has_label(const struct list *parts, const char *label)
{
    list_for_each(it, parts)
    {
        if (!strcmp(list_entry(it, struct config_part, link)->label, label))
            return true;
    }
    return false;
}

/* Of a kind of which there can be many. */
static int begin_part(struct reading *r, struct list *parts, unsigned scope, const char *label)
{
    if (!*label)
        return wrong(
            r, error_set(r->error, EINVAL, "[%s] needs a label: [%s LABEL]", r->title, r->title));
    if (has_label(parts, label))
        return wrong(r, error_set(r->error, EINVAL, "there is a section [%s] already", r->title));
    r->part = part_new(r, label);
    if (!r->part)
        return no_memory(r);
    list_append(parts, &r->part->link);
    r->of_part = (struct cli_setter){&arguments_cli, &r->part->arguments, scope, {false}};
    if (scope == SCOPE_EXPORT)
        r->part->arguments.export_name = r->part->label;
    return 0;
}

static int begin_section(struct reading *r, const char *title, size_t length)
{
    size_t kind = strcspn(title, " ]");
    const char *label;

    if (length > TITLE_MAX)
        return wrong(r, error_set(r->error, EINVAL,
                                  "the title of the section is too long: at most %d bytes; an "
                                  "export can have a longer name with export-name=",
                                  TITLE_MAX));
    snprintf(r->title, sizeof(r->title), "%.*s", (int)length, title);
    label = r->title + (kind < length ? kind : length);
    label += strspn(label, " ");
    r->part = NULL;
    if (kind == strlen("listen") && !strncmp(title, "listen", kind))
        return begin_part(r, &r->config->listeners, SCOPE_LISTENER, label);
    if (kind == strlen("export") && !strncmp(title, "export", kind))
        return begin_part(r, &r->config->exports, SCOPE_EXPORT, label);
    if (strcmp(r->title, "server") != 0)
        return wrong(r, error_set(r->error, EINVAL,
                                  "[%s] is no section; there are: [server], [listen LABEL], "
                                  "[export LABEL]",
                                  r->title));
    return 0;
}

/* ---- Lines ---- */

/* One line for inih, as fgets() would give it. NULL: no more, or something is wrong. */
static char *next_line(char *out, int room, void *user)
{
    struct reading *r = user;
    const char *line = r->next, *start;
    size_t length = strcspn(line, "\n");

    if (r->err < 0 || !*line)
        return NULL;
    r->line++;
    r->next += length + (line[length] == '\n');
    if (length > LINE_MAX_BYTES) {
        wrong(r, error_set(r->error, EINVAL, "the line has %zu bytes; at most %d are read", length,
                           LINE_MAX_BYTES));
        return NULL;
    }
    snprintf(out, (size_t)room, "%.*s\n", (int)length, line);
    start = out + strspn(out, WHITE_SPACE);
    if (*start == '[') {
        size_t end = strcspn(start, "]\n");

        if (start[end] != ']')
            wrong(r, error_set(r->error, EINVAL, "a section begins with a title in [ and ]"));
        else if (begin_section(r, start + 1, end - 1) == 0)
            return out;
        return NULL;
    }
    return out;
}

/* inih: a name and a value. 0: it was wrong. */
static int take_value(void *user, const char *section, const char *name, const char *value)
{
    struct reading *r = user;
    const char *kept = keep(r->config, value);
    int err;

    if (!kept)
        err = error_set(r->error, ENOMEM, "out of memory");
    else if (!*r->title)
        err = error_set(r->error, EINVAL, "'%s' stands before the first section", name);
    else
        err = cli_set(r->part ? &r->of_part : &r->server, name, kept, r->error);
    if (err < 0)
        wrong(r, err);
    return err == 0;
}

static int read_lines(struct reading *r, const char *bytes, size_t length)
{
    int line;

    if (strlen(bytes) != length)
        return wrong(r, error_set(r->error, EINVAL, "there is a 0 byte in the file"));
    r->next = strncmp(bytes, BYTE_ORDER_MARK, 3) == 0 ? bytes + 3 : bytes;
    ini_allow_multiline = false;
    ini_allow_inline_comments = false;
    ini_use_stack = false;
    ini_max_line = LINE_MAX_BYTES + 3;
    line = ini_parse_stream(next_line, r, take_value, r);
    if (r->err < 0)
        return r->err;
    if (line < 0)
        return no_memory(r);
    r->line = (unsigned)line;
    if (line > 0)
        return wrong(r, error_set(r->error, EINVAL, "a line NAME = VALUE is needed"));
    return 0;
}

static int read_one(struct reading *r, const char *path)
{
    uint8_t *bytes;
    size_t length;
    int err = file_read(path, FILE_MAX, &bytes, &length, r->error);

    if (err < 0)
        return err;
    r->path = path;
    r->line = 0;
    r->title[0] = '\0';
    r->part = NULL;
    err = read_lines(r, (const char *)bytes, length);
    free(bytes);
    return err;
}

static int is_part(const struct dirent *entry)
{
    static const char suffix[] = ".conf";
    size_t length = strlen(entry->d_name);

    return *entry->d_name != '.' && length > strlen(suffix) &&
           !strcmp(entry->d_name + length - strlen(suffix), suffix);
}

static int read_entry(struct reading *r, const char *folder, const char *name)
{
    char *path;
    int err;

    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return error_set(r->error, ENOMEM, "out of memory");
    err = read_one(r, path);
    free(path);
    return err;
}

static int read_entries(struct reading *r, const char *folder)
{
    struct dirent **entries;
    int count = scandir(folder, &entries, is_part, alphasort), err = 0;

    if (count < 0 && errno == ENOENT)
        return 0;
    if (count < 0)
        return error_set_errno(r->error, errno, "Could not look for '*.conf' in '%s'", folder);
    for (int i = 0; i < count; i++) {
        if (err == 0)
            err = read_entry(r, folder, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return err;
}

/* The files *.conf of conf.d beside `path`. */
static int read_folder(struct reading *r, const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder;
    int err;

    if (asprintf(&folder, "%.*sconf.d", slash ? (int)(slash - path + 1) : 0, path) < 0)
        return error_set(r->error, ENOMEM, "out of memory");
    err = read_entries(r, folder);
    free(folder);
    return err;
}

/* ---- What the parts mean ---- */

static int check_export(const struct config *config, struct config_part *part, struct error *error)
{
    struct arguments *a = &part->arguments;
    int err;

    if (!a->image)
        return error_set(error, EINVAL, "[export %s] needs image=", part->label);
    list_for_each(it, &config->exports)
    {
        const struct config_part *other = list_entry(it, struct config_part, link);

        if (other == part)
            break;
        if (!strcmp(other->arguments.export_name, a->export_name))
            return error_set(error, EINVAL, "the export '%s' is there already, from %s",
                             a->export_name, other->where);
    }
    err = a->image_opts ? 0 : image_name_path(a->image, &a->image, error);
    return err < 0 ? err : arguments_check_export(a, &config->server, error);
}

static int check_parts(struct config *config, struct error *error)
{
    list_for_each(it, &config->listeners)
    {
        struct config_part *part = list_entry(it, struct config_part, link);
        int err = arguments_check_listener(&part->arguments, error);

        if (err < 0) {
            error_prefix(error, "%s: ", part->where);
            return err;
        }
    }
    list_for_each(it, &config->exports)
    {
        struct config_part *part = list_entry(it, struct config_part, link);
        int err = check_export(config, part, error);

        if (err < 0) {
            error_prefix(error, "%s: ", part->where);
            return err;
        }
    }
    return 0;
}

int config_read(struct config *config, const char *path, struct error *error)
{
    struct reading r = {.config = config, .path = path, .error = error};
    int err;

    config->server = arguments_of_config();
    list_init(&config->listeners);
    list_init(&config->exports);
    list_init(&config->texts);
    r.server = (struct cli_setter){&arguments_cli, &config->server, SCOPE_SERVER, {false}};
    err = read_one(&r, path);
    if (err == 0)
        err = read_folder(&r, path);
    if (err == 0)
        err = arguments_check_server(&config->server, error);
    if (err == 0 && list_empty(&config->exports))
        err = error_set(error, EINVAL,
                        "'%s' has no section [export LABEL]: there is nothing to serve", path);
    return err < 0 ? err : check_parts(config, error);
}

static void parts_fini(struct list *parts)
{
    while (!list_empty(parts)) {
        struct config_part *part = list_entry(parts->next, struct config_part, link);

        list_remove(&part->link);
        arguments_release(&part->arguments);
        free(part);
    }
}

void config_fini(struct config *config)
{
    parts_fini(&config->listeners);
    parts_fini(&config->exports);
    arguments_release(&config->server);
    while (!list_empty(&config->texts)) {
        struct text *text = list_entry(config->texts.next, struct text, link);

        list_remove(&text->link);
        free(text);
    }
}
