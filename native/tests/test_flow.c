/* SPDX-License-Identifier: Apache-2.0 */
/* test_flow.c - the classifier finds what a search through all flows finds, with its caches and without (flow.h). */
#include <errno.h>
#include <stdlib.h>

#include "flow.h"
#include "flow_action.h"
#include "flow_lab.h"
#include "test.h"

static uint32_t probes;

static struct flow_list list;

static struct pvs_flow_table *
make(uint32_t n_workers, uint64_t seed)
{
    struct pvs_flow_table *table;

    CHECK_EQ(pvs_flow_table_make(n_workers, list.flow, list.n_flows, list.action, list.n_actions, seed, &table), 0);
    return table;
}

static bool
matches(const struct pvs_flow_conf *f, const uint64_t *key)
{
    for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
        if ((key[w] & f->mask[w]) != f->key[w])
            return false;
    return true;
}

/* The counter of the best flow, by the rules alone; PVS_NO_FLOW: none matches. */
static uint32_t
linear(const uint64_t *key)
{
    const struct pvs_flow_conf *best = NULL;

    for (uint32_t i = 0; i < list.n_flows; i++)
        if (matches(&list.flow[i], key) && (best == NULL || list.flow[i].priority > best->priority))
            best = &list.flow[i];
    return best == NULL ? PVS_NO_FLOW : best->counter;
}

static uint32_t
found(const struct pvs_flow_table *table, const uint64_t *key, uint32_t worker)
{
    const struct pvs_flow *flow = pvs_flow_find(table, key, worker, &probes);

    return flow == NULL ? PVS_NO_FLOW : flow->counter;
}

/* Few bits in each word, so that keys and flows meet. */
static void
random_key(uint64_t *state, uint64_t key[PVS_FLOW_WORDS])
{
    for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
        key[w] = (uint64_t)flow_random(state, 4) << 62 | (uint64_t)flow_random(state, 3) << 30 | flow_random(state, 3);
}

/* `n` flows, of at most `n_masks` masks over `words` words, and `priorities` priorities. */
static void
random_list(uint64_t *state, uint32_t n, uint32_t n_masks, uint32_t words, uint32_t priorities)
{
    static uint64_t mask[512][PVS_FLOW_WORDS];

    memset(mask, 0, sizeof mask);
    for (uint32_t m = 0; m < n_masks; m++)
        for (uint32_t w = 0; w < words; w++)
            mask[m][w] = flow_random(state, 3) == 0   ? UINT64_MAX
                         : flow_random(state, 2) == 0 ? 0
                                                      : UINT64_C(0xff) << 8 * flow_random(state, 8);
    list.n_flows = list.n_actions = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct pvs_flow_conf *f = flow_begin(&list, flow_random(state, priorities), i);
        uint64_t key[PVS_FLOW_WORDS];
        memcpy(f->mask, mask[flow_random(state, n_masks)], sizeof f->mask);
        random_key(state, key);
        for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
            f->key[w] = key[w] & f->mask[w];
        flow_act(&list, PVS_ACT_NORMAL, 0, 0);
    }
}

TEST(what_is_found_is_the_best_of_all)
{
    static const struct {
        uint32_t flows, masks, words, priorities;
    } shape[] = { { 1, 1, 0, 1 },      { 3, 1, 3, 2 },        { 50, 5, 2, 3 },       { 200, 200, 12, 1 },
                  { 2000, 1, 12, 50 }, { 2000, 300, 12, 10 }, { 2000, 40, 4, 65536 } };
    uint64_t state = 1;
    uint32_t hits = 0, misses = 0;

    for (uint32_t s = 0; s < sizeof shape / sizeof shape[0]; s++) {
        random_list(&state, shape[s].flows, shape[s].masks, shape[s].words, shape[s].priorities);
        struct pvs_flow_table *table = make(2, state);
        for (uint32_t i = 0; i < 3000; i++) {
            uint64_t key[PVS_FLOW_WORDS];
            random_key(&state, key);
            if (i % 3 == 0) /* what a flow asks for */
                for (uint32_t w = 0, f = flow_random(&state, list.n_flows); w < PVS_FLOW_WORDS; w++)
                    key[w] = (key[w] & ~list.flow[f].mask[w]) | list.flow[f].key[w];
            uint32_t best = linear(key);
            CHECK_EQ(found(table, key, PVS_MAX_WORKERS), best);
            for (uint32_t again = 0; again < 2; again++)
                for (uint32_t worker = 0; worker < 2; worker++)
                    CHECK_EQ(found(table, key, worker), best);
            hits += best != PVS_NO_FLOW;
            misses += best == PVS_NO_FLOW;
        }
        pvs_flow_table_destroy(table);
    }
    CHECK(hits > 5000 && misses > 1000); /* both were tried */
}

