/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tables.c - makes the tables that workers decide by, from what control wants, and publishes them (pvs_api.h).
 */
#include "switch.h"

#include <errno.h>
#include <stdlib.h>

void
pvs_tables_free(struct pvs_tables *t)
{
    if (t == NULL)
        return;
    for (uint32_t b = 0; b < PVS_MAX_BRIDGES; b++)
        free(t->bridge[b].vlans);
    free(t->vlans);
    free(t);
}

/* ---- VLANs ---- */

static bool
has_rules(const struct pvs_port_conf *conf)
{
    return conf->vlan_mode != PVS_VLAN_TRUNK || conf->vlans != NULL;
}

/* -EINVAL: no such mode, or a tag or a set that the mode doesn't go with. */
static int
rules_fill(struct pvs_vlan *rules, const struct pvs_port_conf *conf)
{
    bool native = conf->vlan_mode == PVS_VLAN_NATIVE_TAGGED || conf->vlan_mode == PVS_VLAN_NATIVE_UNTAGGED;

    if (conf->vlan_mode > PVS_VLAN_DOT1Q_TUNNEL || conf->tag >= PVS_VIDS ||
        (conf->vlan_mode == PVS_VLAN_ACCESS && conf->vlans != NULL))
        return -EINVAL;
    rules->mode = conf->vlan_mode;
    rules->tag = conf->tag;
    for (uint32_t i = 0; i < PVS_VIDS / 64; i++)
        rules->set[i] = conf->vlans != NULL ? conf->vlans[i] : UINT64_MAX;
    if (native) { /* it carries its own VLAN, and nothing that is in none */
        rules->set[0] &= ~UINT64_C(1);
        rules->set[conf->tag / 64] |= UINT64_C(1) << conf->tag % 64;
    }
    return 0;
}

static int
vlans_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports)
{
    uint32_t n = 0;

    for (uint32_t p = 0; p < n_ports; p++)
        n += has_rules(&ports[p]);
    if (n == 0)
        return 0;
    t->vlans = calloc(n, sizeof *t->vlans);
    if (t->vlans == NULL)
        return -ENOMEM;
    n = 0;
    for (uint32_t p = 0; p < n_ports; p++) {
        if (!has_rules(&ports[p]))
            continue;
        int rc = rules_fill(&t->vlans[n], &ports[p]);
        if (rc != 0)
            return rc;
        t->port[pvs_ref_index(ports[p].port->ref)].vlan = &t->vlans[n++];
    }
    return 0;
}

static bool
is_member(const struct pvs_tables *t, uint32_t port, uint32_t bridge)
{
    return t->port[port].ref != 0 && t->port[port].bridge == bridge && t->port[port].enabled;
}

/* List the members of each VLAN of a bridge: a pass to count them, one to write them down. */
static int
vlan_members_fill(struct pvs_tables *t, uint32_t bridge)
{
    uint32_t n[PVS_VIDS] = { 0 }, total = 0;
    uint16_t port[PVS_MAX_PORTS];
    uint32_t n_ports = 0;

    for (uint16_t p = 0; p < PVS_MAX_PORTS; p++)
        if (is_member(t, p, bridge) && t->port[p].vlan != NULL)
            port[n_ports++] = p;
    for (uint32_t i = 0; i < n_ports; i++)
        for (uint32_t vid = 0; vid < PVS_VIDS; vid++)
            n[vid] += pvs_vlan_member(t->port[port[i]].vlan, (uint16_t)vid);
    for (uint32_t vid = 0; vid < PVS_VIDS; vid++)
        total += n[vid];
    if (total == 0)
        return 0;
    struct pvs_vlan_members *m = malloc(sizeof *m + total * sizeof m->member[0]);
    if (m == NULL)
        return -ENOMEM;
    t->bridge[bridge].vlans = m;
    m->start[0] = 0;
    for (uint32_t vid = 0; vid < PVS_VIDS; vid++) {
        m->start[vid + 1] = m->start[vid] + n[vid];
        n[vid] = m->start[vid];
    }
    for (uint32_t i = 0; i < n_ports; i++)
        for (uint32_t vid = 0; vid < PVS_VIDS; vid++)
            if (pvs_vlan_member(t->port[port[i]].vlan, (uint16_t)vid))
                m->member[n[vid]++] = port[i];
    return 0;
}

/* ---- all of it ---- */

