/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_trace.c - what trace says of a frame is what becomes of it when it comes, whatever flows and rules there are; and asking has no
 * effect (pvs_trace_frame). One worker, driven step by step.
 */
#include <errno.h>

#include "flow_switch.h"

static struct pvs_trace trace;
static struct pvs_meter_conf meter[1];

static int64_t
ask(uint32_t port, uint32_t len)
{
    struct pvs_trace_conf conf = { .frame = frame, .len = len, .vid = PVS_UNMAPPED };

    return lab_wait(&lab, pvs_trace_frame(lab.port[port].port, &conf, &trace));
}

/* ---- no effect ---- */

/* All that asking could change. */
struct state {
    struct lab_counters port[PORTS];
    uint64_t packets[COUNTERS], bytes[COUNTERS], used[COUNTERS], meter[4];
    uint32_t n_known;
    struct pvs_fdb_item known[64];
    uint64_t in_vlans[8], bytes_in_vlans[8];
};

static void
look(struct state *s)
{
    uint32_t cursor = 0;

    memset(s, 0, sizeof *s);
    for (uint32_t i = 0; i < PORTS; i++)
        s->port[i] = lab_counters(&lab, i);
    pvs_flow_counters_read(lab.sw, counter, COUNTERS, s->packets, s->bytes, s->used);
    if (meter[0].meter != NULL)
        pvs_flow_meter_read(meter[0].meter, &s->meter[0], &s->meter[1], &s->meter[2], &s->meter[3]);
    s->n_known = (uint32_t)pvs_fdb_dump(lab.fdb, 0, &cursor, s->known, 64);
    for (uint16_t vid = 0; vid < 8 && lab.conf.bridge.vlan_counters != NULL; vid++)
        pvs_vlan_counters_read(lab.conf.bridge.vlan_counters, vid, &s->in_vlans[vid], &s->bytes_in_vlans[vid]);
}

/* ---- many tables, many frames ---- */

static void
random_actions(uint64_t *state)
{
    static const uint32_t kinds[] = { PVS_ACT_OUTPUT,       PVS_ACT_OUTPUT,     PVS_ACT_OUTPUT,    PVS_ACT_IN_PORT,
                                      PVS_ACT_ALL,          PVS_ACT_NORMAL,     PVS_ACT_NORMAL,    PVS_ACT_METER,
                                      PVS_ACT_PUSH_VLAN,    PVS_ACT_POP_VLAN,   PVS_ACT_MIRROR,    PVS_ACT_SET_VLAN_VID,
                                      PVS_ACT_SET_VLAN_PCP, PVS_ACT_SET_DL_DST, PVS_ACT_DEC_TTL,   PVS_ACT_SET_NW_SRC,
                                      PVS_ACT_SET_TP_DST,   PVS_ACT_SET_DL_SRC, PVS_ACT_SET_NW_TOS };
    bool normal = false, metered = false;
    uint32_t pushes = 0, floods = 0;

    for (uint32_t n = flow_random(state, 8); n != 0; n--) {
        uint32_t kind = kinds[flow_random(state, sizeof kinds / sizeof kinds[0])];
        uint64_t value = flow_random(state, 4);
        if ((kind == PVS_ACT_NORMAL && normal) || (kind == PVS_ACT_PUSH_VLAN && pushes == 2) ||
            ((kind == PVS_ACT_ALL || kind == PVS_ACT_NORMAL) && floods == 3) || (kind == PVS_ACT_METER && metered))
            continue;
        metered |= kind == PVS_ACT_METER;
        normal |= kind == PVS_ACT_NORMAL;
        pushes += kind == PVS_ACT_PUSH_VLAN;
        floods += kind == PVS_ACT_ALL || kind == PVS_ACT_NORMAL;
        if (kind == PVS_ACT_PUSH_VLAN)
            value = 0x8100;
        else if (kind == PVS_ACT_SET_DL_DST || kind == PVS_ACT_SET_DL_SRC)
            value = LAB_MAC(value);
        else if (kind == PVS_ACT_SET_NW_TOS)
            value *= 4;
        flow_act(&list, kind, kind == PVS_ACT_OUTPUT ? flow_random(state, PORTS + 1) : 0, value);
    }
}

