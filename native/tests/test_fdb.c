/* SPDX-License-Identifier: Apache-2.0 */
/* test_fdb.c - the forwarding database alone: fdb.h and its part of pvs_api.h. Times are seconds here. */
#include "fdb.h"

#include <errno.h>
#include <string.h>

#include "parse.h"
#include "test.h"

static pvs_fdb *fdb;

static uint32_t
ref(uint32_t index)
{
    return 1 << 16 | index;
}

static uint64_t
ns(uint32_t s)
{
    return s * 1000000000ULL;
}

static const uint8_t *
mac_bytes(uint64_t mac)
{
    static uint8_t bytes[6];
    pvs_mac_store(bytes, mac);
    return bytes;
}

static void
open_fdb(uint32_t limit, uint32_t aging_s)
{
    CHECK_EQ(pvs_fdb_create(limit, aging_s, 12345, &fdb), 0);
}

static enum pvs_learned
learn(uint64_t mac, uint32_t port, uint32_t now_s, uint32_t *old)
{
    uint32_t ignored;
    return pvs_fdb_learn(fdb, mac, 0, ref(port), 0, now_s, old != NULL ? old : &ignored);
}

/* Which port index has it, or -1. */
static int
where(const pvs_fdb *in, uint64_t mac, uint32_t now_s)
{
    struct pvs_fdb_hit hit = pvs_fdb_find(in, mac, 0, now_s);
    return hit.state == PVS_FDB_UNKNOWN ? -1 : (int)(hit.at & 0xffff);
}

static int
set_static(uint64_t mac, uint32_t port)
{
    return pvs_fdb_set_static(fdb, mac_bytes(mac), 0, ref(port), 0);
}

/* All entries, through a dump in pieces of three. */
static int
dump_count(uint32_t now_s, int *n_static)
{
    struct pvs_fdb_item item[3];
    uint32_t cursor = 0;
    int total = 0, n;
    *n_static = 0;
    do {
        n = pvs_fdb_dump(fdb, ns(now_s), &cursor, item, 3);
        for (int i = 0; i < n; i++)
            *n_static += item[i].is_static;
        total += n;
    } while (cursor != 0);
    return total;
}

TEST(fdb_size_is_checked)
{
    CHECK_EQ(pvs_fdb_create(0, 0, 0, &fdb), -EINVAL);
    CHECK_EQ(pvs_fdb_create(1000001, 0, 0, &fdb), -EINVAL);
    CHECK_EQ(pvs_fdb_create(1000000, 0, 0, &fdb), 0);
    pvs_fdb_destroy(fdb);
    pvs_fdb_destroy(NULL);
}

