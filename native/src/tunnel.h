/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tunnel.h - what makes a port a tunnel: its virtual networks, who is on them, how it encapsulates; and by which network a packet
 * finds its port.
 *
 * How it works: control builds a tunnel completely and publishes it with its port; only the lists of remotes may change while it
 * is in use: a list is replaced as a whole by a command, and the old one is freed a grace period later. A *segment* is one network
 * of a tunnel: a VNI, and the VLAN whose frames it carries without their tag, or all that the port carries. The *demux* of an endpoint
 * (the socket that packets of many tunnels come by) is part of the published tables: VNI -> port and segment.
 *
 * Workers read; control writes.
 */
#ifndef PVS_TUNNEL_H
#define PVS_TUNNEL_H

#include <stdatomic.h>

#include "encap.h"
#include "pvs_api.h"

/* Who is on a segment, by number (vtep.h). */
struct pvs_remotes {
    uint32_t n_flood; /* who gets what is flooded: the first ones of `vtep`; */
    uint32_t n_known; /* behind them, sorted: whose packets are taken of a tunnel that doesn't learn */
    uint16_t vtep[];
};

struct pvs_segment {
    uint64_t vni; /* or PVS_NO_KEY */
    uint16_t vid; /* or PVS_UNMAPPED */
    _Atomic(struct pvs_remotes *) remotes;
};

enum { PVS_VLANS = 4096 };

struct pvs_tunnel {
    struct pvs_switch *sw;
    struct pvs_port *endpoint;
    enum pvs_tunnel_kind kind;
    bool ipv6, learning, too_big;
    int32_t tos;
    uint16_t dst_port;
    uint32_t n_sockets;
    int socket[PVS_MAX_SOURCES];
    _Atomic bool segmentation; /* its sockets take several datagrams of one size as one */
    _Atomic uint32_t error;    /* errno of what went wrong last */
    uint16_t *by_vid;          /* the number of a VLAN's segment; NULL: there is one, for all */
    uint32_t n_segments;
    struct pvs_segment segment[];
};

/* No segment's number. */
enum { PVS_NO_SEGMENT = 0xffff };

/* The segment that carries a VLAN; NULL: none does. */
static inline struct pvs_segment *
pvs_tunnel_segment(struct pvs_tunnel *tunnel, uint16_t vid)
{
    uint16_t number = tunnel->by_vid == NULL ? 0 : tunnel->by_vid[vid % PVS_VLANS];

    return number == PVS_NO_SEGMENT ? NULL : &tunnel->segment[number];
}

/* acquire: the list is complete */
static inline const struct pvs_remotes *
pvs_segment_remotes(struct pvs_segment *segment)
{
    return atomic_load_explicit(&segment->remotes, memory_order_acquire);
}

/* Are packets taken that come from a VTEP, by its number (0: it has none)? */
bool pvs_tunnel_takes(struct pvs_tunnel *tunnel, struct pvs_segment *segment, uint16_t vtep);

/* ---- an endpoint's networks ---- */

struct pvs_network_entry {
    uint64_t vni;
    struct pvs_tunnel *tunnel; /* NULL: a free place */
    struct pvs_segment *segment;
    uint32_t port_ref;
    uint32_t room; /* the largest frame of its port; 0 = any */
};

/* A hash table with open addresses, never more than half full. */
struct pvs_demux {
    struct pvs_demux *next; /* of another endpoint, in the same tables */
    struct pvs_port *endpoint;
    uint32_t mask;
    struct pvs_network_entry entry[];
};

/* NULL: no tunnel here has this network. */
const struct pvs_network_entry *pvs_demux_find(const struct pvs_demux *demux, uint64_t vni);

/* Control's: a table for `n` networks, NULL without memory; and put one in. -EEXIST */
struct pvs_demux *pvs_demux_create(struct pvs_port *endpoint, uint32_t n);
int pvs_demux_add(struct pvs_demux *demux, const struct pvs_network_entry *entry);

/* ---- control's side, see pvs_api.h ---- */

int pvs_tunnel_check(const struct pvs_tunnel_conf *conf);
/* -ENOMEM. Without remotes. */
int pvs_tunnel_make(struct pvs_switch *sw, const struct pvs_tunnel_conf *conf, struct pvs_tunnel **out);
void pvs_tunnel_free(struct pvs_tunnel *tunnel);
/* Both lists as one, NULL without memory. */
struct pvs_remotes *pvs_remotes_make(const uint16_t *flood, uint32_t n_flood, const uint16_t *others,
                                     uint32_t n_others);

#endif
