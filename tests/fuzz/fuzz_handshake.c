/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: the handshake as bytes in, bytes out.  The first byte of the input chooses the
 * server's state and how the rest is read, the second where it is cut.
 *
 * The rest is what the client sends: bytes, or (PROGRAM) a program of the options that the
 * server knows, with their lengths right unless the program says otherwise, so that it comes deep
 * into a session with few bytes.
 *
 * With TLS allowed or required, what follows an acknowledged STARTTLS is either pipelined, which
 * must end the session, or (WAITS_FOR_TLS) comes as if out of a TLS session.
 *
 * Besides not crashing: what the server says can be read by an independent reader, and is, with
 * what the session has come to, the same however the bytes arrive.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "nbd/context.h"
#include "nbd/handshake.h"
#include "tests/dialogue/message.h"
#include "tests/dialogue/transcript.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    OLDSTYLE = 1,
    STOPPING = 2,
    NO_DEFAULT = 4,
    PROGRAM = 8,
    TLS_ALLOWED = 16, /* and the export "disk" needs it */
    TLS_REQUIRED = 32,
    WAITS_FOR_TLS = 64, /* the client sends what is inside of TLS after STARTTLS was acknowledged */
};

static char disk_name[] = "disk", disk_text[] = "a disk", cd_name[] = "cd";

struct said {
    uint8_t *data;
    size_t length;
    enum nbd_handshake_state state;
    struct nbd_session session;
    size_t used;
};

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void collect(struct said *said, struct nbd_handshake *hs)
{
    if (hs->output.length == 0)
        return;
    said->data = realloc(said->data, said->length + hs->output.length);
    require(said->data);
    memcpy(said->data + said->length, hs->output.data, hs->output.length);
    said->length += hs->output.length;
    hs->output.length = 0;
}

/* Offers [said->used, end) until no more of it is used. The copy makes reading beyond it visible.
 */
static void offer(struct said *said, struct nbd_handshake *hs, const uint8_t *data, size_t end)
{
    size_t n;

    do {
        size_t left = end - said->used;
        uint8_t *copy = malloc(left ? left : 1);

        require(copy);
        if (left > 0)
            memcpy(copy, data + said->used, left);
        n = nbd_handshake_input(hs, copy, left);
        free(copy);
        require(n <= left);
        said->used += n;
        collect(said, hs);
    } while (n > 0 || hs->listing);
}

/* What any session must be, wherever it has come to. */
static void require_session(const struct nbd_handshake *hs)
{
    const struct nbd_session *session = &hs->session;

    require(hs->state != NBD_HANDSHAKE_DONE || hs->chosen);
    require(hs->state == NBD_HANDSHAKE_CLOSED || !hs->reason.text[0]);
    require(session->selected == 0 || session->mode != NBD_MODE_SIMPLE);
    require(session->selected == 0 ||
            !(session->selected & ~nbd_context_all(session->selected_of)));
    require(!(hs->oldstyle || hs->shutting_down) || session->mode == NBD_MODE_SIMPLE);
    require(hs->secure || hs->tls != NBD_TLS_REQUIRED ||
            (session->mode == NBD_MODE_SIMPLE && hs->state != NBD_HANDSHAKE_DONE));
    require(hs->secure || hs->state != NBD_HANDSHAKE_DONE || !hs->chosen->needs_tls);
    require(!hs->secure || hs->tls != NBD_TLS_OFF);
}

/* STARTTLS was the last that came, and TLS is agreed on now. */
static void enter_tls(struct nbd_handshake *hs)
{
    require_session(hs);
    nbd_handshake_secured(hs);
    require(hs->session.mode == NBD_MODE_SIMPLE && hs->session.selected == 0);
}

/* The end of the first STARTTLS that ends behind `at`, up to `end`, wherever it begins. */
static size_t after_starttls(const uint8_t *data, size_t at, size_t end)
{
    static const uint8_t starttls[] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T',
                                       0,   0,   0,   5,   0,   0,   0,   0};
    size_t from = at < sizeof(starttls) ? 0 : at - sizeof(starttls) + 1;
    const uint8_t *found = memmem(data + from, end - from, starttls, sizeof(starttls));

    return found ? (size_t)(found - data) + sizeof(starttls) : end;
}

/* Offers what comes up to `end`, in the pieces in which such a client sends it. */
static void offer_until(struct said *said, struct nbd_handshake *hs, unsigned mode,
                        const uint8_t *data, size_t at, size_t end)
{
    while (at < end) {
        size_t stop = mode & WAITS_FOR_TLS ? after_starttls(data, at, end) : end;

        offer(said, hs, data, stop);
        if (mode & WAITS_FOR_TLS && hs->state == NBD_HANDSHAKE_STARTTLS && said->used == stop)
            enter_tls(hs);
        at = stop;
    }
}

static enum nbd_tls_mode tls_mode(unsigned mode)
{
    if (mode & TLS_REQUIRED)
        return NBD_TLS_REQUIRED;
    return mode & TLS_ALLOWED ? NBD_TLS_ALLOWED : NBD_TLS_OFF;
}

static struct said talk(const struct nbd_exports *exports, unsigned mode, const uint8_t *data,
                        size_t size, size_t cut)
{
    struct nbd_handshake hs;
    struct said said = {0};

    nbd_handshake_init(&hs, exports, NULL, mode & OLDSTYLE);
    hs.shutting_down = mode & STOPPING;
    if (!(mode & OLDSTYLE))
        hs.tls = tls_mode(mode);
    nbd_handshake_start(&hs);
    collect(&said, &hs);
    offer_until(&said, &hs, mode, data, 0, cut);
    offer_until(&said, &hs, mode, data, cut, size);
    said.state = hs.state;
    said.session = hs.session;
    require_session(&hs);
    nbd_handshake_fini(&hs);
    return said;
}

