/* SPDX-License-Identifier: BSD-3-Clause */
/* The list, whose order is written down as the letters of its items. */
#include "base/list.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

struct item {
    int before; /* so that the link is not at offset 0 */
    struct list link;
    char letter;
};

#define ITEM(c)                                                                                    \
    {                                                                                              \
        .letter = (c)                                                                              \
    }

/* Checks the letters in both directions. */
static void assert_order(const struct list *head, const char *letters)
{
    size_t n = strlen(letters);
    size_t i = 0;

    for (const struct list *it = head->next; it != head; it = it->next, i++) {
        const struct item *item =
            (const struct item *)((const char *)it - offsetof(struct item, link));

        assert_true(i < n);
        assert_int_equal(item->letter, letters[i]);
        assert_ptr_equal(it->next->prev, it);
        assert_ptr_equal(it->prev->next, it);
    }
    assert_int_equal(i, n);
    assert_int_equal(list_empty(head), n == 0);
}

static void test_insert(void **state)
{
    struct item a = ITEM('a'), b = ITEM('b'), c = ITEM('c'), d = ITEM('d');
    struct list head = LIST_INIT(head);

    assert_order(&head, "");
    list_append(&head, &b.link);
    list_append(&head, &d.link);
    list_prepend(&head, &a.link);
    list_insert(&c.link, &b.link);
    assert_order(&head, "abcd");
    assert_true(list_linked(&a.link));
    list_init(&head);
    assert_order(&head, "");
}

static void test_remove(void **state)
{
    struct item a = ITEM('a'), b = ITEM('b'), c = ITEM('c');
    struct list head = LIST_INIT(head);

    assert_false(list_linked(&a.link));
    list_remove(&a.link); /* was never linked */
    list_append(&head, &a.link);
    list_append(&head, &b.link);
    list_append(&head, &c.link);
    list_remove(&b.link);
    assert_order(&head, "ac");
    assert_false(list_linked(&b.link));
    list_remove(&b.link);
    assert_order(&head, "ac");
    list_append(&head, &b.link);
    assert_order(&head, "acb");
}

static void test_pop(void **state)
{
    struct item a = ITEM('a'), b = ITEM('b');
    struct list head = LIST_INIT(head);

    assert_null(list_pop(&head));
    list_append(&head, &a.link);
    list_append(&head, &b.link);
    assert_ptr_equal(list_entry(list_pop(&head), struct item, link), &a);
    assert_false(list_linked(&a.link));
    assert_order(&head, "b");
    assert_ptr_equal(list_pop(&head), &b.link);
    assert_null(list_pop(&head));
}

static void test_splice(void **state)
{
    struct item a = ITEM('a'), b = ITEM('b'), c = ITEM('c'), d = ITEM('d');
    struct list one = LIST_INIT(one), two = LIST_INIT(two);

    list_splice(&one, &two);
    assert_order(&one, "");
    list_append(&two, &a.link);
    list_append(&two, &b.link);
    list_splice(&one, &two);
    assert_order(&one, "ab");
    assert_order(&two, "");
    list_append(&two, &c.link);
    list_append(&two, &d.link);
    list_splice(&one, &two);
    assert_order(&one, "abcd");
    list_splice(&one, &two);
    assert_order(&one, "abcd");
}

static void test_iterate(void **state)
{
    struct item items[] = {ITEM('a'), ITEM('b'), ITEM('c'), ITEM('d')};
    struct list head = LIST_INIT(head);
    char seen[8] = "";
    size_t n = 0;

    list_for_each(it, &head) n++;
    assert_int_equal(n, 0);
    for (size_t i = 0; i < ARRAY_SIZE(items); i++)
        list_append(&head, &items[i].link);
    list_for_each(it, &head) seen[n++] = list_entry(it, struct item, link)->letter;
    assert_string_equal(seen, "abcd");
    /* Every second one goes while walking. */
    list_for_each_safe(it, next, &head)
    {
        if (list_entry(it, struct item, link)->letter % 2 == 0)
            list_remove(it);
    }
    assert_order(&head, "ac");
    list_for_each_safe(it, next, &head) list_remove(it);
    assert_order(&head, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_insert), cmocka_unit_test(test_remove),  cmocka_unit_test(test_pop),
        cmocka_unit_test(test_splice), cmocka_unit_test(test_iterate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
