/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decide.h - where a frame goes, and why: one function of the frame and the tables, without side effects.
 *
 * How it works: control builds `struct pvs_tables` completely and publishes it; a worker reads one version of it for a
 * whole burst. pvs_decide() fills a verdict: the list of egress ports (each with a reason if its copy is to be dropped),
 * or one reason for the whole frame, and the effects that the caller is to apply. The worker commits verdicts frame by
 * frame, in order; whoever explains a hypothetical frame calls the same function, compiled with notes (trace.c), and applies nothing.
 *
 * A bridge may have flows: then they say what becomes of a frame that its port has taken, `normal` being what a bridge does. Where
 * their actions edit it, the verdict has *variants*: the frame with another head and the same tail, as it is from an edit on. Each copy says
 * which of them it is of.
 */
#ifndef PVS_DECIDE_H
#define PVS_DECIDE_H

#include <stdatomic.h>

#include "counters.h"
#include "fdb.h"
#include "flow.h"
#include "flow_action.h"
#include "flow_count.h"
#include "frame.h"
#include "mirror.h"
#include "policy.h"
#include "offload.h"
#include "security.h"
#include "tunnel.h"
#include "vlan.h"

/* A port as the tables know it, at its index. ref 0: no such port. */
struct pvs_port_view {
    uint32_t ref;
    uint32_t mtu;    /* 0 = not enforced; of a tunnel that has bounds: 1, so that they are looked at */
    uint16_t bridge; /* PVS_NO_BRIDGE: an endpoint of tunnels */
    bool enabled;
    bool mirrored_to; /* only mirrors send to it, and what comes by it is dropped */
    bool steady; /* what becomes of a frame becomes of the next one with the same addresses, tags and flow key, too */
    bool plain;  /* and nothing is to be looked at but link and MTU */
    uint32_t apart;                /* it gets nothing that came by a port with one of the same bits (below) */
    uint64_t backpressure_ns;      /* how long known unicast waits for a full receiver; 0 = it is dropped */
    const _Atomic uint32_t *rx_up; /* not 0: its guest can receive */
    const struct pvs_vlan *vlan;   /* NULL: a trunk of all VLANs */
    struct pvs_port *port;
    uint32_t mirror_in, mirror_out;      /* the mirrors that want what comes by it, and what leaves by it: bits */
    const struct pvs_policy *policy;     /* NULL: no limits */
    const struct pvs_security *security; /* NULL: any sender */
    struct pvs_meters *meters;           /* what has been used of them */
    struct pvs_tunnel *tunnel;           /* NULL: it isn't one */
    uint32_t room, tunnel_mtu;           /* of a tunnel: bytes of a frame, and its L3 bytes; 0 = any */
    const struct pvs_demux *demux;       /* of an endpoint, and of its tunnels */
    uint32_t slot;                       /* that flows know it by; PVS_NO_SLOT: no flow names it */
    uint32_t capture_in, capture_out;    /* who captures what comes in by it, and goes out: bits, by slot */
};

enum { PVS_NO_BRIDGE = PVS_MAX_BRIDGES };
/* Of isolated ports; the other bits are those of meshes of tunnels. */
enum { PVS_APART_ISOLATED = 1 };

#define PVS_NO_SLOT 0xffffffffU

/* A bridge's flows, and what the slots that they name stand for. */
struct pvs_flows {
    const struct pvs_flow_table *table;
    uint16_t port[PVS_MAX_PORTS];   /* its index; PVS_NO_PORT: there is none now */
    uint16_t member[PVS_MAX_PORTS]; /* every enabled port of the bridge but outputs of mirrors, whatever its VLANs */
    uint32_t n_members;
    uint8_t mirror[PVS_MAX_MIRRORS]; /* its number; PVS_NO_MIRROR: there is none now */
    struct {
        struct pvs_rate rate;
        bool packets;                 /* the rate is of frames, not of bytes */
        struct pvs_flow_meter *state; /* NULL: there is no such meter now */
    } meter[PVS_MAX_METERS];
};

enum { PVS_NO_PORT = 0xffff, PVS_NO_MIRROR = 0xff };

