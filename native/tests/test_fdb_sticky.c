/* SPDX-License-Identifier: Apache-2.0 */
/* test_fdb_sticky.c - addresses that stay where they were learned, and ports that may hold only so many (fdb.h). */
#include <errno.h>
#include <string.h>

#include "fdb.h"
#include "parse.h"
#include "test.h"

enum { AGING = 10 };

static pvs_fdb *fdb;

static uint32_t
ref(uint32_t index)
{
    return 1 << 16 | index;
}

static enum pvs_learned
learn_most(uint64_t mac, uint32_t port, uint32_t most, uint32_t now_s)
{
    uint32_t ignored;
    return pvs_fdb_learn(fdb, mac, 0, ref(port), most, now_s, &ignored);
}

static enum pvs_learned
learn(uint64_t mac, uint32_t port, uint32_t now_s)
{
    return learn_most(mac, port, 0, now_s);
}

/* Which port index has it, or -1. */
static int
where(uint64_t mac, uint32_t now_s)
{
    struct pvs_fdb_hit hit = pvs_fdb_find(fdb, mac, 0, now_s);
    return hit.state == PVS_FDB_UNKNOWN ? -1 : (int)(hit.at & 0xffff);
}

static void
open_fdb(uint32_t limit)
{
    CHECK_EQ(pvs_fdb_create(limit, AGING, 12345, &fdb), 0);
    pvs_fdb_set_sticky(fdb, 1, ref(1));
}

static int
set_static(uint64_t mac, uint32_t port)
{
    uint8_t bytes[6];
    pvs_mac_store(bytes, mac);
    return pvs_fdb_set_static(fdb, bytes, 0, ref(port), 0);
}

static struct pvs_fdb_item
item(uint64_t mac, uint32_t now_s)
{
    struct pvs_fdb_item found;
    uint8_t bytes[6];
    pvs_mac_store(bytes, mac);
    CHECK_EQ(pvs_fdb_lookup(fdb, bytes, 0, now_s * 1000000000ULL, &found), 0);
    return found;
}

TEST(fdb_sticky_addresses_neither_age_nor_move)
{
    uint32_t cursor = 0;
    struct pvs_fdb_item removed[4];

    open_fdb(64);
    CHECK_EQ(learn(7, 1, 0), PVS_LEARN_NEW);
    CHECK_EQ(learn(8, 2, 0), PVS_LEARN_NEW);
    CHECK_EQ(learn(7, 2, 1), PVS_LEARN_NOTHING);
    CHECK_EQ(learn(8, 1, 1), PVS_LEARN_MOVED); /* to a sticky port it may; from then on it stays */
    CHECK_EQ(learn(8, 2, 2), PVS_LEARN_NOTHING);
    CHECK_EQ(where(7, 100), 1);
    CHECK_EQ(where(8, 100), 1);
    CHECK_EQ(pvs_fdb_find(fdb, 7, 0, 100).state, PVS_FDB_STALE);
    CHECK(item(7, 100).is_sticky && !item(7, 100).is_static);
    CHECK_EQ(item(7, 100).age_s, 100);
    CHECK_EQ(pvs_fdb_sweep(fdb, 100000000000ULL, &cursor, 64, removed, 4), 0);
    CHECK_EQ(learn(7, 1, 100), PVS_LEARN_NOTHING); /* a refresh: no event of a new one */
    CHECK_EQ(item(7, 100).age_s, 0);
    CHECK_EQ(pvs_fdb_held(fdb, 1), 2);

    pvs_fdb_set_sticky(fdb, 1, 0); /* it ends with the port's being sticky */
    CHECK_EQ(where(8, 100), -1);
    CHECK_EQ(where(7, 100), 1);
    CHECK(!item(7, 100).is_sticky);
    CHECK_EQ(learn(7, 2, 101), PVS_LEARN_MOVED);
    CHECK_EQ(pvs_fdb_sweep(fdb, 101000000000ULL, &cursor, 64, removed, 4), 1);
    pvs_fdb_destroy(fdb);
}