/* More keys than a cache has places: what leaves it is searched for anew, in the one as in the other worker's. */
TEST(caches_forget_and_stay_right)
{
    enum { KEYS = 60000 };
    uint64_t state = 7;

    list.n_flows = list.n_actions = 0;
    for (uint32_t i = 0; i < 64; i++) {
        flow_begin(&list, i % 7, i);
        flow_match(&list, 5, 0, 32, i);
        if (i % 2 == 0)
            flow_match(&list, 3, 56, 8, 6);
    }
    struct pvs_flow_table *table = make(2, 99);
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t i = 0; i < KEYS; i++) {
            /* bits that no flow looks at don't count, those of proto do */
            uint64_t key[PVS_FLOW_WORDS] = { [1] = flow_random(&state, 1000), [5] = i % 128 };
            key[3] = (uint64_t)(i % 3 == 0 ? 6 : i / 128 % 256) << 56;
            key[4] = i;
            CHECK_EQ(found(table, key, i % 2), linear(key));
        }
    pvs_flow_table_destroy(table);
}

TEST(the_first_of_equals_counts)
{
    list.n_flows = list.n_actions = 0;
    flow_begin(&list, 5, 10); /* the same key and mask, of one priority */
    flow_match(&list, 1, 0, 16, 0x0800);
    flow_begin(&list, 5, 11);
    flow_match(&list, 1, 0, 16, 0x0800);
    flow_begin(&list, 5, 12); /* another mask of the same priority */
    flow_match(&list, 5, 0, 32, 1);
    flow_begin(&list, 9, 13); /* a better one, behind them in the list */
    flow_match(&list, 5, 0, 32, 2);
    flow_begin(&list, 0, 14);
    struct pvs_flow_table *table = make(1, 3);
    static const struct {
        uint64_t type, src;
        uint32_t counter;
    } expected[] = {
        { 0x0800, 0, 10 }, { 0x0800, 1, 10 }, { 0x0800, 2, 13 }, { 1, 1, 12 }, { 1, 2, 13 }, { 1, 0, 14 }
    };
    for (uint32_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        uint64_t key[PVS_FLOW_WORDS] = { [1] = expected[i].type, [5] = expected[i].src };
        for (uint32_t worker = 0; worker < 2; worker++)
            CHECK_EQ(found(table, key, worker), expected[i].counter);
    }
    struct pvs_flow_table_info info;
    pvs_flow_table_info(table, &info);
    CHECK_EQ(info.flows, 5);
    CHECK_EQ(info.masks, 3);
    pvs_flow_table_destroy(table);
}

TEST(an_empty_table_and_an_empty_mask)
{
    uint64_t key[PVS_FLOW_WORDS] = { 1, 2, 3 };
    struct pvs_flow_table *table;

    CHECK_EQ(pvs_flow_table_make(1, NULL, 0, NULL, 0, 1, &table), 0);
    CHECK(pvs_flow_find(table, key, 0, &probes) == NULL);
    CHECK_EQ(table->depth, PVS_DEPTH_L2);
    pvs_flow_table_destroy(table);
    list.n_flows = list.n_actions = 0;
    flow_begin(&list, 0, 4); /* all frames, no actions: NULL as well */
    CHECK_EQ(pvs_flow_table_make(1, list.flow, 1, NULL, 0, 1, &table), 0);
    CHECK_EQ(found(table, key, 0), 4);
    CHECK_EQ(pvs_flow_find(table, key, 0, &probes)->n_actions, 0);
    pvs_flow_table_destroy(table);
}

/* Words that only L3 has make a table look deeper. A cache's places are as long as its keys ask for. */
TEST(a_table_knows_how_deep_it_looks_and_how_large_it_is)
{
    for (uint32_t words = 1; words <= PVS_FLOW_WORDS; words++) {
        struct pvs_flow_table_info info;
        list.n_flows = list.n_actions = 0;
        for (uint32_t w = 0; w < words; w++) {
            flow_begin(&list, w, w);
            flow_match(&list, w, 0, 8, 1);
        }
        struct pvs_flow_table *table = make(1, 5);
        CHECK_EQ(table->depth, words > PVS_WORD_L4 ? PVS_DEPTH_L3 : PVS_DEPTH_L2);
        pvs_flow_table_info(table, &info);
        uint64_t cache = words < 2 ? 0 : words <= 7 ? 8 << 20 : 16 << 20;
        CHECK(info.bytes >= cache && info.bytes < cache + 65536);
        pvs_flow_table_destroy(table);
    }
}