struct pvs_bridge_view {
    struct pvs_fdb *fdb;
    bool forward_bpdu, flood_unknown, punt_bpdu;
    uint16_t n_members;
    const uint16_t *member;            /* indices of its enabled ports in every VLAN, where floods go */
    struct pvs_vlan_members *vlans;    /* and of those in some of them; NULL: there is none */
    struct pvs_vlan_counters *counted; /* NULL: it has no VLANs of its own */
    const struct pvs_mirror *mirror;
    uint32_t n_mirrors;
    struct pvs_flows *flows; /* NULL: it has none */
};

/* What came into each VLAN of a bridge: by worker, which is the only writer of its own, then by VID. */
struct pvs_vlan_counters {
    struct {
        _Atomic uint64_t packets, bytes;
    } * of[PVS_MAX_WORKERS];
};

/* Of one bridge: the members of a VLAN are member[start[vid]] to member[start[vid + 1]], without those in every VLAN. */
struct pvs_vlan_members {
    uint32_t start[PVS_VIDS + 1];
    uint16_t member[];
};

struct pvs_tables {
    struct pvs_port_view port[PVS_MAX_PORTS];
    struct pvs_bridge_view bridge[PVS_MAX_BRIDGES];
    uint16_t members[PVS_MAX_PORTS];
    struct pvs_vlan *vlans;          /* what the ports' `vlan` point to, */
    struct pvs_policy *policies;     /* their `policy`, */
    struct pvs_security *securities; /* and their `security`, with the lists of these */
    struct pvs_mirror *mirrors;      /* what the bridges' `mirror` point to */
    uint64_t *macs;
    struct pvs_network *networks;
    struct pvs_demux *demuxes; /* what the endpoints' `demux` point to, in a list */
};

/* One copy: to `port`, or not, because of `drop`. */
struct pvs_egress {
    uint16_t port;
    uint8_t drop;    /* enum pvs_drop; none = deliver */
    uint8_t form;    /* enum pvs_form; behind those, the forms of each mirror, and two of flows' */
    uint8_t variant; /* of which it is a copy; 0: of the frame as it came */
    /* of a tunnel: the VLAN by which it finds the network; of a form without mirror and flows the VTEP, 0: all */
    uint16_t toward;
};

/* A frame goes to each port once, by a flow as often as its actions say, and once more for each mirror. */
enum { PVS_MAX_EGRESS = (PVS_MAX_FLOODS + PVS_MAX_MIRRORS) * PVS_MAX_PORTS + PVS_MAX_ACTIONS };

/* What flows send: the variant as it is, and without its outermost tag. */
enum { PVS_FORM_AS_IS = PVS_FORMS + PVS_MAX_MIRRORS * PVS_FORMS, PVS_FORM_CUT, PVS_FORM_END };

#define PVS_NO_COPY 0xffffffffU

struct pvs_verdict {
    uint8_t drop;      /* enum pvs_drop of the whole frame, of which only mirrors get a copy; none = see the list */
    bool learn;        /* the source wants to be learned, moved or refreshed */
    bool fresh_needed; /* learning it costs the port's budget: it is new or moved */
    bool punt;
    bool policed;    /* the policer is to be charged */
    uint8_t storm;   /* enum pvs_storm, plus 1, that is to be charged; 0 = none */
    uint8_t variant; /* as the frame is at the end */
    uint8_t placed;  /* the variant that `place` is of, whose source may be learned */
    uint32_t
        known; /* the copy that goes by unicast to one port, which the FDB or a flow knows: as the first it may wait for a full
                          receiver. PVS_NO_COPY: none */
    uint32_t flow;     /* counter of the flow that matched, PVS_NO_FLOW: none */
    uint32_t n_egress; /* copies; those of mirrors are the last */
    uint32_t mirrors;  /* that get it because a flow says so: bits */
    uint16_t bridge;
    uint16_t
        probes; /* hash tables that were looked at for its flow, which costs its port's turn; 0: there are no flows */
    struct pvs_vlan_place place; /* its VLAN, and what its forms are */
    /* with a flow: */
    uint8_t n_variants;
    uint8_t n_meters;
    uint8_t meter[PVS_MAX_ACTIONS]; /* slots of meters that are to be charged */
    uint16_t over;                  /* slot of the one that lets no more through, plus 1; 0: none */
    struct pvs_trace *trace;        /* who is told why, by trace.c */
    struct pvs_frame frame[PVS_MAX_VARIANTS];
    struct pvs_egress egress[PVS_MAX_EGRESS];
    struct pvs_edit edit[PVS_FORM_END - PVS_FORMS]; /* of mirrors and flows */
};

