/* SPDX-License-Identifier: BSD-3-Clause */
/* What metadata contexts tell of images with backing chains, holes, errors and dirty bitmaps. */
#include "nbd/context.h"

#include "base/reactor.h"
#include "tests/dialogue/layer_driver.h"
#include "tests/dialogue/rig.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define UNIT 512

struct scene {
    struct layer *image;
    struct ram_disk disk;
    struct node *node;
    struct nbd_export *nbd_export;
    int (*play)(struct scene *scene);
};

/* In a coroutine. */
static int scene_open(void *arg)
{
    struct scene *scene = arg;
    int r;

    scene->node = layer_open(scene->image);
    scene->nbd_export = nbd_export_new("disk", NULL, scene->node, true, true);
    assert_non_null(scene->nbd_export);
    r = scene->play(scene);
    nbd_export_free(scene->nbd_export);
    node_unref(scene->node);
    return r;
}

static void run_scene(struct layer *image, int (*play)(struct scene *scene))
{
    struct scene scene = {.image = image, .play = play};

    assert_int_equal(reactor_init(NULL), 0);
    ram_disk_init(&scene.disk, 1 << 20);
    for (struct layer *layer = image; layer; layer = layer->backing) {
        layer->disk = &scene.disk;
        layer->unit = layer->unit ? layer->unit : UNIT;
        layer->size = layer->size ? layer->size : layer->unit * strlen(layer->map);
    }
    assert_int_equal(reactor_run_coroutine(scene_open, &scene), 0);
    ram_disk_fini(&scene.disk);
    reactor_fini();
}

/*
 * What a context tells of a range, as "LENGTH:FLAGS ..." with neighbors of the same flags merged,
 * and "!" where it ends in an error.
 */
static void expect_extents(const struct scene *scene, unsigned context, uint64_t offset,
                           uint64_t length, const char *wanted)
{
    char text[512] = "";
    size_t at = 0;
    struct nbd_extent run = {0}, next;
    int r = 0;

    while (length > 0) {
        r = nbd_context_next(scene->nbd_export, context, offset, length, &next);
        if (r < 0)
            break;
        assert_in_range(next.length, 1, length);
        offset += next.length;
        length -= next.length;
        if (run.length > 0 && run.flags == next.flags) {
            run.length += next.length;
            continue;
        }
        if (run.length > 0)
            at += (size_t)snprintf(text + at, sizeof(text) - at, "%" PRIu64 ":%" PRIu64 " ",
                                   run.length, run.flags);
        run = next;
    }
    if (run.length > 0)
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%" PRIu64 ":%" PRIu64, run.length,
                               run.flags);
    snprintf(text + at, sizeof(text) - at, "%s", r == -EIO ? "!" : "");
    assert_string_equal(text, wanted);
}

/*  top     d . z . . . . d
 *  middle  . d d z . . .
 *  bottom  . . d . . d        each is shorter than the one above
 */
static int play_chain(struct scene *scene)
{
    expect_extents(scene, 0, 0, 4096, "1024:0 1536:3 512:0 512:3 512:0");
    expect_extents(scene, 1, 0, 4096, "512:1 512:2 512:1 512:2 512:0 1024:3 512:1");
    /* Parts, of any alignment. */
    expect_extents(scene, 0, 1023, 2, "1:0 1:3");
    expect_extents(scene, 0, 4095, 1, "1:0");
    expect_extents(scene, 1, 700, 1000, "324:2 512:1 164:2");
    return 0;
}

static void test_chain(void **state)
{
    struct layer bottom = {.map = "..d..d"};
    struct layer middle = {.map = ".ddz...", .backing = &bottom};
    struct layer top = {.map = "d.z....d", .backing = &middle};

    run_scene(&top, play_chain);
}

/* What is good before an error is told; the error is for who asks for the place itself. */
static int play_broken(struct scene *scene)
{
    expect_extents(scene, 0, 0, 2560, "1024:0!");
    expect_extents(scene, 0, 1536, 1024, "1024:3");
    expect_extents(scene, 1, 0, 1024, "512:1 512:2");
    expect_extents(scene, 1, 1100, 10, "!");
    expect_extents(scene, 2, 0, 2560, "512:1 512:0!");
    expect_extents(scene, 2, 1536, 1024, "512:1 512:0");
    return 0;
}

static int play_broken_with_bitmap(struct scene *scene)
{
    struct error error = {0};

    if (nbd_export_add_bitmap(scene->nbd_export, "b", &error) < 0)
        fail_msg("%s", error.text);
    return play_broken(scene);
}

static void test_errors(void **state)
{
    struct layer_bitmap bitmap = {.name = "b", .granularity = UNIT, .bits = "#.!#."};
    struct layer bottom = {.map = "zd!zz"};
    struct layer top = {.map = "d..zz", .backing = &bottom, .bitmaps = &bitmap, .bitmap_count = 1};

    run_scene(&top, play_broken_with_bitmap);
}

