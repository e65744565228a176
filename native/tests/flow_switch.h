/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow_switch.h - four guests on a bridge with flows: for the tests of what becomes of frames there.
 *
 * How it works: a list of flows (flow_lab.h) is filled flow by flow, and published by `apply`. A port's slot is its number plus 1: slot 0
 * stands for no port.
 */
#ifndef PVS_FLOW_SWITCH_H
#define PVS_FLOW_SWITCH_H

#include "flow_lab.h"
#include "frame.h"
#include "lab.h"
#include "parse.h"

enum { A, B, C, D, PORTS, LEN = 80, COUNTERS = 8 };
static struct lab lab;
static struct flow_list list;
static pvs_flow_table *table;
static pvs_port *slots[PORTS + 1]; /* a port's slot is its number plus 1: a port is none's by chance */
static uint32_t counter[COUNTERS];
static uint8_t frame[PVS_MAX_FRAME];

#define SLOT(port) ((port) + 1U)

static inline void
open_lab_as(const struct lab_conf *conf)
{
    lab_open(&lab, conf);
    for (uint32_t i = 0; i < PORTS; i++) {
        lab_fill(&lab, i, 100);
        slots[SLOT(i)] = lab.port[i].port;
    }
    for (uint32_t i = 0; i < COUNTERS; i++)
        CHECK_EQ(pvs_flow_counter_add(lab.sw, &counter[i]), 0);
    lab.conf.bridge.n_flow_ports = PORTS + 1;
    lab.conf.bridge.flow_ports = slots;
    list.n_flows = list.n_actions = 0;
    table = NULL;
}

static inline void
open_lab(void)
{
    struct lab_conf conf = lab_conf_default(PORTS);

    open_lab_as(&conf);
}

/* Publish what the list says now. */
static inline void
apply(void)
{
    pvs_flow_table *old = table;

    CHECK_EQ(pvs_flow_table_create(lab.sw, list.flow, list.n_flows, list.action, list.n_actions, 1, &table), 0);
    lab.conf.bridge.flows = table;
    lab_publish(&lab);
    if (old != NULL)
        pvs_flow_table_destroy(old);
}

/* Forget the list, for another. */
static inline void
begin_anew(void)
{
    list.n_flows = list.n_actions = 0;
}

/* A flow for all that comes by a port; its actions follow. */
static inline void
from_port(uint32_t port, uint32_t priority)
{
    flow_begin(&list, priority, counter[list.n_flows]);
    flow_match(&list, 0, 32, 32, SLOT(port));
}

static inline void
act(uint32_t kind, uint64_t value)
{
    flow_act(&list, kind, 0, value);
}

static inline void
output(uint32_t slot)
{
    flow_act(&list, PVS_ACT_OUTPUT, slot, 0);
}

static inline void
close_lab(void)
{
    if (lab.conf.bridge.n_mirrors == 0)
        lab_check_sums(&lab);
    lab.conf.bridge = (struct pvs_bridge_conf){ .flood_unknown = true };
    for (uint32_t i = 0; i < PORTS; i++)
        lab.port[i].conf.mirror_in = lab.port[i].conf.mirror_out = 0;
    lab_publish(&lab);
    if (table != NULL)
        pvs_flow_table_destroy(table);
    lab_close(&lab);
}

/* Mirror 0, which flows know as slot 0, sends to a port. */
static inline void
mirror_to(uint32_t port)
{
    static struct pvs_mirror_conf mirror;
    static const uint32_t number[1];

    mirror = (struct pvs_mirror_conf){ .port = lab.port[port].port };
    lab.conf.bridge.n_mirrors = lab.conf.bridge.n_flow_mirrors = 1;
    lab.conf.bridge.mirrors = &mirror;
    lab.conf.bridge.flow_mirrors = number;
}

static inline uint64_t
counted(uint32_t flow)
{
    uint64_t packets, bytes, used;

    pvs_flow_counters_read(lab.sw, &counter[flow], 1, &packets, &bytes, &used);
    CHECK((packets == 0) == (used == 0));
    return packets;
}

static inline void
send(uint32_t from, uint64_t dst, uint32_t salt)
{
    lab_frame(frame, dst, LAB_MAC(from), LEN, salt);
    lab_send(&lab, from, frame, LEN);
    lab_poll(&lab, 2);
}

static inline void
expect_only(uint32_t at)
{
    for (uint32_t i = 0; i < PORTS; i++)
        if (at >> i & 1)
            lab_expect(&lab, i, frame, LEN);
    for (uint32_t i = 0; i < PORTS; i++)
        lab_expect_nothing(&lab, i);
}

#endif
