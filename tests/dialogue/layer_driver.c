/* SPDX-License-Identifier: BSD-3-Clause */
/* Images as text. The node's options carry the address of its struct as a number. */
#include "tests/dialogue/layer_driver.h"

#include "tests/support/support.h"

#include <errno.h>
#include <string.h>

struct layer_state {
    uint64_t address; /* of the struct layer */
};

static struct layer *layer_of(const struct node *node)
{
    const struct layer_state *state = node->state;

    return (struct layer *)(uintptr_t)state->address;
}

/* One unit at a time, so that whoever wants runs has to merge them. */
static uint64_t unit_length(uint64_t offset, uint64_t length, uint64_t unit)
{
    return min_u64(length, unit - offset % unit);
}

static int layer_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    struct layer *layer = layer_of(node);
    char what = layer->map[offset / layer->unit];

    layer->maps++;
    *ret = (struct extent){.length = unit_length(offset, length, layer->unit)};
    if (what == '!')
        return -EIO;
    ret->kind = what == 'd' ? EXTENT_DATA : what == 'z' ? EXTENT_ZERO : EXTENT_ABSENT;
    ret->child = what == 'd' ? node->file : NULL;
    ret->child_offset = offset;
    return 0;
}

static int next_bit(struct block_bitmap *bitmap, uint64_t offset, uint64_t length,
                    struct block_bitmap_extent *ret)
{
    struct layer_bitmap *b = container_of(bitmap, struct layer_bitmap, bitmap);
    char bit = b->bits[offset / b->granularity];

    (void)length; /* to the end of the unit, be that more than was asked for */
    b->calls++;
    ret->length = b->granularity - offset % b->granularity;
    ret->dirty = bit == '#';
    return bit == '!' ? -EIO : 0;
}

static struct block_bitmap *layer_bitmap(struct node *node, size_t index)
{
    struct layer *layer = layer_of(node);

    return index < layer->bitmap_count ? &layer->bitmaps[index].bitmap : NULL;
}

static const struct option_row layer_options[] = {
    {"layer", OPTION_NUMBER, offsetof(struct layer_state, address), NULL, "the struct's address"},
    {0}};

static void set_up_bitmaps(struct node *node, struct layer *layer)
{
    static const struct block_bitmap_ops ops = {.next = next_bit};

    for (size_t i = 0; i < layer->bitmap_count; i++) {
        struct layer_bitmap *b = &layer->bitmaps[i];

        b->bitmap = (struct block_bitmap){.ops = &ops,
                                          .node = node,
                                          .name = b->name,
                                          .granularity = b->granularity,
                                          .size = layer->size,
                                          .enabled = b->enabled,
                                          .unusable = b->unusable};
    }
}

static int layer_open_node(struct node *node, struct node_open *open, struct error *error)
{
    int r = node_open_file(node, open, PERM_CONSISTENT_READ, PERM_ALL, error);

    if (r == 0)
        r = node_open_backing(node, open, NULL, 0, NULL, error);
    if (r == 0)
        r = options_take(open->options, layer_options, node->state, "layer", error);
    if (r < 0)
        return r;
    node->size = layer_of(node)->size;
    set_up_bitmaps(node, layer_of(node));
    return 0;
}

static void layer_close(struct node *node)
{
    (void)node;
}

static const struct driver driver_layer = {
    .name = "layer",
    .kind = DRIVER_FORMAT,
    .state_size = sizeof(struct layer_state),
    .options = layer_options,
    .open = layer_open_node,
    .close = layer_close,
    .map = layer_map,
    .bitmap = layer_bitmap,
};

static json_t *layer_tree(struct layer *layer)
{
    json_t *tree = json_pack("{s:s, s:I, s:{s:s, s:I}}", "driver", "layer", "layer",
                             (json_int_t)(uintptr_t)layer, "file", "driver", "ram", "disk",
                             (json_int_t)(uintptr_t)layer->disk);

    if (!tree)
        test_die("out of memory for options");
    json_object_set_new(tree, "backing", layer->backing ? layer_tree(layer->backing) : json_null());
    return tree;
}

struct node *layer_open(struct layer *layer)
{
    static const struct driver *const drivers[] = {&driver_ram, &driver_layer, NULL};
    static const struct block_context context = {.drivers = drivers};
    json_t *tree = layer_tree(layer);
    struct node *node = NULL;
    struct error error = {0};

    if (node_open_tree(&context, tree, 0, &node, &error) < 0)
        test_die("cannot open the image: %s", error.text);
    json_decref(tree);
    return node;
}
