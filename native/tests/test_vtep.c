/* SPDX-License-Identifier: Apache-2.0 */
/* test_vtep.c - the table of VTEPs: who is in it, who adds and removes, and what becomes of their numbers (vtep.h). */
#include "vtep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lab.h"

enum { LEARNED_MOST = PVS_MAX_VTEPS * 3 / 4, ALL = PVS_MAX_VTEPS - 1 };

static struct pvs_vteps *vteps;

/* 10.0.0.0/8, and one of IPv6. */
static const uint8_t *
ipv4(uint32_t host)
{
    static uint8_t address[PVS_ADDRESS] = { [10] = 0xff, [11] = 0xff, [12] = 10 };

    address[13] = (uint8_t)(host >> 16);
    address[14] = (uint8_t)(host >> 8);
    address[15] = (uint8_t)host;
    return address;
}

static const uint8_t *
ipv6(uint8_t first, uint8_t last)
{
    static uint8_t address[PVS_ADDRESS];

    address[0] = first;
    address[15] = last;
    return address;
}

static void
open_it(void)
{
    CHECK_EQ(pvs_vteps_create(1, &vteps), 0);
}

static uint32_t
add(const uint8_t *address)
{
    uint32_t number = 0;

    CHECK_EQ(pvs_vteps_add(vteps, address, &number), 0);
    CHECK(number != 0 && number < PVS_MAX_VTEPS);
    return number;
}

static void
drop(uint32_t number)
{
    CHECK_EQ(pvs_vteps_unlink(vteps, number), 0);
    CHECK_EQ(pvs_vteps_free(vteps, number), 0);
}

static struct pvs_vtep_info
info(uint32_t number, uint32_t now_s)
{
    struct pvs_vtep_info i;

    memset(&i, 0xee, sizeof i);
    CHECK_EQ(pvs_vteps_info(vteps, number, now_s, &i), 0);
    return i;
}

TEST(vtep_an_address_has_one_number)
{
    open_it();
    CHECK_EQ(pvs_vtep_seen(vteps, ipv4(1), 5), 0);
    uint32_t one = add(ipv4(1)), two = add(ipv6(0xfd, 1)), three = add(ipv6(0xfe, 1));
    CHECK(one != two && two != three && one != three);
    CHECK_EQ(add(ipv4(1)), one);
    CHECK_EQ(pvs_vtep_seen(vteps, ipv4(1), 5), one);
    CHECK_EQ(pvs_vtep_seen(vteps, ipv6(0xfd, 1), 5), two);
    CHECK_EQ(pvs_vtep_seen(vteps, ipv6(0xfd, 2), 5), 0);
    CHECK(memcmp(pvs_vtep_address(vteps, (uint16_t)one), ipv4(1), PVS_ADDRESS) == 0);
    CHECK(memcmp(pvs_vtep_address(vteps, (uint16_t)three), ipv6(0xfe, 1), PVS_ADDRESS) == 0);
    CHECK_EQ(pvs_vtep_learn(vteps, ipv4(1), 5), 0); /* it isn't news */
    pvs_vteps_destroy(vteps);
}

TEST(vtep_its_age_is_that_of_its_last_packet)
{
    open_it();
    uint32_t told = add(ipv4(1)), learned = pvs_vtep_learn(vteps, ipv4(2), 100);
    CHECK_EQ(info(told, 100).age_s, UINT32_MAX);
    CHECK(!info(told, 100).learned);
    CHECK(memcmp(info(told, 100).address, ipv4(1), PVS_ADDRESS) == 0);
    CHECK_EQ(info(learned, 130).age_s, 30);
    CHECK(info(learned, 130).learned);
    CHECK_EQ(info(learned, 99).age_s, 0); /* the worker's clock was ahead */
    CHECK_EQ(pvs_vtep_seen(vteps, ipv4(1), 120), told);
    CHECK_EQ(pvs_vtep_seen(vteps, ipv4(2), 121), learned);
    CHECK_EQ(info(told, 130).age_s, 10);
    CHECK_EQ(info(learned, 130).age_s, 9);
    CHECK_EQ(add(ipv4(2)), learned); /* now somebody has asked for it */
    CHECK(!info(learned, 130).learned);
    CHECK_EQ(info(learned, 130).age_s, 9);
    pvs_vteps_destroy(vteps);
}

