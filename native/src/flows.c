/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flows.c - the control thread's side of flows: their tables, what they have counted, what the published tables say of them; and
 * the question what would become of a frame (pvs_api.h).
 */
#include <errno.h>
#include <stdlib.h>

#include "switch.h"

int
pvs_flow_table_create(struct pvs_switch *sw, const struct pvs_flow_conf *flows, uint32_t n_flows,
                      const struct pvs_flow_action *actions, uint32_t n_actions, uint64_t seed,
                      struct pvs_flow_table **out)
{
    return pvs_flow_table_make(sw->conf.n_workers, flows, n_flows, actions, n_actions, seed, out);
}

int
pvs_flow_counter_add(struct pvs_switch *sw, uint32_t *counter)
{
    return pvs_flow_counters_take(&sw->flow_counters, counter);
}

void
pvs_flow_counter_remove(struct pvs_switch *sw, uint32_t counter)
{
    pvs_flow_counters_give(&sw->flow_counters, counter);
}

void
pvs_flow_counters_read(const struct pvs_switch *sw, const uint32_t *counter, uint32_t n, uint64_t *packets,
                       uint64_t *bytes, uint64_t *used_ns)
{
    for (uint32_t i = 0; i < n; i++) {
        packets[i] = bytes[i] = used_ns[i] = 0;
        for (uint32_t w = 0; w < sw->conf.n_workers; w++) {
            const struct pvs_flow_count *c = pvs_flow_count_of(&sw->flow_counters, w, counter[i]);
            uint64_t used = atomic_load_explicit(&c->used_ns, memory_order_relaxed);
            packets[i] += atomic_load_explicit(&c->packets, memory_order_relaxed);
            bytes[i] += atomic_load_explicit(&c->bytes, memory_order_relaxed);
            used_ns[i] = used > used_ns[i] ? used : used_ns[i];
        }
    }
}

/* ---- in the tables ---- */

static int
ports_fill(struct pvs_tables *t, struct pvs_flows *flows, const struct pvs_bridge_conf *conf, uint16_t bridge)
{
    if (conf->n_flow_ports > PVS_MAX_PORTS)
        return -EINVAL;
    for (uint32_t slot = 0; slot < PVS_MAX_PORTS; slot++) {
        const struct pvs_port *port = slot < conf->n_flow_ports ? conf->flow_ports[slot] : NULL;
        flows->port[slot] = PVS_NO_PORT;
        if (port == NULL)
            continue;
        struct pvs_port_view *view = &t->port[pvs_ref_index(port->ref)];
        if (view->ref != port->ref || view->bridge != bridge || view->slot != PVS_NO_SLOT)
            return -EINVAL;
        view->slot = slot;
        flows->port[slot] = (uint16_t)pvs_ref_index(port->ref);
    }
    for (uint16_t p = 0; p < PVS_MAX_PORTS; p++)
        if (t->port[p].ref != 0 && t->port[p].bridge == bridge && t->port[p].enabled && !t->port[p].mirrored_to)
            flows->member[flows->n_members++] = p;
    return 0;
}

static int
meters_fill(struct pvs_flows *flows, const struct pvs_bridge_conf *conf)
{
    if (conf->n_flow_meters > PVS_MAX_METERS)
        return -EINVAL;
    for (uint32_t slot = 0; slot < conf->n_flow_meters; slot++) {
        const struct pvs_meter_conf *m = &conf->flow_meters[slot];
        if (m->meter == NULL)
            continue;
        flows->meter[slot].state = m->meter;
        flows->meter[slot].packets = m->packets;
        flows->meter[slot].rate = pvs_rate_of(m->limit.per_second, m->limit.depth);
    }
    return 0;
}

static int
mirrors_fill(struct pvs_flows *flows, const struct pvs_bridge_conf *conf)
{
    if (conf->n_flow_mirrors > PVS_MAX_MIRRORS)
        return -EINVAL;
    memset(flows->mirror, PVS_NO_MIRROR, sizeof flows->mirror);
    for (uint32_t slot = 0; slot < conf->n_flow_mirrors; slot++) {
        if (conf->flow_mirrors[slot] >= conf->n_mirrors)
            return -EINVAL;
        flows->mirror[slot] = (uint8_t)conf->flow_mirrors[slot];
    }
    return 0;
}

int
pvs_flows_fill(struct pvs_tables *t, const struct pvs_bridge_conf *bridges, uint32_t n_bridges)
{
    int rc = 0;

    for (uint32_t b = 0; rc == 0 && b < n_bridges; b++) {
        if (bridges[b].flows == NULL)
            continue;
        struct pvs_flows *flows = t->bridge[b].flows = calloc(1, sizeof *flows);
        if (flows == NULL)
            return -ENOMEM;
        flows->table = bridges[b].flows;
        rc = ports_fill(t, flows, &bridges[b], (uint16_t)b);
        if (rc == 0)
            rc = meters_fill(flows, &bridges[b]);
        if (rc == 0)
            rc = mirrors_fill(flows, &bridges[b]);
    }
    return rc;
}

void
pvs_flow_meters_settle(struct pvs_tables *t)
{
    for (uint32_t b = 0; b < PVS_MAX_BRIDGES; b++)
        for (uint32_t slot = 0; t->bridge[b].flows != NULL && slot < PVS_MAX_METERS; slot++) {
            const struct pvs_rate *rate = &t->bridge[b].flows->meter[slot].rate;
            struct pvs_flow_meter *state = t->bridge[b].flows->meter[slot].state;
            if (state == NULL || memcmp(&state->rate, rate, sizeof *rate) == 0)
                continue;
            state->rate = *rate;
            pvs_meter_fill(&state->bucket);
        }
}

/* ---- what would become of a frame ---- */

int64_t
pvs_trace_frame(struct pvs_port *port, const struct pvs_trace_conf *conf, struct pvs_trace *out)
{
    int rc;

    if (conf->len < PVS_ETH_HLEN || conf->len > PVS_MAX_FRAME)
        return -EINVAL;
    struct pvs_command *command = pvs_command_new(port->sw, PVS_OP_TRACE, conf->len, &rc);
    if (command == NULL)
        return rc;
    command->trace.port_ref = port->ref;
    command->trace.conf = *conf;
    command->trace.out = out;
    memcpy(command->bytes, conf->frame, conf->len);
    command->trace.conf.frame = command->bytes;
    return pvs_command_submit(port->sw, command);
}