/* One unit after the other is different: no call may look through all of them. */
static int play_alternating(struct scene *scene)
{
    struct layer *image = scene->image;
    struct nbd_extent extent;
    unsigned calls;

    assert_int_equal(nbd_context_next(scene->nbd_export, 0, 0, image->size, &extent), 0);
    assert_int_equal(extent.length, UNIT);
    image->maps = 0;
    for (calls = 0; calls < 10; calls++)
        assert_int_equal(nbd_context_next(scene->nbd_export, 0, calls * UNIT,
                                          image->size - calls * UNIT, &extent),
                         0);
    assert_true(image->maps <= 2 * calls);
    return 0;
}

static void test_alternating(void **state)
{
    static char map[100001];
    struct layer image = {.map = map};

    for (size_t i = 0; i < sizeof(map) - 1; i++)
        map[i] = i % 2 ? 'd' : 'z';
    run_scene(&image, play_alternating);
}

/* All the same, in more units than one call looks at: neighbors with the same flags. */
static int play_uniform(struct scene *scene)
{
    struct nbd_extent extent;
    char wanted[32];

    snprintf(wanted, sizeof(wanted), "%" PRIu64 ":3", scene->image->size);
    expect_extents(scene, 0, 0, scene->image->size, wanted);
    scene->image->maps = 0;
    assert_int_equal(nbd_context_next(scene->nbd_export, 0, 0, scene->image->size, &extent), 0);
    assert_true(extent.length < scene->image->size);
    assert_true(scene->image->maps < 5000);
    return 0;
}

static void test_uniform(void **state)
{
    static char map[20001];
    struct layer image = {.map = map};

    memset(map, 'z', sizeof(map) - 1);
    run_scene(&image, play_uniform);
}

/* ---- Bitmaps ---- */

static void expect_refusal(struct nbd_export *nbd_export, const char *name, int err,
                           const char *sentence)
{
    struct error error = {0};
    unsigned count = nbd_export->bitmap_count;

    assert_int_equal(nbd_export_add_bitmap(nbd_export, name, &error), err);
    assert_string_equal(error.text, sentence);
    assert_int_equal(nbd_export->bitmap_count, count);
}

static void add_bitmap(struct nbd_export *nbd_export, const char *name)
{
    struct error error = {0};

    if (nbd_export_add_bitmap(nbd_export, name, &error) < 0)
        fail_msg("%s", error.text);
}

/* On an export that is read-only, of an image that is not. */
static int play_enabled(struct scene *scene)
{
    scene->node->flags |= NODE_WRITABLE;
    expect_refusal(scene->nbd_export, "on", -EINVAL,
                   "Enabled bitmap 'on' cannot be exported read-only while its image is open for "
                   "writing");
    add_bitmap(scene->nbd_export, "off");
    scene->node->flags &= ~(unsigned)NODE_WRITABLE;
    add_bitmap(scene->nbd_export, "on");
    return 0;
}

static void test_enabled(void **state)
{
    struct layer_bitmap bitmaps[] = {
        {.name = "on", .granularity = 512, .bits = "#", .enabled = true},
        {.name = "off", .granularity = 512, .bits = "#"}};
    struct layer top = {.map = "d", .bitmaps = bitmaps, .bitmap_count = 2};

    run_scene(&top, play_enabled);
}

#define THERE_ARE "; ram and its backing files have: 'fine', 'lost', 'coarse', 'old', 'fine'"

static int play_bitmaps(struct scene *scene)
{
    struct nbd_export *e = scene->nbd_export;
    char name[NBD_STRING_MAX];

    expect_refusal(e, "nobody", -ENOENT, "Bitmap 'nobody' is not found" THERE_ARE);
    expect_refusal(e, "", -ENOENT, "Bitmap '' is not found" THERE_ARE);
    expect_refusal(e, "a\nb", -ENOENT, "Bitmap 'a\\x0ab' is not found" THERE_ARE);
    expect_refusal(e, "lost", -EINVAL, "Bitmap 'lost' cannot be used: it was not saved properly");
    add_bitmap(e, "coarse");
    add_bitmap(e, "old");
    add_bitmap(e, "fine");
    expect_refusal(e, "coarse", -EEXIST, "Bitmap 'coarse' was given more than once");
    /* In the order in which they were added; of two with one name, the nearer. */
    assert_int_equal(nbd_context_all(e), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4);
    assert_int_equal(nbd_context_name(e, 4, name), strlen("qemu:dirty-bitmap:fine"));
    assert_memory_equal(name, "qemu:dirty-bitmap:fine", strlen("qemu:dirty-bitmap:fine"));
    expect_extents(scene, 4, 0, 4096, "512:1 3072:0 512:1");
    /* A unit is told by the part that was asked for, at either end. */
    expect_extents(scene, 2, 0, 4096, "2048:0 2048:1");
    expect_extents(scene, 2, 1000, 2000, "1048:0 952:1");
    expect_extents(scene, 2, 3000, 1, "1:1");
    /* The bitmap of a shorter backing image says nothing of what lies behind its end. */
    expect_extents(scene, 3, 0, 4096, "512:0 512:1 3072:0");
    expect_extents(scene, 3, 1023, 2, "1:1 1:0");
    expect_extents(scene, 3, 4000, 96, "96:0");
    return 0;
}

