/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tables.c - makes the tables that workers decide by, from what control wants. publish.c hands them out.
 */
#include "parse.h"
#include "switch.h"

#include <errno.h>
#include <stdlib.h>

void
pvs_tables_free(struct pvs_tables *t)
{
    if (t == NULL)
        return;
    for (uint32_t b = 0; b < PVS_MAX_BRIDGES; b++) {
        free(t->bridge[b].vlans);
        free(t->bridge[b].flows);
    }
    free(t->vlans);
    free(t->policies);
    free(t->securities);
    free(t->mirrors);
    free(t->macs);
    free(t->networks);
    for (struct pvs_demux *d = t->demuxes, *next; d != NULL; d = next) {
        next = d->next;
        free(d);
    }
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

    bool mapped = conf->tunnel != NULL && conf->tunnel->by_vid != NULL;

    if (conf->vlan_mode > PVS_VLAN_MAPPED || conf->tag >= PVS_VIDS || mapped != (conf->vlan_mode == PVS_VLAN_MAPPED) ||
        (mapped && conf->vlans == NULL) || (conf->vlan_mode == PVS_VLAN_ACCESS && conf->vlans != NULL))
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

/* ---- limits ---- */

static bool
has_limits(const struct pvs_port_conf *conf)
{
    bool any = conf->policing.per_second != 0 || conf->shaping.per_second != 0;

    for (uint32_t kind = 0; kind < PVS_STORM_CLASSES; kind++)
        any |= conf->storm[kind].per_second != 0;
    return any;
}

static int
policies_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports)
{
    uint32_t n = 0;

    for (uint32_t p = 0; p < n_ports; p++)
        n += has_limits(&ports[p]);
    if (n == 0)
        return 0;
    t->policies = calloc(n, sizeof *t->policies);
    if (t->policies == NULL)
        return -ENOMEM;
    n = 0;
    for (uint32_t p = 0; p < n_ports; p++) {
        if (!has_limits(&ports[p]))
            continue;
        struct pvs_policy *policy = &t->policies[n++];
        policy->policing = pvs_rate_of(ports[p].policing.per_second, ports[p].policing.depth);
        policy->shaping = pvs_rate_of(ports[p].shaping.per_second, ports[p].shaping.depth);
        for (uint32_t kind = 0; kind < PVS_STORM_CLASSES; kind++)
            policy->storm[kind] = pvs_rate_of(ports[p].storm[kind].per_second, ports[p].storm[kind].depth);
        t->port[pvs_ref_index(ports[p].port->ref)].policy = policy;
    }
    return 0;
}

/* ---- senders ---- */

static int
compare_macs(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void
security_fill(struct pvs_security *rules, uint64_t *mac, struct pvs_network *network, const struct pvs_port_conf *conf)
{
    *rules = (struct pvs_security){ .sticky = conf->sticky,
                                    .max_macs = conf->max_macs,
                                    .n_macs = conf->n_macs,
                                    .n_networks = conf->n_networks,
                                    .mac = mac,
                                    .network = network };
    for (uint32_t i = 0; i < conf->n_macs; i++)
        mac[i] = pvs_mac_load(conf->macs + 6 * (size_t)i);
    if (conf->n_macs != 0)
        qsort(mac, conf->n_macs, sizeof *mac, compare_macs);
    for (uint32_t i = 0; i < conf->n_networks; i++)
        network[i] = conf->networks[i];
}

static int
securities_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports)
{
    size_t n = 0, n_macs = 0, n_networks = 0;

    for (uint32_t p = 0; p < n_ports; p++) {
        n += ports[p].secure;
        n_macs += ports[p].secure ? ports[p].n_macs : 0;
        n_networks += ports[p].secure ? ports[p].n_networks : 0;
    }
    if (n == 0)
        return 0;
    t->securities = calloc(n, sizeof *t->securities);
    t->macs = calloc(n_macs + 1, sizeof *t->macs);
    t->networks = calloc(n_networks + 1, sizeof *t->networks);
    if (t->securities == NULL || t->macs == NULL || t->networks == NULL)
        return -ENOMEM;
    n = n_macs = n_networks = 0;
    for (uint32_t p = 0; p < n_ports; p++) {
        if (!ports[p].secure)
            continue;
        for (uint32_t i = 0; i < ports[p].n_networks; i++)
            if (ports[p].networks[i].bits > 128)
                return -EINVAL;
        security_fill(&t->securities[n], t->macs + n_macs, t->networks + n_networks, &ports[p]);
        t->port[pvs_ref_index(ports[p].port->ref)].security = &t->securities[n++];
        n_macs += ports[p].n_macs;
        n_networks += ports[p].n_networks;
    }
    return 0;
}

/* ---- mirrors ---- */