/* Who got a port's index after it is another port: what is left of the first may move to it. */
TEST(fdb_sticky_is_the_port_not_its_index)
{
    uint32_t old, again = 2 << 16 | 1;

    open_fdb(64);
    CHECK_EQ(learn(7, 1, 0), PVS_LEARN_NEW);
    CHECK(pvs_fdb_is_sticky(fdb, ref(1)));
    pvs_fdb_set_sticky(fdb, 1, again);
    CHECK(!pvs_fdb_is_sticky(fdb, ref(1)));
    CHECK(pvs_fdb_is_sticky(fdb, again));
    CHECK(!pvs_fdb_is_sticky(fdb, 0));
    CHECK_EQ(pvs_fdb_learn(fdb, 7, 0, again, 0, 1, &old), PVS_LEARN_MOVED);
    CHECK_EQ(old, ref(1));
    CHECK_EQ(learn(7, 2, 2), PVS_LEARN_NOTHING);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_full_takes_nothing_from_sticky_ports)
{
    open_fdb(8);
    for (uint64_t mac = 1; mac <= 6; mac++)
        CHECK_EQ(learn(mac, 1, 0), PVS_LEARN_NEW);
    CHECK_EQ(learn(7, 2, 0), PVS_LEARN_NEW);
    CHECK_EQ(learn(8, 3, 0), PVS_LEARN_NEW);
    for (uint64_t mac = 20; mac < 40; mac++)
        CHECK_EQ(learn(mac, 3, 0), PVS_LEARN_NEW);
    for (uint64_t mac = 1; mac <= 6; mac++)
        CHECK_EQ(where(mac, 0), 1);
    CHECK_EQ(pvs_fdb_count(fdb), 8);
    CHECK_EQ(set_static(50, 4), 0);
    CHECK_EQ(set_static(51, 4), 0);
    for (uint64_t mac = 60; mac < 70; mac++) /* nobody is left to take from */
        CHECK_EQ(learn(mac, 1 + (uint32_t)mac % 3, 0), PVS_LEARN_NOTHING);
    CHECK_EQ(set_static(52, 4), -ENOSPC);
    CHECK_EQ(set_static(1, 4), 0); /* what is told goes before what was learned */
    CHECK_EQ(where(1, 0), 4);
    CHECK_EQ(set_static(2, 1), 0);
    CHECK(item(2, 0).is_static && !item(2, 0).is_sticky);
    CHECK_EQ(learn(1, 1, 0), PVS_LEARN_NOTHING);
    CHECK_EQ(where(2, 0), 1);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_flush_tells_sticky_from_others)
{
    struct pvs_fdb_filter filter = { .by_sticky = true };

    open_fdb(64);
    for (uint64_t mac = 1; mac <= 6; mac++)
        CHECK_EQ(learn(mac, 1 + mac % 2, 0), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_flush(fdb, &filter), 3);
    CHECK_EQ(where(1, 0), -1);
    CHECK_EQ(where(2, 0), 1);
    filter.sticky = true;
    CHECK_EQ(pvs_fdb_flush(fdb, &filter), 3);
    CHECK_EQ(pvs_fdb_count(fdb), 0);
    pvs_fdb_destroy(fdb);
}

/* A bound is looked at where the address is put in: whoever comes first. */
TEST(fdb_learns_no_more_than_a_port_may_hold)
{
    open_fdb(64);
    for (uint64_t mac = 1; mac <= 5; mac++)
        CHECK_EQ(learn_most(mac, 2, 3, 0), mac <= 3 ? PVS_LEARN_NEW : PVS_LEARN_NOTHING);
    CHECK_EQ(pvs_fdb_held(fdb, 2), 3);
    CHECK_EQ(learn(10, 3, 0), PVS_LEARN_NEW);
    CHECK_EQ(learn_most(10, 2, 3, 1), PVS_LEARN_NOTHING); /* nor does one move there */
    CHECK_EQ(where(10, 1), 3);
    CHECK_EQ(learn_most(2, 2, 3, 1), PVS_LEARN_NOTHING);
    CHECK_EQ(item(2, 1).age_s, 0);
    CHECK_EQ(learn_most(1, 2, 3, 100), PVS_LEARN_NEW); /* old, but one of the three */
    CHECK_EQ(learn_most(1, 3, 5, 100), PVS_LEARN_MOVED);
    CHECK_EQ(learn_most(10, 2, 3, 100), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_held(fdb, 2), 3);
    pvs_fdb_destroy(fdb);
}