/* What it edits is deep as well, whatever it matches: headers have to be in the frames' heads then. */
TEST(a_table_that_edits_deep_headers_looks_at_them)
{
    for (uint32_t kind = PVS_ACT_OUTPUT; kind < PVS_ACT_KINDS; kind++) {
        list.n_flows = list.n_actions = 0;
        flow_begin(&list, 1, 1);
        flow_act(&list, kind, 0, kind == PVS_ACT_PUSH_VLAN ? 0x8100 : 0);
        struct pvs_flow_table *table = make(1, 5);
        bool deep = kind >= PVS_ACT_SET_NW_SRC && kind <= PVS_ACT_DEC_TTL;
        CHECK_EQ(table->depth, deep ? PVS_DEPTH_L3 : PVS_DEPTH_L2);
        pvs_flow_table_destroy(table);
    }
}

TEST(flows_that_almost_match_are_told)
{
    uint32_t counter[8], word[8];
    uint64_t key[PVS_FLOW_WORDS] = { [1] = 0x0800, [3] = UINT64_C(6) << 56 | 80, [5] = 1 };

    list.n_flows = list.n_actions = 0;
    flow_begin(&list, 1, 20); /* all of it matches */
    flow_match(&list, 1, 0, 16, 0x0800);
    flow_begin(&list, 3, 21); /* but for the port */
    flow_match(&list, 1, 0, 16, 0x0800);
    flow_match(&list, 3, 0, 16, 443);
    flow_begin(&list, 2, 22); /* but for two words */
    flow_match(&list, 5, 0, 32, 2);
    flow_match(&list, 3, 0, 16, 443);
    flow_begin(&list, 9, 23); /* but for the address */
    flow_match(&list, 5, 0, 32, 2);
    flow_match(&list, 3, 56, 8, 6);
    struct pvs_flow_table *table = make(1, 5);
    CHECK_EQ(pvs_flow_nearly(table, key, counter, word, 8), 2);
    CHECK(counter[0] == 23 && word[0] == 5 && counter[1] == 21 && word[1] == 3);
    CHECK_EQ(pvs_flow_nearly(table, key, counter, word, 1), 1);
    pvs_flow_table_destroy(table);
}

/* ---- what control may ask for ---- */

static int
try_list(void)
{
    struct pvs_flow_table *table = NULL;
    int rc = pvs_flow_table_make(1, list.flow, list.n_flows, list.action, list.n_actions, 1, &table);

    pvs_flow_table_destroy(table);
    return rc;
}

/* One flow with these actions, twice over `n` times. */
static int
try_actions(uint32_t n, struct pvs_flow_action first, struct pvs_flow_action second)
{
    list.n_flows = list.n_actions = 0;
    flow_begin(&list, 1, 0);
    for (uint32_t i = 0; i < n; i++) {
        flow_act(&list, first.kind, first.slot, first.value);
        if (second.kind != PVS_ACT_KINDS)
            flow_act(&list, second.kind, second.slot, second.value);
    }
    return try_list();
}

#define ACT(k, s, v) ((struct pvs_flow_action){ .kind = (k), .slot = (s), .value = (v) })

TEST(what_would_overflow_a_verdict_is_refused)
{
    struct pvs_flow_action none = ACT(PVS_ACT_KINDS, 0, 0), out = ACT(PVS_ACT_OUTPUT, 0, 0),
                           set = ACT(PVS_ACT_SET_DL_SRC, 0, 1);

    CHECK_EQ(try_actions(PVS_MAX_ACTIONS, out, none), 0);
    CHECK_EQ(try_actions(PVS_MAX_ACTIONS + 1, out, none), -EINVAL);
    CHECK_EQ(try_actions(PVS_MAX_VARIANTS, set, out), 0);
    CHECK_EQ(try_actions(PVS_MAX_VARIANTS + 1, set, out), -EINVAL);
    CHECK_EQ(try_actions(PVS_MAX_VARIANTS + 1, set, ACT(PVS_ACT_MIRROR, 0, 0)), 0); /* which isn't sent in between */
    CHECK_EQ(try_actions(PVS_MAX_FLOODS, ACT(PVS_ACT_ALL, 0, 0), none), 0);
    CHECK_EQ(try_actions(PVS_MAX_FLOODS, ACT(PVS_ACT_ALL, 0, 0), ACT(PVS_ACT_FLOOD, 0, 0)), -EINVAL);
    CHECK_EQ(try_actions(1, ACT(PVS_ACT_NORMAL, 0, 0), ACT(PVS_ACT_NORMAL, 0, 0)), -EINVAL);
    CHECK_EQ(try_actions(PVS_MAX_PUSHES, ACT(PVS_ACT_PUSH_VLAN, 0, 0x8100), none), 0);
    CHECK_EQ(try_actions(PVS_MAX_PUSHES + 1, ACT(PVS_ACT_PUSH_VLAN, 0, 0x88a8), none), -EINVAL);
}

