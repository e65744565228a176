/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test.h - a test is TEST(name) { ... } in any file that is linked with test_main.c.
 *
 * How it works: each test runs in a process of its own, so a crash, a hang (60 s) or a changed signal handler is that
 * test's alone. The first CHECK that doesn't hold says where and ends the process. Under AddressSanitizer a leak fails
 * the test as well. `program WORD...` runs only the tests whose name contains one of the words.
 *
 * TEST_EACH_RING(title) instead of TEST(title): the test runs once with each format of a guest's rings, which
 * `test_rings` tells it; TEST_PACKED_RINGS(title): with each packed one. `program --rings packed,in_order [WORD...]` runs
 * what there is with that format; a TEST belongs to `split`.
 */
#ifndef PVS_TEST_H
#define PVS_TEST_H

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

enum test_rings { TEST_SPLIT, TEST_SPLIT_IN_ORDER, TEST_PACKED, TEST_PACKED_IN_ORDER, TEST_RINGS };

extern enum test_rings test_rings;

struct test {
    const char *name;
    void (*run)(void);
    uint32_t rings; /* a bit for each format */
    struct test *next;
};

void test_add(struct test *test);

#define TEST_REGISTER(title, formats)                                                 \
    static void title(void);                                                          \
    __attribute__((constructor)) static void add_##title(void)                        \
    {                                                                                 \
        static struct test test = { .name = #title, .run = title, .rings = formats }; \
        test_add(&test);                                                              \
    }                                                                                 \
    static void title(void)

#define TEST(title)              TEST_REGISTER(title, 1U << TEST_SPLIT)
#define TEST_EACH_RING(title)    TEST_REGISTER(title, (1U << TEST_RINGS) - 1)
#define TEST_PACKED_RINGS(title) TEST_REGISTER(title, 1U << TEST_PACKED | 1U << TEST_PACKED_IN_ORDER)

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            _exit(1);                                                                 \
        }                                                                             \
    } while (0)

/* Both sides are integers of any type; they are printed as signed numbers. */
#define CHECK_EQ(actual, expected)                                                                                    \
    do {                                                                                                              \
        int64_t actual_ = (int64_t)(actual), expected_ = (int64_t)(expected);                                         \
        if (actual_ != expected_) {                                                                                   \
            fprintf(stderr, "%s:%d: %s is %" PRId64 ", expected %" PRId64 "\n", __FILE__, __LINE__, #actual, actual_, \
                    expected_);                                                                                       \
            _exit(1);                                                                                                 \
        }                                                                                                             \
    } while (0)

#endif