static int
ports_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports, uint32_t n_bridges)
{
    for (uint32_t p = 0; p < n_ports; p++) {
        struct pvs_port *port = ports[p].port;
        struct pvs_port_view *view = &t->port[pvs_ref_index(port->ref)];
        if (ports[p].bridge >= n_bridges || view->ref != 0)
            return -EINVAL;
        *view = (struct pvs_port_view){ .ref = port->ref,
                                        .mtu = ports[p].mtu,
                                        .backpressure_ns = ports[p].backpressure_ms * 1000000ULL,
                                        .bridge = ports[p].bridge,
                                        .enabled = ports[p].enabled,
                                        .isolated = ports[p].isolated,
                                        .plain = !has_rules(&ports[p]) && !ports[p].isolated,
                                        .rx_up = &port->rx_up,
                                        .port = port };
    }
    return vlans_fill(t, ports, n_ports);
}

static int
tables_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports,
            const struct pvs_bridge_conf *bridges, uint32_t n_bridges)
{
    for (uint32_t b = 0; b < n_bridges; b++)
        t->bridge[b] = (struct pvs_bridge_view){ .fdb = bridges[b].fdb,
                                                 .forward_bpdu = bridges[b].forward_bpdu,
                                                 .flood_unknown = bridges[b].flood_unknown,
                                                 .punt_bpdu = bridges[b].punt_bpdu,
                                                 .counted = bridges[b].vlan_counters };
    int rc = ports_fill(t, ports, n_ports, n_bridges);
    uint16_t *place = t->members;
    for (uint32_t b = 0; rc == 0 && b < n_bridges; b++) {
        t->bridge[b].member = place;
        for (uint16_t p = 0; p < PVS_MAX_PORTS; p++)
            if (is_member(t, p, b) && t->port[p].vlan == NULL)
                *place++ = p;
        t->bridge[b].n_members = (uint16_t)(place - t->bridge[b].member);
        rc = vlan_members_fill(t, b);
    }
    return rc;
}

int64_t
pvs_publish(struct pvs_switch *sw, const struct pvs_port_conf *ports, uint32_t n_ports,
            const struct pvs_bridge_conf *bridges, uint32_t n_bridges)
{
    int rc;

    if (n_ports > PVS_MAX_PORTS || n_bridges > PVS_MAX_BRIDGES)
        return -EINVAL;
    struct pvs_command *command = pvs_command_new(sw, PVS_OP_PUBLISH, 0, &rc);
    if (command == NULL)
        return rc;
    struct pvs_tables *tables = calloc(1, sizeof *tables);
    rc = tables == NULL ? -ENOMEM : tables_fill(tables, ports, n_ports, bridges, n_bridges);
    if (rc != 0) {
        pvs_tables_free(tables);
        free(command);
        return rc;
    }
    command->publish.tables = tables;
    command->publish.old = sw->tables;
    sw->tables = tables;
    sw->publishing++;
    return pvs_command_submit(sw, command);
}

/* ---- counters of VLANs ---- */

int
pvs_vlan_counters_create(struct pvs_switch *sw, struct pvs_vlan_counters **out)
{
    struct pvs_vlan_counters *c = calloc(1, sizeof *c);
    int rc = c == NULL ? -ENOMEM : 0;

    for (uint32_t i = 0; rc == 0 && i < sw->conf.n_workers; i++) {
        c->of[i] = calloc(PVS_VIDS, sizeof *c->of[i]);
        rc = c->of[i] == NULL ? -ENOMEM : 0;
    }
    if (rc != 0) {
        pvs_vlan_counters_destroy(c);
        return rc;
    }
    *out = c;
    return 0;
}

void
pvs_vlan_counters_destroy(struct pvs_vlan_counters *c)
{
    for (uint32_t i = 0; c != NULL && i < PVS_MAX_WORKERS; i++)
        free(c->of[i]);
    free(c);
}

void
pvs_vlan_counters_read(const struct pvs_vlan_counters *c, uint16_t vid, uint64_t *packets, uint64_t *bytes)
{
    *packets = *bytes = 0;
    for (uint32_t i = 0; i < PVS_MAX_WORKERS && c->of[i] != NULL; i++) {
        *packets += atomic_load_explicit(&c->of[i][vid % PVS_VIDS].packets, memory_order_relaxed);
        *bytes += atomic_load_explicit(&c->of[i][vid % PVS_VIDS].bytes, memory_order_relaxed);
    }
}