/* Up to 6 flows, whose keys are those of frames as they may come. */
static void
random_table(uint64_t *state)
{
    begin_anew();
    for (uint32_t i = flow_random(state, 7); i != 0; i--) {
        flow_begin(&list, flow_random(state, 3), counter[list.n_flows]);
        if (flow_random(state, 2) == 0)
            flow_match(&list, 0, 32, 32, SLOT(flow_random(state, PORTS)));
        if (flow_random(state, 3) == 0)
            flow_match(&list, 1, 0, 16, flow_random(state, 2) == 0 ? 0x0800 : 0x86dd);
        if (flow_random(state, 3) == 0)
            flow_match(&list, 3, 56, 8, flow_random(state, 2) == 0 ? 6 : 17);
        if (flow_random(state, 4) == 0)
            flow_match(&list, 3, 0, 16, 1 + flow_random(state, 3));
        if (flow_random(state, 4) == 0)
            flow_match(&list, 2, 0, 12, flow_random(state, 3));
        random_actions(state);
    }
}

static void
random_rules(uint64_t *state)
{
    for (uint32_t i = 0; i < PORTS; i++) {
        struct pvs_port_conf *c = &lab.port[i].conf;
        c->vlan_mode = flow_random(state, 3) == 0   ? PVS_VLAN_ACCESS
                       : flow_random(state, 3) == 0 ? PVS_VLAN_NATIVE_UNTAGGED
                                                    : PVS_VLAN_TRUNK;
        c->tag = c->vlan_mode == PVS_VLAN_TRUNK ? 0 : (uint16_t)(1 + flow_random(state, 2));
        c->isolated = flow_random(state, 4) == 0;
        c->mtu = flow_random(state, 5) == 0 ? 60 : 0;
        c->mirror_in = flow_random(state, 4) == 0;
        c->mirror_out = flow_random(state, 4) == 0;
        c->secure = flow_random(state, 5) == 0;
        c->max_macs = c->secure ? 1 : 0;
        c->storm[0] = (struct pvs_limit){ .per_second = flow_random(state, 5) == 0 ? 1 : 0, .depth = 1 };
    }
    lab.port[D].conf.mirror_in = lab.port[D].conf.mirror_out = 0;
}

/* The frame comes, for real: everyone gets what trace said, in that order. */
static void
check_traffic(uint32_t port, uint32_t len)
{
    static uint8_t got[PVS_MAX_FRAME];
    struct lab_counters before = lab_counters(&lab, port);

    lab_send(&lab, port, frame, len);
    lab_poll(&lab, 2);
    struct lab_counters after = lab_counters(&lab, port);
    CHECK_EQ(after.value[PVS_C_rx_packets] - before.value[PVS_C_rx_packets], 1);
    for (uint32_t drop = 0; drop < PVS_DROP_COUNT; drop++)
        CHECK_EQ(after.rx_drop[drop] - before.rx_drop[drop], drop != PVS_DROP_none && drop == trace.drop);
    for (uint32_t i = 0; i < trace.n_copies; i++) {
        uint32_t to = 0;
        if (trace.copy[i].drop != PVS_DROP_none)
            continue;
        while (pvs_port_ref(lab.port[to].port) != trace.copy[i].port_ref)
            to++;
        CHECK_EQ(pvd_rx(lab.port[to].guest, 0, got, sizeof got, NULL), trace.copy[i].len);
        CHECK(memcmp(got, trace.copy[i].head, trace.copy[i].head_len) == 0);
        lab_fill(&lab, to, 1);
    }
    for (uint32_t i = 0; i < PORTS; i++)
        lab_expect_nothing(&lab, i);
}

static void
check_counter(const struct state *before)
{
    struct state after;

    look(&after);
    for (uint32_t i = 0; i < COUNTERS; i++)
        CHECK_EQ(after.packets[i] - before->packets[i], trace.counter == counter[i]);
}

TEST(trace_says_what_traffic_does)
{
    static struct state before, after;
    uint64_t state = 11;
    uint32_t sent = 0, matched = 0, copies = 0;

    open_lab();
    CHECK_EQ(pvs_flow_meter_create(lab.sw, &meter[0].meter), 0);
    CHECK_EQ(pvs_vlan_counters_create(lab.sw, &lab.conf.bridge.vlan_counters), 0);
    meter[0].limit = (struct pvs_limit){ .per_second = 1000, .depth = 150 };
    lab.conf.bridge.n_flow_meters = 1;
    lab.conf.bridge.flow_meters = meter;
    mirror_to(D);
    for (uint32_t i = 0; i < 60; i++) {
        random_table(&state);
        random_rules(&state);
        apply();
        for (uint32_t k = 0; k < 40; k++) {
            uint32_t port = flow_random(&state, PORTS), len = flow_frame(&state, &FLOW_ANY, frame);
            if (flow_random(&state, 5) == 0)
                memset(frame, 0xff, 6);
            lab.now_ns += flow_random(&state, 200000000);
            lab_poll(&lab, 1);
            look(&before);
            CHECK_EQ(ask(port, len), 0);
            lab_poll(&lab, 2);
            look(&after);
            CHECK(memcmp(&before, &after, sizeof before) == 0);
            CHECK_EQ(ask(port, len), 0);
            check_traffic(port, len);
            check_counter(&before);
            sent++;
            matched += trace.counter != PVS_NO_FLOW;
            copies += trace.n_copies;
        }
    }
    CHECK(matched > sent / 5 && copies > sent / 2);
    pvs_flow_meter *last = meter[0].meter;
    pvs_vlan_counters *vlans = lab.conf.bridge.vlan_counters;
    for (uint32_t i = 0; i < PORTS; i++)
        lab.port[i].conf = (struct pvs_port_conf){ .port = lab.port[i].port, .enabled = true };
    close_lab();
    pvs_flow_meter_destroy(last);
    pvs_vlan_counters_destroy(vlans);
}

