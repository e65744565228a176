/* SPDX-License-Identifier: Apache-2.0 */
/* hostile_lab.c - see hostile_lab.h. */
#include "hostile_lab.h"

struct lab lab;

static uint8_t frame[2048];

void
hostile_open(void)
{
    struct lab_conf conf = lab_conf_default(3);
    conf.guest.queue_size = HOSTILE_NUM;
    lab_open(&lab, &conf);
    for (uint32_t i = 0; i < 3; i++)
        lab_fill(&lab, i, 32);
    lab_learn_all(&lab);
}

void
hostile_good_ports_go_on(void)
{
    for (uint32_t i = 0; i < 5; i++) {
        lab_frame(frame, LAB_MAC(1), LAB_MAC(0), 200 + i, i);
        lab_send(&lab, 0, frame, 200 + i);
        lab_poll(&lab, 2);
        lab_expect(&lab, 1, frame, 200 + i);
        lab_frame(frame, LAB_MAC(0), LAB_MAC(1), 300 + i, i);
        lab_send(&lab, 1, frame, 300 + i);
        lab_poll(&lab, 2);
        lab_expect(&lab, 0, frame, 300 + i);
        lab_fill(&lab, 0, 1);
        lab_fill(&lab, 1, 1);
    }
    CHECK_EQ(pvs_port_broken(lab.port[0].port), 0);
    CHECK_EQ(pvs_port_broken(lab.port[1].port), 0);
}

void
hostile_expect_broken(enum pvs_broken why)
{
    struct pvs_event e;
    int told = 0;
    struct pvs_ring_status before, after;
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), why);
    while (pvs_event_next(lab.sw, &e) == 1) {
        if (e.kind != PVS_EV_BROKEN)
            continue;
        told++;
        CHECK_EQ(e.detail, why);
        CHECK_EQ(e.port_ref, pvs_port_ref(lab.port[BAD].port));
    }
    CHECK_EQ(told, 1);
    CHECK_EQ(pvs_ring_status(lab.port[BAD].port, 1, &before), 0);
    pvd_kick_force(lab.port[BAD].guest, 1);
    lab_poll(&lab, 20);
    hostile_good_ports_go_on();
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 60, 0);
    lab_send(&lab, 0, frame, 60);
    lab_poll(&lab, 2);
    CHECK_EQ(lab_counters(&lab, BAD).tx_drop[PVS_DROP_link_down], 1);
    CHECK_EQ(pvs_ring_status(lab.port[BAD].port, 1, &after), 0);
    CHECK_EQ(before.used_idx, after.used_idx);
    CHECK_EQ(pvs_event_next(lab.sw, &e), 0);
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), why);
}

void
hostile_heal_and_close(void)
{
    hostile_empty_rings();
    CHECK_EQ(pvs_port_broken(lab.port[BAD].port), 0);
    lab_fill(&lab, BAD, 10);
    lab_frame(frame, LAB_MAC(BAD), LAB_MAC(0), 100, 0);
    lab_send(&lab, 0, frame, 100);
    lab_poll(&lab, 2);
    lab_expect(&lab, BAD, frame, 100);
    lab_frame(frame, LAB_MAC(0), LAB_MAC(BAD), 101, 0);
    lab_send(&lab, BAD, frame, 101);
    lab_poll(&lab, 2);
    lab_expect(&lab, 0, frame, 101);
    lab_close(&lab);
}

void
hostile_empty_rings(void)
{
    lab_detach(&lab, BAD);
    lab_reset(&lab, BAD);
    lab_attach(&lab, BAD);
}

void
hostile_kick(uint32_t ring)
{
    pvd_kick_force(lab.port[BAD].guest, ring);
    lab_poll(&lab, 2);
}

void
hostile_send_at_it(bool flood, enum pvs_broken why)
{
    lab_frame(frame, flood ? LAB_BROADCAST : LAB_MAC(BAD), LAB_MAC(0), 400, 1);
    lab_send(&lab, 0, frame, 400);
    lab_poll(&lab, 2);
    if (flood)
        lab_expect(&lab, 1, frame, 400);
    CHECK_EQ(lab_sum(lab_counters(&lab, BAD).tx_drop), 1);
    hostile_expect_broken(why);
}

uint64_t
hostile_scratch(void)
{
    return pvd_scratch_gpa(lab.port[BAD].guest);
}
