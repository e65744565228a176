/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_flow.c - two workers forward by flows while their tables are replaced, their meters read and frames traced: each frame is
 * counted by one flow, once.
 */
#include <sched.h>

#include "flow_switch.h"

enum { WORKERS = 2, PAIRS = 2, FRAMES = 4000, REPLACE = 200, KINDS = 4 };

static pvs_flow_meter *meter;
static struct pvs_meter_conf meters[1];
static struct pvs_trace trace;

static void
open_threads(void)
{
    struct lab_conf conf = lab_conf_default(PORTS);

    conf.workers = WORKERS;
    conf.threads = true;
    conf.guest.queue_pairs = PAIRS;
    open_lab_as(&conf);
    for (uint32_t pair = 0; pair < PAIRS; pair++) { /* each worker has one */
        uint32_t ring = 2 * pair + 1;
        CHECK(lab_ring_stop(&lab, A, ring) >= 0);
        lab.port[A].worker = (int32_t)pair;
        lab_ring_start(&lab, A, ring);
    }
    CHECK_EQ(pvs_flow_meter_create(lab.sw, &meter), 0);
    meters[0] = (struct pvs_meter_conf){ .meter = meter, .limit = { .per_second = 1000000, .depth = 1000 } };
    lab.conf.bridge.n_flow_meters = 1;
    lab.conf.bridge.flow_meters = meters;
}

/* Flows of several masks, so that the workers' caches are used: every frame matches one of them. */
static void
replace(uint32_t round)
{
    begin_anew();
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        flow_begin(&list, 2, counter[kind]);
        flow_match(&list, 2, 16, 48, LAB_MAC(0x100 + kind));
        if ((kind + round) % 2 == 0)
            flow_match(&list, 1, 0, 16, 0x88b5);
        flow_act(&list, PVS_ACT_METER, 0, 0);
        if ((kind + round) % 3 == 0)
            act(PVS_ACT_SET_DL_SRC, LAB_MAC(0x200 + round));
        if (kind == 0)
            act(PVS_ACT_NORMAL, 0);
        else
            output(SLOT(kind));
    }
    flow_begin(&list, 1, counter[KINDS]);
    meters[0].limit.per_second = 1000000 + round;
    apply();
}

static void
receive_all(void)
{
    static uint8_t got[PVS_MAX_FRAME];

    for (uint32_t i = 0; i < PORTS; i++)
        for (uint32_t pair = 0; pair < PAIRS; pair++) {
            while (pvd_rx(lab.port[i].guest, pair, got, sizeof got, NULL) >= 0)
                ;
            CHECK(pvd_rx_fill(lab.port[i].guest, pair, 200, NULL) >= 0);
        }
}

/* What flows have counted, in all. */
static uint64_t
all_counted(void)
{
    uint64_t packets[COUNTERS], bytes[COUNTERS], used[COUNTERS], sum = 0;

    pvs_flow_counters_read(lab.sw, counter, COUNTERS, packets, bytes, used);
    for (uint32_t i = 0; i < COUNTERS; i++) {
        CHECK_EQ(bytes[i], packets[i] * LEN);
        sum += packets[i];
    }
    return sum;
}

TEST_EACH_RING(workers_forward_while_flows_are_replaced)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
    uint32_t sent = 0, round = 0;
    uint64_t m[4], known[COUNTERS], unused[COUNTERS];

    open_threads();
    replace(0);
    while (lab_counters(&lab, A).value[PVS_C_rx_packets] < FRAMES) {
        for (uint32_t pair = 0; pair < PAIRS && sent < FRAMES; pair++) {
            lab_frame(frame, sent % 5 == 0 ? LAB_BROADCAST : LAB_MAC(B), LAB_MAC(0x100 + sent % (KINDS + 1)), LEN,
                      sent);
            CHECK(pvd_tx_reap(lab.port[A].guest, pair) >= 0);
            sent += pvd_tx(lab.port[A].guest, pair, NULL, frame, LEN, NULL) == 0;
            CHECK(pvd_kick(lab.port[A].guest, 2 * pair + 1) >= 0);
        }
        receive_all();
        if (sent / REPLACE > round) {
            struct pvs_trace_conf conf = { .frame = frame, .len = LEN, .vid = PVS_UNMAPPED };
            replace(++round);
            CHECK_EQ(lab_wait(&lab, pvs_trace_frame(lab.port[A].port, &conf, &trace)), 0);
            CHECK(trace.counter != PVS_NO_FLOW);
        }
        pvs_flow_counters_read(lab.sw, counter, COUNTERS, known, unused, unused); /* grows meanwhile: no sums here */
        pvs_flow_meter_read(meter, &m[0], &m[1], &m[2], &m[3]);
        CHECK(lab_clock_ns() < deadline);
        sched_yield();
    }
    CHECK_EQ(lab_wait(&lab, pvs_sync(lab.sw)), 0); /* what was taken is counted by now */
    CHECK_EQ(all_counted(), FRAMES);
    pvs_flow_meter_read(meter, &m[0], &m[1], &m[2], &m[3]);
    CHECK_EQ(m[0], FRAMES - FRAMES / (KINDS + 1));
    struct lab_counters c = lab_counters(&lab, A);
    CHECK_EQ(c.rx_drop[PVS_DROP_meter], m[2]);
    CHECK_EQ(c.rx_drop[PVS_DROP_flow_drop], FRAMES / (KINDS + 1));
    lab.conf.bridge.n_flow_meters = 0;
    lab_publish(&lab);
    pvs_flow_meter_destroy(meter);
    close_lab();
}