/* ---- what it tells ---- */

static const struct pvs_step *
step(uint32_t kind)
{
    for (uint32_t i = 0; i < trace.n_steps; i++)
        if (trace.step[i].kind == kind)
            return &trace.step[i];
    return NULL;
}

TEST(trace_tells_why)
{
    open_lab();
    from_port(A, 1);
    act(PVS_ACT_SET_DL_DST, LAB_MAC(C));
    output(SLOT(B));
    act(PVS_ACT_POP_VLAN, 0);
    apply();
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, 1);
    CHECK_EQ(ask(A, LEN), 0);
    CHECK_EQ(step(PVS_STEP_PARSED)->a, 0x88b5);
    CHECK_EQ(step(PVS_STEP_TAKEN)->a, PVS_DROP_none);
    CHECK_EQ(step(PVS_STEP_FLOW)->a, counter[0]);
    CHECK(step(PVS_STEP_ACTION)->a == PVS_ACT_SET_DL_DST && step(PVS_STEP_ACTION)->c == 1);
    CHECK_EQ(trace.step[trace.n_steps - 1].a, PVS_ACT_POP_VLAN);
    CHECK_EQ(trace.step[trace.n_steps - 1].c, 0); /* there was no tag */
    CHECK_EQ(trace.n_copies, 1);
    CHECK(trace.copy[0].port_ref == pvs_port_ref(lab.port[B].port) && trace.copy[0].mirror == -1);
    CHECK_EQ(trace.copy[0].head[5], C);
    CHECK_EQ(trace.key[0] >> 32, SLOT(A));
    CHECK_EQ(trace.key[1], (UINT64_C(0xffffffffffff) << 16) | 0x88b5);
    CHECK_EQ(ask(B, LEN), 0);
    CHECK(step(PVS_STEP_FLOW)->a == PVS_NO_FLOW && trace.counter == PVS_NO_FLOW);
    CHECK(step(PVS_STEP_LEARN)->a == 2 && step(PVS_STEP_FLOOD)->a == 3 && trace.n_copies == 3);
    close_lab();
}

TEST(trace_refuses_what_is_no_frame)
{
    struct pvs_trace_conf conf = { .frame = frame, .len = 13 };

    open_lab();
    lab_frame(frame, LAB_BROADCAST, LAB_MAC(A), LEN, 1);
    CHECK_EQ(pvs_trace_frame(lab.port[A].port, &conf, &trace), -EINVAL);
    conf.len = PVS_MAX_FRAME + 1;
    CHECK_EQ(pvs_trace_frame(lab.port[A].port, &conf, &trace), -EINVAL);
    memcpy(frame + 12, "\x81\0\0", 3);
    CHECK_EQ(ask(A, 15), -EINVAL); /* its tag is cut short */
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, NULL, 0, NULL, 0)), 0);
    CHECK_EQ(ask(A, LEN), -ENOENT);
    lab_publish(&lab);
    close_lab();
}

/* The frame hides its upper layer: no frame of a guest's would come so far. */
TEST(trace_tells_of_a_frame_that_hides_something)
{
    static const struct flow_recipe tcp = { .type = 1, .proto = 6, .whole = true, .plain = true };
    uint64_t state = 1;

    open_lab();
    from_port(B, 1);
    flow_match(&list, 3, 56, 8, 17);
    apply();
    flow_frame(&state, &tcp, frame);
    memset(frame + 54, 0, 600);
    frame[20] = 60;
    frame[54] = 6;
    frame[55] = 64;
    flow_put16(frame + 18, 600);
    CHECK_EQ(ask(A, 654), 0);
    CHECK(trace.drop == PVS_DROP_malformed && trace.n_copies == 0);
    lab_send(&lab, A, frame, 654);
    lab_poll(&lab, 2);
    expect_only(0);
    CHECK_EQ(lab_counters(&lab, A).rx_drop[PVS_DROP_malformed], 1);
    close_lab();
}