TEST(vtep_only_what_is_there_can_be_removed)
{
    struct pvs_vtep_info none;

    open_it();
    uint32_t one = add(ipv4(1));
    static const uint32_t wrong[] = { 0, 2, PVS_MAX_VTEPS - 1, PVS_MAX_VTEPS, 65536, UINT32_MAX };
    for (uint32_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_EQ(pvs_vteps_unlink(vteps, wrong[i]), -ENOENT);
        CHECK_EQ(pvs_vteps_free(vteps, wrong[i]), -ENOENT);
        CHECK_EQ(pvs_vteps_info(vteps, wrong[i], 0, &none), -ENOENT);
    }
    CHECK_EQ(pvs_vteps_free(vteps, one), -ENOENT); /* not before it is unlinked */
    CHECK_EQ(pvs_vteps_unlink(vteps, one), 0);
    CHECK_EQ(pvs_vteps_unlink(vteps, one), -ENOENT);
    CHECK_EQ(pvs_vteps_info(vteps, one, 0, &none), -ENOENT);
    CHECK_EQ(pvs_vteps_free(vteps, one), 0);
    CHECK_EQ(pvs_vteps_free(vteps, one), -ENOENT);
    pvs_vteps_destroy(vteps);
}

TEST(vtep_an_unlinked_one_keeps_its_number_and_address)
{
    open_it();
    uint32_t one = add(ipv4(1));
    CHECK_EQ(pvs_vteps_unlink(vteps, one), 0);
    CHECK_EQ(pvs_vtep_seen(vteps, ipv4(1), 1), 0);
    CHECK(memcmp(pvs_vtep_address(vteps, (uint16_t)one), ipv4(1), PVS_ADDRESS) == 0);
    uint32_t again = pvs_vtep_learn(vteps, ipv4(1), 1); /* it is somebody new */
    CHECK(again != 0 && again != one);
    CHECK_EQ(pvs_vteps_free(vteps, one), 0);
    CHECK_EQ(pvs_vtep_seen(vteps, ipv4(1), 1), again);
    pvs_vteps_destroy(vteps);
}

TEST(vtep_the_table_is_full_at_its_end)
{
    uint32_t number = 7;

    open_it();
    for (uint32_t i = 0; i < ALL; i++)
        CHECK(add(ipv4(i)) != 0);
    CHECK_EQ(pvs_vteps_add(vteps, ipv4(ALL), &number), -ENOSPC);
    CHECK_EQ(pvs_vtep_learn(vteps, ipv4(ALL), 1), 0);
    CHECK_EQ(pvs_vteps_add(vteps, ipv4(5), &number), 0); /* that one is there */
    drop(number);
    CHECK_EQ(add(ipv4(ALL)), number);
    CHECK_EQ(pvs_vteps_add(vteps, ipv4(5), &number), -ENOSPC);
    pvs_vteps_destroy(vteps);
}

TEST(vtep_what_is_learned_leaves_room_for_what_is_told)
{
    uint32_t number;

    open_it();
    for (uint32_t i = 0; i < LEARNED_MOST; i++)
        CHECK(pvs_vtep_learn(vteps, ipv4(i), 1) != 0);
    CHECK_EQ(pvs_vtep_learn(vteps, ipv4(LEARNED_MOST), 1), 0);
    for (uint32_t i = LEARNED_MOST; i < ALL; i++)
        add(ipv4(i));
    CHECK_EQ(pvs_vteps_add(vteps, ipv4(ALL), &number), -ENOSPC);
    number = add(ipv4(3)); /* what was learned and is told then is no longer learned */
    drop(add(ipv4(ALL - 1)));
    CHECK(pvs_vtep_learn(vteps, ipv4(ALL), 1) != 0);
    drop(pvs_vtep_seen(vteps, ipv4(4), 1)); /* nor is it when it is gone */
    CHECK(pvs_vtep_learn(vteps, ipv4(4), 1) != 0);
    drop(number);
    CHECK_EQ(pvs_vtep_learn(vteps, ipv4(ALL + 1), 1), 0);
    CHECK(add(ipv4(ALL + 1)) != 0);
    pvs_vteps_destroy(vteps);
}