/* ---- Programs ---- */

/* Names and queries that lead somewhere, or nearly. */
static const char *const words[] = {
    "disk",
    "cd",
    "",
    "nodisk",
    "base:allocation",
    "base:",
    "qemu:",
    "qemu:allocation-depth",
    "qemu:dirty-bitmap:",
    "qemu:dirty-bitmap:today",
    "qemu:dirty-bitmap:tomorrow",
    "x-none:of it",
    "base",
    "\xc3\xa9",
    "\xc3",
};

static uint8_t next_byte(struct byte_reader *program)
{
    return program->left > 0 ? byte_reader_u8(program) : 0;
}

static void put_word(struct message *m, struct byte_reader *program)
{
    const char *word = words[next_byte(program) % ARRAY_SIZE(words)];

    message_u32(m, (uint32_t)strlen(word));
    message_bytes(m, word, strlen(word));
}

static void put_infos(struct message *m, struct byte_reader *program)
{
    unsigned count = next_byte(program) % 5;

    put_word(m, program);
    message_u16(m, (uint16_t)count);
    for (unsigned i = 0; i < count; i++)
        message_u16(m, next_byte(program) % 5);
}

static void put_queries(struct message *m, struct byte_reader *program)
{
    unsigned count = next_byte(program) % 6;

    put_word(m, program);
    message_u32(m, count);
    for (unsigned i = 0; i < count; i++)
        put_word(m, program);
}

/* Changes one byte of the data, or the length in the header. */
static void put_damage(struct message *m, size_t start, struct byte_reader *program)
{
    unsigned how = next_byte(program);
    size_t length = m->length - start;

    if (how < 0x40)
        put_be32(m->data + start - 4, (uint32_t)(length + how - 0x20));
    else if (how < 0x80 && length > 0)
        m->data[start + how % length] ^= (uint8_t)(1 + next_byte(program));
    else if (how < 0x90)
        message_fill(m, (uint8_t)how, how % 16);
}

static void put_option(struct message *m, struct byte_reader *program)
{
    unsigned what = next_byte(program), option = what % 12;
    size_t start;

    message_option(m, option, 0);
    start = m->length;
    if (option == NBD_OPT_INFO || option == NBD_OPT_GO)
        put_infos(m, program);
    else if (option == NBD_OPT_LIST_META_CONTEXT || option == NBD_OPT_SET_META_CONTEXT)
        put_queries(m, program);
    else if (option == NBD_OPT_EXPORT_NAME)
        message_bytes(m, words[what / 12 % 4], strlen(words[what / 12 % 4]));
    put_be32(m->data + start - 4, (uint32_t)(m->length - start));
    if (what >= 240)
        put_damage(m, start, program);
}

/* The first byte: client flags; then options until the program ends. */
static void put_program(struct message *m, const uint8_t *data, size_t size)
{
    struct byte_reader program = byte_reader_of(data, size);

    message_u32(m, next_byte(&program) & 0x83);
    while (program.left > 0)
        put_option(m, &program);
}

/* ---- Sessions ---- */

static void require_same(const struct said *a, const struct said *b)
{
    require(a->length == b->length && a->state == b->state && a->used == b->used);
    require(a->length == 0 || memcmp(a->data, b->data, a->length) == 0);
    require(a->session.mode == b->session.mode && a->session.selected == b->session.selected);
}

static void compare(const struct nbd_exports *exports, unsigned mode, size_t cut_at,
                    const struct message *m)
{
    struct said whole = talk(exports, mode, m->data, m->length, m->length);
    struct said cut = talk(exports, mode, m->data, m->length, min_u64(cut_at, m->length));
    char *text = transcript_of(whole.data, whole.length, mode & OLDSTYLE);

    require_same(&whole, &cut);
    require(!strstr(text, "BAD"));
    free(text);
    free(whole.data);
    free(cut.data);
}

static void set_up(struct nbd_exports *exports, struct nbd_export *disk, struct nbd_export *cd)
{
    static struct block_bitmap bitmaps[] = {{.name = "today"}, {.name = "d\xc3\xa9j\xc3\xa0"}};

    *disk = (struct nbd_export){.name = disk_name,
                                .description = disk_text,
                                .size = 1 << 20,
                                .flags = 0xd6d,
                                .block_min = 1,
                                .block_preferred = 4096,
                                .block_max = NBD_PAYLOAD_MAX,
                                .allocation_depth = true,
                                .bitmap_count = 2,
                                .bitmaps = {&bitmaps[0], &bitmaps[1]}};
    *cd = *disk;
    cd->name = cd_name;
    cd->description = NULL;
    cd->allocation_depth = false;
    cd->bitmap_count = 0;
    nbd_exports_init(exports);
    list_append(&exports->list, &disk->link);
    list_append(&exports->list, &cd->link);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nbd_export disk, cd;
    struct nbd_exports exports;
    struct message m = {0};

    if (size < 2)
        return 0;
    set_up(&exports, &disk, &cd);
    disk.needs_tls = data[0] & TLS_ALLOWED && !(data[0] & OLDSTYLE);
    if (!(data[0] & NO_DEFAULT))
        exports.default_export = &disk;
    if (data[0] & PROGRAM)
        put_program(&m, data + 2, size - 2);
    else
        message_bytes(&m, data + 2, size - 2);
    compare(&exports, data[0], data[1], &m);
    message_free(&m);
    return 0;
}