TEST(fdb_learns_refreshes_and_moves)
{
    uint32_t old = 0;
    open_fdb(100, 300);
    CHECK_EQ(where(fdb, 1, 10), -1);
    CHECK_EQ(learn(1, 5, 10, &old), PVS_LEARN_NEW);
    CHECK_EQ(where(fdb, 1, 10), 5);
    CHECK_EQ(pvs_fdb_find(fdb, 1, 0, 10).state, PVS_FDB_FRESH);
    CHECK_EQ(learn(1, 5, 10, &old), PVS_LEARN_NOTHING);
    CHECK_EQ(pvs_fdb_find(fdb, 1, 0, 11).state, PVS_FDB_STALE);
    CHECK_EQ(learn(1, 5, 11, &old), PVS_LEARN_NOTHING);
    CHECK_EQ(pvs_fdb_find(fdb, 1, 0, 11).state, PVS_FDB_FRESH);
    CHECK_EQ(learn(1, 6, 11, &old), PVS_LEARN_MOVED);
    CHECK_EQ(old, ref(5));
    CHECK_EQ(where(fdb, 1, 11), 6);
    CHECK_EQ(pvs_fdb_count(fdb), 1);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_keeps_vids_apart)
{
    struct pvs_fdb_item got;
    uint32_t old;
    open_fdb(100, 300);
    CHECK_EQ(pvs_fdb_learn(fdb, 1, 10, ref(1), 0, 0, &old), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_learn(fdb, 1, 20, ref(2), 0, 0, &old), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_lookup(fdb, mac_bytes(1), 10, 0, &got), 0);
    CHECK_EQ(got.port_ref, ref(1));
    CHECK_EQ(pvs_fdb_lookup(fdb, mac_bytes(1), 20, ns(7), &got), 0);
    CHECK_EQ(pvs_mac_load(got.mac), 1);
    CHECK_EQ(got.vid, 20);
    CHECK_EQ(got.age_s, 7);
    CHECK(!got.is_static);
    CHECK_EQ(got.port_ref, ref(2));
    CHECK_EQ(pvs_fdb_lookup(fdb, mac_bytes(1), 0, 0, &got), -ENOENT);
    CHECK_EQ(pvs_fdb_lookup(fdb, mac_bytes(1), 10, ns(301), &got), -ENOENT);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_entries_age)
{
    open_fdb(100, 300);
    CHECK_EQ(learn(1, 5, 1000, NULL), PVS_LEARN_NEW);
    CHECK_EQ(where(fdb, 1, 1300), 5);
    CHECK_EQ(where(fdb, 1, 1301), -1);
    CHECK_EQ(where(fdb, 1, 999), 5); /* another worker's clock may be a moment behind */
    uint32_t old = 77;
    CHECK_EQ(learn(1, 6, 1301, &old), PVS_LEARN_NEW); /* not a move: nobody knew it any more */
    CHECK_EQ(learn(1, 6, 1700, &old), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_count(fdb), 1);
    pvs_fdb_set_aging(fdb, 10);
    CHECK_EQ(where(fdb, 1, 1711), -1);
    pvs_fdb_set_aging(fdb, 0);
    CHECK_EQ(where(fdb, 1, 1000000), 6);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_static_entries_neither_age_nor_move)
{
    uint32_t old;
    open_fdb(100, 10);
    CHECK_EQ(learn(1, 5, 0, NULL), PVS_LEARN_NEW);
    CHECK_EQ(set_static(1, 7), 0);
    CHECK_EQ(pvs_fdb_count(fdb), 1);
    CHECK_EQ(learn(1, 5, 0, &old), PVS_LEARN_NOTHING);
    CHECK_EQ(where(fdb, 1, 1000), 7);
    CHECK(pvs_fdb_find(fdb, 1, 0, 1000).is_static);
    CHECK_EQ(set_static(1, 8), 0);
    CHECK_EQ(where(fdb, 1, 1000), 8);
    CHECK_EQ(pvs_fdb_remove(fdb, mac_bytes(1), 0), 0);
    CHECK_EQ(pvs_fdb_remove(fdb, mac_bytes(1), 0), -ENOENT);
    CHECK_EQ(where(fdb, 1, 1000), -1);
    CHECK_EQ(pvs_fdb_count(fdb), 0);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_flush_removes_what_the_filter_names)
{
    uint32_t old;
    open_fdb(1000, 0);
    for (uint32_t i = 0; i < 600; i++)
        CHECK_EQ(pvs_fdb_learn(fdb, 1000 + i, (uint16_t)(i % 3), ref(i % 2), 0, 0, &old), PVS_LEARN_NEW);
    CHECK_EQ(set_static(5, 1), 0);
    struct pvs_fdb_filter by_mac = { .by_mac = true };
    pvs_mac_store(by_mac.mac, 1000);
    CHECK_EQ(pvs_fdb_flush(fdb, &by_mac), 1);
    CHECK_EQ(pvs_fdb_flush(fdb, &by_mac), 0);
    CHECK_EQ(pvs_fdb_flush(fdb, &(struct pvs_fdb_filter){ .by_port = true, .port_ref = ref(9) }), 0);
    CHECK_EQ(pvs_fdb_flush(fdb, &(struct pvs_fdb_filter){ .by_port = true, .port_ref = ref(1), .by_vid = true }), 100);
    CHECK_EQ(pvs_fdb_flush(fdb, &(struct pvs_fdb_filter){ .by_vid = true, .vid = 2 }), 200);
    CHECK_EQ(pvs_fdb_flush(fdb, &(struct pvs_fdb_filter){ 0 }), 600 - 1 - 100 - 200);
    CHECK_EQ(pvs_fdb_count(fdb), 1);
    CHECK_EQ(where(fdb, 5, 0), 1);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_sweep_removes_the_aged_in_slices)
{
    struct pvs_fdb_item gone[100];
    uint32_t cursor = 0;
    int removed = 0, calls = 0;
    open_fdb(1000, 100);
    for (uint32_t i = 0; i < 1000; i++)
        CHECK_EQ(learn(i + 1, 0, i < 700 ? 0 : 150, NULL), PVS_LEARN_NEW);
    do {
        int n = pvs_fdb_sweep(fdb, ns(200), &cursor, 256, gone, 100);
        for (int i = 0; i < n && i < 100; i++) {
            CHECK(pvs_mac_load(gone[i].mac) >= 1 && pvs_mac_load(gone[i].mac) <= 700);
            CHECK_EQ(gone[i].age_s, 200);
            CHECK_EQ(where(fdb, pvs_mac_load(gone[i].mac), 0), -1);
        }
        removed += n;
        calls++;
    } while (cursor != 0);
    CHECK_EQ(removed, 700);
    CHECK_EQ(calls, 4);
    CHECK_EQ(pvs_fdb_count(fdb), 300);
    CHECK_EQ(where(fdb, 701, 200), 0);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_dump_gives_every_living_entry_once)
{
    int n_static;
    open_fdb(600, 100);
    for (uint32_t i = 0; i < 500; i++)
        CHECK_EQ(learn(i + 1, 0, i < 100 ? 0 : 90, NULL), PVS_LEARN_NEW);
    CHECK_EQ(set_static(9999, 1), 0);
    CHECK_EQ(dump_count(90, &n_static), 501);
    CHECK_EQ(dump_count(101, &n_static), 401); /* the aged ones are not shown even before they are swept */
    CHECK_EQ(n_static, 1);
    struct pvs_fdb_item item;
    uint32_t cursor = 0;
    CHECK_EQ(pvs_fdb_flush(fdb, &(struct pvs_fdb_filter){ 0 }), 500);
    CHECK_EQ(learn(0x0a0b0c0d0e0f, 3, 100, NULL), PVS_LEARN_NEW);
    int seen = 0;
    do {
        if (pvs_fdb_dump(fdb, ns(142), &cursor, &item, 1) == 1 && !item.is_static) {
            CHECK_EQ(item.age_s, 42);
            CHECK_EQ(item.port_ref, ref(3));
            CHECK_EQ(pvs_mac_load(item.mac), 0x0a0b0c0d0e0f);
            seen++;
        }
    } while (cursor != 0);
    CHECK_EQ(seen, 1);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_full_takes_from_the_port_that_holds_the_most)
{
    open_fdb(100, 0);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(learn(1 + i, 1, 0, NULL), PVS_LEARN_NEW);
    for (uint32_t i = 0; i < 10000; i++) /* port 2 floods addresses */
        CHECK_EQ(learn(1000 + i, 2, 0, NULL), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_count(fdb), 100);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(where(fdb, 1 + i, 0), 1);
    for (uint32_t i = 0; i < 90; i++)
        CHECK_EQ(where(fdb, 1000 + 9999 - i, 0), 2); /* its newest are those that stay */
    CHECK_EQ(where(fdb, 1000 + 9999 - 90, 0), -1);
    for (uint32_t i = 0; i < 30; i++)
        CHECK_EQ(learn(500 + i, 1, 0, NULL), PVS_LEARN_NEW); /* port 1 can still grow */
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(where(fdb, 1 + i, 0), 1);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_full_spares_what_was_seen_since)
{
    open_fdb(4, 0);
    for (uint32_t i = 1; i <= 4; i++)
        CHECK_EQ(learn(i, 1, 10, NULL), PVS_LEARN_NEW);
    CHECK_EQ(learn(1, 1, 20, NULL), PVS_LEARN_NOTHING); /* refreshed */
    CHECK_EQ(learn(5, 1, 20, NULL), PVS_LEARN_NEW);
    CHECK_EQ(where(fdb, 1, 20), 1);
    CHECK_EQ(where(fdb, 2, 20), -1);
    for (uint32_t i = 6; i <= 40; i++) { /* and the order stays whole for all that follow */
        CHECK_EQ(learn(i, 1, 20 + i, NULL), PVS_LEARN_NEW);
        learn(i - i % 3, 1, 20 + i, NULL); /* refreshed, or learned again */
        CHECK_EQ(pvs_fdb_count(fdb), 4);
    }
    CHECK_EQ(pvs_fdb_flush(fdb, &(struct pvs_fdb_filter){ 0 }), 4);
    for (uint32_t i = 1; i <= 4; i++)
        CHECK_EQ(learn(i, i, 100, NULL), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_count(fdb), 4);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_full_of_refreshed_entries_takes_the_oldest_all_the_same)
{
    open_fdb(4, 0);
    for (uint32_t now = 10; now <= 20; now += 10)
        for (uint32_t i = 1; i <= 4; i++)
            learn(i, 1, now, NULL);
    CHECK_EQ(learn(5, 1, 20, NULL), PVS_LEARN_NEW);
    CHECK_EQ(where(fdb, 1, 20), -1);
    for (uint32_t i = 2; i <= 5; i++)
        CHECK_EQ(where(fdb, i, 20), 1);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_full_of_static_entries_learns_nothing_more)
{
    open_fdb(4, 0);
    CHECK_EQ(learn(99, 3, 0, NULL), PVS_LEARN_NEW);
    for (uint32_t i = 1; i <= 4; i++)
        CHECK_EQ(set_static(i, 1), 0); /* the last one takes the place of the dynamic one */
    CHECK_EQ(where(fdb, 99, 0), -1);
    CHECK_EQ(set_static(5, 1), -ENOSPC);
    CHECK_EQ(set_static(4, 2), 0);
    CHECK_EQ(learn(99, 3, 0, NULL), PVS_LEARN_NOTHING);
    CHECK_EQ(pvs_fdb_count(fdb), 4);
    for (uint32_t i = 1; i <= 4; i++)
        CHECK_EQ(where(fdb, i, 0), i == 4 ? 2 : 1);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_copy_takes_what_fits_static_entries_first)
{
    pvs_fdb *to;
    open_fdb(100, 300);
    for (uint32_t i = 0; i < 50; i++)
        CHECK_EQ(learn(i + 1, 2, 100, NULL), PVS_LEARN_NEW);
    CHECK_EQ(set_static(500, 3), 0);
    CHECK_EQ(pvs_fdb_create(200, 300, 999, &to), 0);
    pvs_fdb_copy(to, fdb);
    CHECK_EQ(pvs_fdb_count(to), 51);
    CHECK_EQ(where(to, 50, 400), 2);
    CHECK_EQ(where(to, 50, 401), -1); /* the age came along */
    CHECK_EQ(where(to, 500, 1000), 3);
    pvs_fdb_destroy(to);
    CHECK_EQ(pvs_fdb_create(10, 300, 999, &to), 0);
    pvs_fdb_copy(to, fdb);
    CHECK_EQ(pvs_fdb_count(to), 10);
    CHECK_EQ(where(to, 500, 100), 3);
    pvs_fdb_destroy(to);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_copy_does_not_double_what_is_there)
{
    pvs_fdb *to;
    open_fdb(100, 300);
    CHECK_EQ(learn(1, 2, 100, NULL), PVS_LEARN_NEW);
    CHECK_EQ(set_static(500, 3), 0);
    CHECK_EQ(pvs_fdb_create(100, 300, 999, &to), 0);
    CHECK_EQ(pvs_fdb_set_static(to, mac_bytes(1), 0, ref(7), 0), 0);
    CHECK_EQ(pvs_fdb_set_static(to, mac_bytes(500), 0, ref(8), 0), 0);
    pvs_fdb_copy(to, fdb);
    CHECK_EQ(pvs_fdb_count(to), 2);
    CHECK_EQ(where(to, 1, 100), 7);
    CHECK_EQ(where(to, 500, 100), 8);
    pvs_fdb_destroy(to);
    pvs_fdb_destroy(fdb);
}