TEST(a_meter_is_asked_once)
{
    struct pvs_flow_action one = ACT(PVS_ACT_METER, 0, 0), other = ACT(PVS_ACT_METER, 1, 0),
                           same_slot = ACT(PVS_ACT_OUTPUT, 0, 0);

    CHECK_EQ(try_actions(1, one, other), 0);
    CHECK_EQ(try_actions(1, one, same_slot), 0);
    CHECK_EQ(try_actions(1, one, one), -EINVAL);
    CHECK_EQ(try_actions(2, one, same_slot), -EINVAL);
}

TEST(values_beyond_their_fields_are_refused)
{
    static const struct {
        uint32_t kind;
        uint64_t most;
    } limit[] = {
        { PVS_ACT_SET_VLAN_VID, 4095 },         { PVS_ACT_SET_VLAN_PCP, 7 },
        { PVS_ACT_SET_DL_SRC, 0xffffffffffff }, { PVS_ACT_SET_DL_DST, 0xffffffffffff },
        { PVS_ACT_SET_NW_SRC, UINT32_MAX },     { PVS_ACT_SET_NW_DST, UINT32_MAX },
        { PVS_ACT_SET_NW_TOS, 0xfc },           { PVS_ACT_SET_TP_SRC, UINT16_MAX },
        { PVS_ACT_SET_TP_DST, UINT16_MAX },     { PVS_ACT_SET_TUNNEL, UINT32_MAX },
    };
    struct pvs_flow_action none = ACT(PVS_ACT_KINDS, 0, 0);

    for (uint32_t i = 0; i < sizeof limit / sizeof limit[0]; i++) {
        CHECK_EQ(try_actions(1, ACT(limit[i].kind, 0, limit[i].most), none), 0);
        CHECK_EQ(try_actions(1, ACT(limit[i].kind, 0, limit[i].most + 1), none), -EINVAL);
    }
    CHECK_EQ(try_actions(1, ACT(PVS_ACT_SET_NW_TOS, 0, 2), none), -EINVAL);
    CHECK_EQ(try_actions(1, ACT(PVS_ACT_PUSH_VLAN, 0, 0x9100), none), -EINVAL);
    CHECK_EQ(try_actions(1, ACT(PVS_ACT_OUTPUT, PVS_MAX_PORTS, 0), none), -EINVAL);
    CHECK_EQ(try_actions(1, ACT(PVS_ACT_METER, PVS_MAX_METERS, 0), none), -EINVAL);
    CHECK_EQ(try_actions(1, ACT(PVS_ACT_MIRROR, PVS_MAX_MIRRORS, 0), none), -EINVAL);
    CHECK_EQ(try_actions(1, ACT(PVS_ACT_KINDS + 1, 0, 0), none), -EINVAL);
    list.n_flows = list.n_actions = 0;
    flow_begin(&list, 1, 0)->key[3] = 1; /* outside of its mask */
    CHECK_EQ(try_list(), -EINVAL);
    list.flow[0].key[3] = 0;
    list.flow[0].first = 1; /* actions that aren't there */
    CHECK_EQ(try_list(), -EINVAL);
    list.flow[0].first = 0;
    list.flow[0].n_actions = 1;
    CHECK_EQ(try_list(), -EINVAL);
}

TEST(masks_are_bounded)
{
    pvs_flow_table *table;

    list.n_flows = list.n_actions = 0;
    for (uint32_t i = 0; i <= PVS_MAX_MASKS; i++) {
        flow_begin(&list, 1, 0);
        flow_match(&list, 1, 16, 48, i);
        list.flow[i].mask[1] = (uint64_t)(i + 1) << 16;
        list.flow[i].key[1] = 0;
    }
    CHECK_EQ(pvs_flow_table_make(1, list.flow, PVS_MAX_MASKS + 1, list.action, 0, 1, &table), -E2BIG);
    CHECK_EQ(pvs_flow_table_make(1, list.flow, PVS_MAX_MASKS, list.action, 0, 1, &table), 0);
    CHECK_EQ(table->n_subtables, PVS_MAX_MASKS);
    pvs_flow_table_destroy(table);
}

/* A bridge's flows are all replaced: the old ones count until the new ones do. */
TEST(there_are_counters_for_two_tables_of_the_largest_size)
{
    struct pvs_switch_conf conf = { .n_workers = 1, .cpus = { -1 } };
    pvs_switch *sw;
    uint32_t last = 0;

    CHECK_EQ(pvs_switch_create(&conf, &sw), 0);
    for (uint32_t i = 0; i < 2 * PVS_MAX_FLOWS; i++)
        CHECK(pvs_flow_counter_add(sw, &last) == 0 && last == i);
    for (uint32_t i = 0; i <= last; i++)
        pvs_flow_counter_remove(sw, i);
    CHECK_EQ(pvs_flow_counter_add(sw, &last), 0);
    CHECK_EQ(last, 2 * PVS_MAX_FLOWS - 1);
    pvs_switch_destroy(sw);
}