/* What a copy is of, of a frame that came so. */
static inline const struct pvs_frame *
pvs_verdict_frame(const struct pvs_verdict *verdict, const struct pvs_frame *came, uint8_t variant)
{
    return variant == 0 ? came : &verdict->frame[variant - 1];
}

/* What a copy differs in from that. */
static inline const struct pvs_edit *
pvs_verdict_edit(const struct pvs_verdict *verdict, uint8_t form)
{
    return form < PVS_FORMS ? &verdict->place.form[form] : &verdict->edit[form - PVS_FORMS];
}

/* The VLAN of a copy; mirrors and flows may have theirs in another one. */
static inline uint16_t
pvs_verdict_vid(const struct pvs_verdict *verdict, const struct pvs_egress *egress)
{
    return egress->form < PVS_FORMS ? verdict->place.vid : egress->toward;
}

/* The VTEP that a copy to a tunnel is for; 0: for all of its network. */
static inline uint16_t
pvs_egress_vtep(const struct pvs_egress *egress)
{
    return egress->form < PVS_FORMS ? egress->toward : 0;
}

/* Where a frame's sender is. 0: it isn't to be learned, since its tunnel doesn't learn, or its VTEP has no number yet. */
static inline uint64_t
pvs_sender_at(const struct pvs_frame *frame, const struct pvs_port_view *in)
{
    if (in->tunnel == NULL)
        return frame->in_ref;
    return in->tunnel->learning && frame->vtep != 0 ? PVS_FDB_AT(frame->in_ref, frame->vtep) : 0;
}

/* Can a port's guest receive? */
static inline bool
pvs_has_link(const struct pvs_port_view *out)
{
    return out->enabled && atomic_load_explicit(out->rx_up, memory_order_relaxed) != 0;
}

/* When it is asked, in both units, and by which worker (whose cache of flows is used; PVS_MAX_WORKERS: by none). */
struct pvs_moment {
    uint64_t ns;
    uint32_t s;
    uint32_t worker;
};

/*
 * The frame has been parsed and is well-formed; its port is in the tables. `source_known`: just now the FDB knew its source
 * to be there, so that it need not be asked again.
 */
void pvs_decide(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now,
                bool source_known, struct pvs_verdict *verdict);
/* The same, which tells verdict->trace what it does and why (trace.c). */
void pvs_decide_noted(const struct pvs_frame *frame, const struct pvs_tables *tables, struct pvs_moment now,
                      bool source_known, struct pvs_verdict *verdict);

/* Does the frame's L3 part fit `mtu`? (L3 size: without Ethernet header and tags; a GSO frame counts by its segments.) */
static inline bool
pvs_fits_mtu(const struct pvs_frame *frame, uint32_t mtu)
{
    const struct pvs_request *r = &frame->request;

    if (mtu == 0)
        return true;
    uint32_t len = r->gso_type != VIRTIO_NET_HDR_GSO_NONE ? (uint32_t)r->hdr_len + r->gso_size : frame->len;
    return len - frame->parsed.l3_offset <= mtu;
}

/* The largest frame that a tunnel carries, of one whose L3 header begins there. */
static inline uint32_t
pvs_tunnel_room(const struct pvs_port_view *out, uint32_t l3_offset)
{
    uint32_t room = out->room != 0 ? out->room : PVS_MAX_FRAME;

    return out->tunnel_mtu != 0 && out->tunnel_mtu + l3_offset < room ? out->tunnel_mtu + l3_offset : room;
}

/* Does a frame that will have been edited fit a tunnel? False for other ports. */
bool pvs_fits_tunnel(const struct pvs_frame *frame, const struct pvs_port_view *out, const struct pvs_edit *edit);

/* The same for a port of any kind. */
static inline bool
pvs_fits(const struct pvs_frame *frame, const struct pvs_port_view *out, const struct pvs_edit *edit)
{
    return pvs_fits_mtu(frame, out->mtu) || pvs_fits_tunnel(frame, out, edit);
}

#endif