/* Against a plain table of 64 possible addresses: nothing is lost, doubled or left behind. */
TEST(fdb_agrees_with_a_plain_model)
{
    enum { MACS = 64 };
    int model[MACS];
    uint64_t seed = 7;
    memset(model, -1, sizeof model);
    open_fdb(MACS, 0);
    for (int step = 0; step < 50000; step++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        uint32_t mac = (uint32_t)(seed >> 33) % MACS, port = (uint32_t)(seed >> 40) % 5;
        switch ((seed >> 50) % 8) {
        case 0:
            CHECK_EQ(pvs_fdb_remove(fdb, mac_bytes(mac + 1), 0), model[mac] < 0 ? -ENOENT : 0);
            model[mac] = -1;
            break;
        case 1:
            if (step % 64 != 0)
                break;
            pvs_fdb_flush(fdb, &(struct pvs_fdb_filter){ .by_port = true, .port_ref = ref(port) });
            for (int i = 0; i < MACS; i++)
                if (model[i] == (int)port)
                    model[i] = -1;
            break;
        default:
            CHECK_EQ(learn(mac + 1, port, (uint32_t)step / 1000, NULL), model[mac] < 0            ? PVS_LEARN_NEW
                                                                        : model[mac] != (int)port ? PVS_LEARN_MOVED
                                                                                                  : PVS_LEARN_NOTHING);
            model[mac] = (int)port;
        }
        uint32_t held = 0;
        for (uint32_t i = 0; i < MACS; i++) {
            held += model[i] >= 0;
            if (step % 100 == 0)
                CHECK_EQ(where(fdb, i + 1, (uint32_t)step / 1000), model[i]);
        }
        CHECK_EQ(pvs_fdb_count(fdb), held);
    }
    pvs_fdb_destroy(fdb);
}