/* What still waits somewhere may name a number that has been freed. */
TEST(vtep_a_freed_number_is_nobodys_for_as_long_as_can_be)
{
    open_it();
    uint32_t one = add(ipv4(1)), two = add(ipv4(2)), three = add(ipv4(3));
    drop(two);
    drop(one);
    drop(three);
    for (uint32_t i = 4; i <= ALL; i++) {
        uint32_t number = add(ipv4(i));
        CHECK(number != one && number != two && number != three);
    }
    CHECK_EQ(add(ipv4(1)), two);
    CHECK_EQ(add(ipv4(2)), one);
    drop(two);
    CHECK_EQ(add(ipv4(3)), three);
    CHECK_EQ(add(ipv4(1)), two);
    pvs_vteps_destroy(vteps);
}

/* Against a list that is searched from end to end. */
TEST(vtep_it_agrees_with_a_list)
{
    enum { HOSTS = 600, STEPS = 200000 };
    static uint32_t number_of[HOSTS];
    static bool unlinked[HOSTS];
    uint64_t seed = 5;

    open_it();
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t host = lab_random(&seed, HOSTS), *number = &number_of[host];
        switch (lab_random(&seed, 4)) {
        case 0:
            if (unlinked[host])
                break;
            if (*number != 0)
                CHECK_EQ(add(ipv4(host)), *number);
            *number = add(ipv4(host));
            break;
        case 1:
            if (*number == 0)
                CHECK((*number = pvs_vtep_learn(vteps, ipv4(host), step)) != 0);
            break;
        case 2:
            CHECK_EQ(pvs_vtep_seen(vteps, ipv4(host), step), unlinked[host] ? 0 : *number);
            break;
        default:
            if (*number != 0 && !unlinked[host]) {
                CHECK_EQ(pvs_vteps_unlink(vteps, *number), 0);
                unlinked[host] = true;
            } else if (*number != 0) {
                CHECK_EQ(pvs_vteps_free(vteps, *number), 0);
                unlinked[host] = false;
                *number = 0;
            }
        }
    }
    for (uint32_t i = 0; i < HOSTS; i++)
        for (uint32_t k = 0; k < i; k++)
            CHECK(number_of[i] == 0 || number_of[i] != number_of[k]);
    pvs_vteps_destroy(vteps);
}

/* How long it takes to look once for each of `n` neighbours, `stride` addresses apart. */
static uint64_t
lookup_ns(uint32_t n, uint32_t stride)
{
    uint64_t before = lab_clock_ns();

    for (int round = 0; round < 10; round++)
        for (uint32_t i = 0; i < n; i++)
            CHECK(pvs_vtep_seen(vteps, ipv4(i * stride), 1) != 0);
    return lab_clock_ns() - before;
}

/* Nobody's addresses are all in one bucket: that of many costs what those of few do. The bound is far from both. */
TEST(vtep_neighbours_are_spread_over_the_table)
{
    enum { FEW = 100, MANY = 10000 };
    static const uint32_t strides[] = { 1, 256, 255, 1021 };

    for (uint32_t s = 0; s < 4; s++) {
        open_it();
        for (uint32_t i = 0; i < FEW; i++)
            add(ipv4(i * strides[s]));
        uint64_t few = lookup_ns(FEW, strides[s]) / FEW;
        for (uint32_t i = FEW; i < MANY; i++)
            add(ipv4(i * strides[s]));
        CHECK(lookup_ns(MANY, strides[s]) / MANY < 1000 + 50 * few);
        pvs_vteps_destroy(vteps);
    }
}