static void test_bitmaps(void **state)
{
    struct layer_bitmap of_base[] = {{.name = "old", .granularity = 512, .bits = ".#"},
                                     {.name = "fine", .granularity = 512, .bits = "##"}};
    struct layer_bitmap of_top[] = {
        {.name = "fine", .granularity = 512, .bits = "#......#"},
        {.name = "lost", .granularity = 512, .bits = "", .unusable = "it was not saved properly"},
        {.name = "coarse", .granularity = 2048, .bits = ".#"}};
    struct layer base = {.map = "dd", .bitmaps = of_base, .bitmap_count = 2};
    struct layer top = {.map = "dddddddd", .backing = &base, .bitmaps = of_top, .bitmap_count = 3};

    run_scene(&top, play_bitmaps);
}

static int play_too_many(struct scene *scene)
{
    char sentence[128];

    for (unsigned i = 0; i < NBD_EXPORT_BITMAPS_MAX; i++)
        add_bitmap(scene->nbd_export, scene->image->bitmaps[i].name);
    snprintf(sentence, sizeof(sentence), "Bitmap '%s' is one too many: an export can have up to 62",
             scene->image->bitmaps[NBD_EXPORT_BITMAPS_MAX].name);
    expect_refusal(scene->nbd_export, scene->image->bitmaps[NBD_EXPORT_BITMAPS_MAX].name, -ENOSPC,
                   sentence);
    expect_extents(scene, 63, 0, 512, "512:1");
    return 0;
}

static void test_too_many(void **state)
{
    static struct layer_bitmap bitmaps[NBD_EXPORT_BITMAPS_MAX + 1];
    static char names[NBD_EXPORT_BITMAPS_MAX + 1][8];
    struct layer image = {
        .map = "d", .bitmaps = bitmaps, .bitmap_count = NBD_EXPORT_BITMAPS_MAX + 1};

    for (unsigned i = 0; i <= NBD_EXPORT_BITMAPS_MAX; i++) {
        snprintf(names[i], sizeof(names[i]), "n%u", i);
        bitmaps[i] = (struct layer_bitmap){.name = names[i],
                                           .granularity = 512,
                                           .bits = i + 1 == NBD_EXPORT_BITMAPS_MAX ? "#" : "."};
    }
    run_scene(&image, play_too_many);
}

/* ---- Over the wire ---- */

static void expect_status(struct client *c, enum nbd_reply_mode mode, uint16_t flags,
                          uint64_t offset, uint32_t length, const char *log)
{
    const struct nbd_request request = {.command = NBD_CMD_BLOCK_STATUS,
                                        .flags = flags,
                                        .cookie = 1,
                                        .offset = offset,
                                        .length = length,
                                        .contexts = 1 << 0 | 1 << 1 | 1 << 3};

    client_expect_log(c, mode, &request, log);
}

/* Three of four contexts are selected: each has its chunk, of those alone. */
static void test_replies(void **state)
{
    static const char *const contexts =
        "qemu:dirty-bitmap:late base:allocation qemu:allocation-depth";
    struct layer_bitmap bitmaps[] = {{.name = "early", .granularity = 512, .bits = "####"},
                                     {.name = "late", .granularity = 1024, .bits = ".#"}};
    struct ram_disk disk;
    struct layer base = {.map = "ddd", .unit = UNIT, .size = 3 * UNIT, .disk = &disk};
    struct layer top = {.map = ".d.z",
                        .unit = UNIT,
                        .size = 4 * UNIT,
                        .disk = &disk,
                        .backing = &base,
                        .bitmaps = bitmaps,
                        .bitmap_count = 2};
    const struct rig_options options = {.layer = &top, .allocation_depth = true};

    ram_disk_init(&disk, 4 * UNIT);
    for (int mode = NBD_MODE_STRUCTURED; mode <= NBD_MODE_EXTENDED; mode++) {
        struct rig rig;
        struct client c;

        rig_init(&rig, &options);
        add_bitmap(rig.nbd_export, "early");
        add_bitmap(rig.nbd_export, "late");
        client_enter_mode(&c, &rig, (enum nbd_reply_mode)mode, contexts);
        expect_status(&c, (enum nbd_reply_mode)mode, 0, 0, 2048,
                      "status 0: 1536:0 512:3; status 1: 512:2 512:1 512:2 512:1; status 3: "
                      "1024:0 1024:1 done");
        expect_status(&c, (enum nbd_reply_mode)mode, NBD_CMD_FLAG_REQ_ONE, 600, 1000,
                      "status 0: 936:0; status 1: 424:1; status 3: 424:0 done");
        client_free(&c);
        rig_fini(&rig);
    }
    ram_disk_fini(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chain),       cmocka_unit_test(test_errors),
        cmocka_unit_test(test_alternating), cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_bitmaps),     cmocka_unit_test(test_enabled),
        cmocka_unit_test(test_too_many),    cmocka_unit_test(test_replies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