/* ---- places ---- */

TEST(fdb_a_place_stays_an_addresss_place)
{
    struct pvs_fdb_place place, other;
    uint64_t port;
    uint32_t old;
    bool is_static;

    open_fdb(2000, 300);
    place = pvs_fdb_place(fdb, 77, 0);
    CHECK_EQ(pvs_fdb_look(fdb, &place, 10, &port, &is_static), PVS_FDB_UNKNOWN);
    for (uint32_t i = 1000; i < 2900; i++)
        CHECK_EQ(learn(i, 3, 10, NULL), PVS_LEARN_NEW);
    CHECK_EQ(learn(77, 5, 10, NULL), PVS_LEARN_NEW);
    CHECK_EQ(pvs_fdb_look(fdb, &place, 10, &port, &is_static), PVS_FDB_FRESH);
    CHECK_EQ((uint32_t)port, ref(5));
    CHECK(!is_static);
    CHECK_EQ(learn(77, 6, 11, &old), PVS_LEARN_MOVED);
    CHECK_EQ(pvs_fdb_find_at(fdb, &place, 12).state, PVS_FDB_STALE);
    CHECK_EQ((uint32_t)pvs_fdb_find_at(fdb, &place, 12).at, ref(6));
    CHECK_EQ(pvs_fdb_find_at(fdb, &place, 311).state, PVS_FDB_STALE);
    CHECK_EQ(pvs_fdb_find_at(fdb, &place, 312).state, PVS_FDB_UNKNOWN); /* aged */
    CHECK_EQ(set_static(77, 8), 0);
    CHECK_EQ(pvs_fdb_look(fdb, &place, 1000, &port, &is_static), PVS_FDB_FRESH);
    CHECK(is_static);
    CHECK_EQ((uint32_t)port, ref(8));
    other = pvs_fdb_place(fdb, 77, 9); /* in another VLAN it is another address */
    CHECK_EQ(pvs_fdb_find_at(fdb, &other, 1000).state, PVS_FDB_UNKNOWN);
    CHECK_EQ(pvs_fdb_remove(fdb, mac_bytes(77), 0), 0);
    CHECK_EQ(pvs_fdb_find_at(fdb, &place, 1000).state, PVS_FDB_UNKNOWN);
    pvs_fdb_prefetch(fdb, &place);
    pvs_fdb_destroy(fdb);
}