/* Does each port name only mirrors that its bridge has? */
static bool
mirrors_known(const struct pvs_port_conf *ports, uint32_t n_ports, const struct pvs_bridge_conf *bridges)
{
    for (uint32_t p = 0; p < n_ports; p++)
        if ((uint64_t)(ports[p].mirror_in | ports[p].mirror_out) >> bridges[ports[p].bridge].n_mirrors != 0)
            return false;
    return true;
}

/* Any port of the bridge may get edited frames, and several copies of one. */
static void
into_vlan(struct pvs_tables *t, uint32_t bridge)
{
    for (uint32_t p = 0; p < PVS_MAX_PORTS; p++)
        if (t->port[p].bridge == bridge)
            t->port[p].steady = t->port[p].plain = false;
}

/* -EINVAL: its port is not on the bridge, or there is no such VLAN; or not even an Ethernet header is kept. */
static int
mirror_fill(struct pvs_tables *t, struct pvs_mirror *m, const struct pvs_mirror_conf *conf, uint32_t bridge)
{
    *m = (struct pvs_mirror){ .vid = conf->vid, .drops = conf->drops, .snaplen = conf->snaplen };
    for (uint32_t i = 0; i < PVS_VIDS / 64; i++)
        m->set[i] = conf->vlans != NULL ? conf->vlans[i] : UINT64_MAX;
    if (conf->snaplen != 0 && conf->snaplen < PVS_ETH_HLEN)
        return -EINVAL;
    if (conf->port == NULL) {
        into_vlan(t, bridge);
        return conf->vid == 0 || conf->vid >= PVS_VIDS - 1 ? -EINVAL : 0;
    }
    struct pvs_port_view *out = &t->port[pvs_ref_index(conf->port->ref)];
    if (out->ref != conf->port->ref || out->bridge != bridge)
        return -EINVAL;
    m->out_ref = out->ref;
    out->mirrored_to = true;
    out->steady = out->plain = false;
    out->mirror_in = out->mirror_out = 0;
    return 0;
}

static int
mirrors_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports,
             const struct pvs_bridge_conf *bridges, uint32_t n_bridges)
{
    uint32_t n = 0;
    int rc = 0;

    for (uint32_t b = 0; b < n_bridges; b++) {
        if (bridges[b].n_mirrors > PVS_MAX_MIRRORS)
            return -EINVAL;
        n += bridges[b].n_mirrors;
    }
    if (!mirrors_known(ports, n_ports, bridges))
        return -EINVAL;
    if (n == 0)
        return 0;
    t->mirrors = calloc(n, sizeof *t->mirrors);
    if (t->mirrors == NULL)
        return -ENOMEM;
    n = 0;
    for (uint32_t b = 0; b < n_bridges; b++) {
        t->bridge[b].mirror = &t->mirrors[n];
        t->bridge[b].n_mirrors = bridges[b].n_mirrors;
        for (uint32_t i = 0; rc == 0 && i < bridges[b].n_mirrors; i++)
            rc = mirror_fill(t, &t->mirrors[n++], &bridges[b].mirrors[i], b);
    }
    return rc;
}

/* ---- tunnels ---- */

/* The networks of an endpoint's tunnels, once for all of them. */
static int
demux_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports, struct pvs_port *endpoint)
{
    uint32_t n = 0;
    int rc = 0;

    for (uint32_t p = 0; p < n_ports; p++)
        if (ports[p].tunnel != NULL && ports[p].tunnel->endpoint == endpoint)
            n += ports[p].tunnel->n_segments;
    struct pvs_demux *demux = pvs_demux_create(endpoint, n);
    if (demux == NULL)
        return -ENOMEM;
    demux->next = t->demuxes;
    t->demuxes = demux;
    for (uint32_t p = 0; p < n_ports; p++) {
        struct pvs_tunnel *tunnel = ports[p].tunnel;
        for (uint32_t i = 0; rc == 0 && tunnel != NULL && tunnel->endpoint == endpoint && i < tunnel->n_segments; i++) {
            struct pvs_segment *segment = &tunnel->segment[i];
            const struct pvs_network_entry entry = { .vni = segment->vni,
                                                     .tunnel = tunnel,
                                                     .segment = segment,
                                                     .port_ref = ports[p].port->ref,
                                                     .room = ports[p].room };
            rc = pvs_demux_add(demux, &entry);
        }
    }
    t->port[pvs_ref_index(endpoint->ref)] = (struct pvs_port_view){
        .ref = endpoint->ref, .bridge = PVS_NO_BRIDGE, .port = endpoint, .rx_up = &endpoint->rx_up, .demux = demux
    };
    return rc;
}