TEST(fdb_all_places_know_their_own_addresses)
{
    enum { MACS = 1500 };
    static struct pvs_fdb_place place[MACS];

    open_fdb(MACS, 0);
    for (uint32_t i = 0; i < MACS; i++) {
        place[i] = pvs_fdb_place(fdb, 0x020000000000ULL + i, 0);
        pvs_fdb_prefetch(fdb, &place[i]);
    }
    for (uint32_t i = 0; i < MACS; i++)
        CHECK_EQ(learn(0x020000000000ULL + i, i % 7, 0, NULL), PVS_LEARN_NEW);
    for (uint32_t i = 0; i < MACS; i++) {
        pvs_fdb_prefetch(fdb, &place[i]);
        CHECK_EQ(pvs_fdb_find_at(fdb, &place[i], 0).state, PVS_FDB_FRESH);
        CHECK_EQ((uint32_t)pvs_fdb_find_at(fdb, &place[i], 0).at, ref(i % 7));
    }
    pvs_fdb_destroy(fdb);
}

TEST(fdb_is_large_beyond_1024_entries)
{
    open_fdb(5000, 0);
    CHECK(!pvs_fdb_is_large(fdb)); /* what it has room for doesn't matter */
    for (uint32_t i = 1; i <= 1024; i++)
        CHECK_EQ(learn(i, 1, 0, NULL), PVS_LEARN_NEW);
    CHECK(!pvs_fdb_is_large(fdb));
    CHECK_EQ(learn(1025, 1, 0, NULL), PVS_LEARN_NEW);
    CHECK(pvs_fdb_is_large(fdb));
    CHECK_EQ(pvs_fdb_remove(fdb, mac_bytes(7), 0), 0);
    CHECK(!pvs_fdb_is_large(fdb));
    pvs_fdb_destroy(fdb);
}