/* -EINVAL: an endpoint is on a bridge itself, or a tunnel has queues. -EEXIST: two tunnels of an endpoint have the same network. */
static int
tunnels_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports)
{
    int rc = 0;

    for (uint32_t p = 0; rc == 0 && p < n_ports; p++) {
        struct pvs_tunnel *tunnel = ports[p].tunnel;
        if (tunnel == NULL)
            continue;
        struct pvs_port_view *view = &t->port[pvs_ref_index(ports[p].port->ref)];
        const struct pvs_port_view *endpoint = &t->port[pvs_ref_index(tunnel->endpoint->ref)];
        if (ports[p].port->n_rings + ports[p].port->n_uplinks != 0 ||
            (endpoint->ref != 0 && endpoint->bridge != PVS_NO_BRIDGE))
            return -EINVAL;
        view->tunnel = tunnel;
        view->room = ports[p].room;
        view->tunnel_mtu = ports[p].mtu;
        view->mtu = view->room != 0 || view->tunnel_mtu != 0;
        view->rx_up = &tunnel->endpoint->rx_up;
        if (endpoint->ref == 0)
            rc = demux_fill(t, ports, n_ports, tunnel->endpoint);
        view->demux = endpoint->demux;
    }
    return rc;
}

/* ---- members ---- */

static bool
is_member(const struct pvs_tables *t, uint32_t port, uint32_t bridge)
{
    const struct pvs_port_view *p = &t->port[port];

    return p->ref != 0 && p->bridge == bridge && p->enabled && !p->mirrored_to;
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

static bool
is_steady(const struct pvs_port_conf *conf)
{
    bool by_content = conf->secure && conf->n_networks != 0;

    return !has_limits(conf) && !by_content && (conf->mirror_in | conf->mirror_out) == 0;
}

static bool
is_plain(const struct pvs_port_conf *conf, const struct pvs_bridge_conf *bridge)
{
    return is_steady(conf) && bridge->flows == NULL && !has_rules(conf) && !conf->isolated && !conf->secure &&
           conf->tunnel == NULL;
}

static int
ports_fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports,
           const struct pvs_bridge_conf *bridges, uint32_t n_bridges)
{
    for (uint32_t p = 0; p < n_ports; p++) {
        struct pvs_port *port = ports[p].port;
        struct pvs_port_view *view = &t->port[pvs_ref_index(port->ref)];
        if (ports[p].bridge >= n_bridges || view->ref != 0 || ports[p].mesh >= 32)
            return -EINVAL;
        *view = (struct pvs_port_view){ .ref = port->ref,
                                        .mtu = ports[p].mtu,
                                        .backpressure_ns = ports[p].backpressure_ms * 1000000ULL,
                                        .bridge = ports[p].bridge,
                                        .enabled = ports[p].enabled,
                                        .apart = (ports[p].mesh != 0 ? 1U << ports[p].mesh : 0) |
                                                 (ports[p].isolated ? PVS_APART_ISOLATED : 0),
                                        .mirror_in = ports[p].mirror_in,
                                        .mirror_out = ports[p].mirror_out,
                                        .steady = is_steady(&ports[p]),
                                        .plain = is_plain(&ports[p], &bridges[ports[p].bridge]),
                                        .slot = PVS_NO_SLOT,
                                        .capture_in = ports[p].capture_in,
                                        .capture_out = ports[p].capture_out,
                                        .meters = &port->meters,
                                        .rx_up = &port->rx_up,
                                        .port = port };
    }
    int rc = tunnels_fill(t, ports, n_ports);
    if (rc == 0)
        rc = vlans_fill(t, ports, n_ports);
    if (rc == 0)
        rc = policies_fill(t, ports, n_ports);
    return rc != 0 ? rc : securities_fill(t, ports, n_ports);
}

static int
fill(struct pvs_tables *t, const struct pvs_port_conf *ports, uint32_t n_ports, const struct pvs_bridge_conf *bridges,
     uint32_t n_bridges)
{
    for (uint32_t b = 0; b < n_bridges; b++)
        t->bridge[b] = (struct pvs_bridge_view){ .fdb = bridges[b].fdb,
                                                 .forward_bpdu = bridges[b].forward_bpdu,
                                                 .flood_unknown = bridges[b].flood_unknown,
                                                 .punt_bpdu = bridges[b].punt_bpdu,
                                                 .counted = bridges[b].vlan_counters };
    int rc = ports_fill(t, ports, n_ports, bridges, n_bridges);
    if (rc == 0)
        rc = mirrors_fill(t, ports, n_ports, bridges, n_bridges);
    if (rc == 0)
        rc = pvs_flows_fill(t, bridges, n_bridges);
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

int
pvs_tables_make(const struct pvs_port_conf *ports, uint32_t n_ports, const struct pvs_bridge_conf *bridges,
                uint32_t n_bridges, struct pvs_tables **out)
{
    struct pvs_tables *t = calloc(1, sizeof *t);
    int rc = t == NULL ? -ENOMEM : fill(t, ports, n_ports, bridges, n_bridges);

    if (rc != 0) {
        pvs_tables_free(t);
        return rc;
    }
    *out = t;
    return 0;
}
