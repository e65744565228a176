/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pvs_api.h - the one door into the data plane.
 *
 * What Python sees of the C core: cffi reads the part between the two `cdef` marks, the C tests include the whole.
 *
 * How it works: everything here is called by ONE control thread (except pvs_poll_once, which belongs to whoever drives
 * a worker when no threads were started). Calls that change what the workers see are *commands*: they return at once
 * with a sequence number, are carried out by each worker between two bursts, and are finished when pvs_reap() hands the
 * number back. A finished command means that the grace period has passed: what it replaced is no longer in use.
 *
 * Conventions: 0 or a positive value is success, -errno is failure and changes nothing. Times are CLOCK_MONOTONIC
 * nanoseconds unless a name ends in _s. MAC addresses are six bytes in wire order. Bytes of a frame are counted without
 * the virtio-net header and without FCS.
 */
#ifndef PVS_API_H
#define PVS_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cdef begin */
#define PVS_MAX_PORTS    1024
#define PVS_MAX_BRIDGES  64
#define PVS_MAX_MIRRORS  32
#define PVS_MAX_WORKERS  16
#define PVS_MAX_PAIRS    16
#define PVS_MAX_REGIONS  509
#define PVS_COMMANDS     1024
#define PVS_MAX_FRAME    65568
#define PVS_MAX_BURST    64
#define PVS_MAX_VTEPS    16384
#define PVS_MAX_SOURCES  64
#define PVS_UNMAPPED     0xffff
#define PVS_FLOW_WORDS   12
#define PVS_MAX_MASKS    1024
#define PVS_MAX_FLOWS    1000000
#define PVS_MAX_ACTIONS  32
#define PVS_MAX_VARIANTS 8
#define PVS_MAX_METERS   256
#define PVS_MAX_CAPTURES 16
#define PVS_MAX_FILTER   4096
#define PVS_NO_FLOW      0xffffffff

typedef struct pvs_switch pvs_switch;
typedef struct pvs_port pvs_port;
typedef struct pvs_fdb pvs_fdb;
typedef struct pvs_vlan_counters pvs_vlan_counters;
typedef struct pvs_region pvs_region;
typedef struct pvs_memory pvs_memory;
typedef struct pvs_tunnel pvs_tunnel;
typedef struct pvs_flow_table pvs_flow_table;
typedef struct pvs_flow_meter pvs_flow_meter;
typedef struct pvs_capture pvs_capture;

/* ---- the switch and its workers ---- */

enum pvs_polling { PVS_POLL_ADAPTIVE = 0, PVS_POLL_BUSY = 1, PVS_POLL_INTERRUPT = 2 };

struct pvs_switch_conf {
    uint32_t n_workers; /* 1 to PVS_MAX_WORKERS */
    uint32_t polling;   /* enum pvs_polling */
    uint32_t poll_us;   /* how long an empty ring is polled at most before its kick is armed */
    int32_t cpus[16];   /* a processor for each worker, -1 = not pinned */
    uint64_t seed;      /* keeps senders from aiming at one place in the table of VTEPs */
};

int pvs_switch_create(const struct pvs_switch_conf *conf, pvs_switch **out);
/* Every port and table must be gone or unused; stops the threads if they run. */
void pvs_switch_destroy(pvs_switch *sw);
/* Start and join the poll threads. Without them, drive the workers by pvs_poll_once(). */
int pvs_switch_start(pvs_switch *sw);
void pvs_switch_stop(pvs_switch *sw);
/* How bytes are copied, which is chosen for the processor when the first switch is made: "plain", "avx2" or "avx512". */
const char *pvs_copy_kernel_name(void);
/*
 * Interrupt workers that hang in a call to a guest for more than 100 ms; their ports are latched broken. Control looks a
 * few times a second. Returns how many hung.
 */
int pvs_watchdog(pvs_switch *sw, uint64_t now_ns);
/* One round of one worker: mail, kicks, every active ring, timers, notifications. Returns frames and commands handled. */
int pvs_poll_once(pvs_switch *sw, uint32_t worker, uint64_t now_ns);
/* An eventfd, readable when completions, events or punted frames wait; pvs_wake_clear() makes it quiet again. */
int pvs_wake_fd(const pvs_switch *sw);
void pvs_wake_clear(pvs_switch *sw);
/* Sequence numbers of finished commands, at most `max`; the result of each (0, a ring's base, or -errno) in `result`. */
int pvs_reap(pvs_switch *sw, uint64_t *seq, int64_t *result, int max);
/* A command: when it is finished, what workers saw before it they see no more, and no frame that waits names a VTEP that was unlinked. */
int64_t pvs_sync(pvs_switch *sw);

/* ---- guest memory ---- */

/* Map `size` bytes of `fd` from `offset`. The port is told when the file shrinks under us. -EINVAL, -EFBIG, -errno of mmap. */
int pvs_region_map(pvs_port *port, int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset,
                   pvs_region **out);
void pvs_region_unref(pvs_region *region);
/* An immutable address map over regions (takes a reference to each). -EINVAL when two overlap. */
int pvs_memory_create(pvs_region *const *regions, uint32_t n, pvs_memory **out);
void pvs_memory_destroy(pvs_memory *memory);
/* Give a port its map; all of its rings must be stopped. The old map is the caller's to destroy. */
int pvs_port_set_memory(pvs_port *port, pvs_memory *memory, pvs_memory **old);

/* ---- ports ---- */

/* A port with `pairs` queue pairs. It owns an index (and a generation) until it is destroyed. -ENOSPC when all are taken. */
int pvs_port_create(pvs_switch *sw, uint32_t pairs, pvs_port **out);
/*
 * The port must be out of the tables, by a publication that all workers have, and its rings stopped: -EBUSY otherwise.
 * Publications that are still under way, and were made without it, are no hindrance.
 */
int pvs_port_destroy(pvs_port *port);
uint32_t pvs_port_index(const pvs_port *port);
uint32_t pvs_port_ref(const pvs_port *port);

struct pvs_ring_conf {
    uint64_t desc_uva, avail_uva, used_uva; /* front-end user addresses */
    uint64_t features;                      /* acked virtio features */
    uint32_t num;                           /* up to 32768; of a split ring a power of two */
    uint32_t base;                          /* packed: where to go on, as vhost-user's SET_VRING_BASE says */
    bool enabled;
    int kick_fd;    /* -1: none, the ring is polled */
    int call_fd;    /* -1: none, the guest polls */
    int32_t worker; /* who polls its pair; -1: whoever has the fewest. The first ring of a pair to start decides */
};

/* Rings are numbered as vhost-user does: 2*pair is the guest's receive ring, 2*pair+1 its transmit ring. */
/* -EFAULT: an address doesn't translate (yet). The descriptors stay the caller's, open until the ring is stopped. */
int64_t pvs_ring_start(pvs_port *port, uint32_t ring, const struct pvs_ring_conf *conf);
/* The command's result is what GET_VRING_BASE answers. */
int64_t pvs_ring_stop(pvs_port *port, uint32_t ring);
int64_t pvs_ring_enable(pvs_port *port, uint32_t ring, bool enabled);
int64_t pvs_ring_set_call(pvs_port *port, uint32_t ring, int call_fd);
/*
 * Have another worker poll a guest_tx ring. Its frames wait for the time of two commands; none is lost, none overtakes
 * another. -EINVAL: not a guest_tx ring, not started, or no such worker; -EBUSY: its start or stop is under way;
 * -EALREADY: that worker has it, or a move is under way. A stop that is asked for meanwhile is carried out after the move.
 */
int64_t pvs_ring_move(pvs_port *port, uint32_t ring, uint32_t worker);

struct pvs_ring_status {
    bool running, enabled;
    bool silent;        /* the guest has made nothing available yet, as far as its memory shows */
    uint16_t used_idx;  /* what we have given back, as the guest sees it */
    uint16_t avail_idx; /* what the guest has published, read now (packed: whether there is more, as a position) */
    uint64_t kicks;     /* kicks seen since the ring was started */
    uint64_t packets, bytes, notifications, notifications_suppressed;
    uint64_t cycles; /* of a guest_tx ring: spent on taking frames from it */
    uint32_t worker; /* who polls it, while it is started */
};
int pvs_ring_status(const pvs_port *port, uint32_t ring, struct pvs_ring_status *out);
/* 0, or why the port is latched broken: see pvs_broken_reason(). It heals when its rings are started afresh. */
uint32_t pvs_port_broken(const pvs_port *port);
const char *pvs_broken_reason(uint32_t code);

/* ---- uplinks: taps and packet sockets of the kernel, files, and the sockets that tunnels end in ---- */

/* A port whose frames go through `queues` descriptors; destroyed as any other. -ENOSPC when all indices are taken. */
int pvs_uplink_create(pvs_switch *sw, uint32_t queues, pvs_port **out);

/*
 * PVS_FILE: a datagram socket whose other end belongs to who reads and writes a file. It gets finished frames only.
 * PVS_ENDPOINT: a socket that packets of tunnels come by (UDP, with UDP_GRO or without; of GRE a raw one), with IP_RECVTOS or
 * IPV6_RECVTCLASS. Its port is on no bridge and isn't published by itself, but with the tunnels that name it.
 */
enum pvs_uplink_kind { PVS_TAP = 0, PVS_PACKET = 1, PVS_FILE = 2, PVS_ENDPOINT = 3 };
enum pvs_tunnel_kind { PVS_VXLAN = 0, PVS_GENEVE = 1, PVS_GRE = 2 };
struct pvs_uplink_conf {
    uint32_t kind; /* enum pvs_uplink_kind */
    int fd;        /* non-blocking, with a virtio-net header of 10 bytes (PVS_PACKET: and AUXDATA); stays the caller's,
                       open until the queue is stopped */
    bool uso;      /* the kernel takes UDP frames to be segmented */
    uint32_t tunnel; /* enum pvs_tunnel_kind, of an endpoint */
    int32_t worker;  /* who fetches from it; -1: whoever has the fewest */
};
int64_t pvs_uplink_start(pvs_port *port, uint32_t queue, const struct pvs_uplink_conf *conf);
int64_t pvs_uplink_stop(pvs_port *port, uint32_t queue);
/* Have another worker fetch from a queue; see pvs_ring_move. */
int64_t pvs_uplink_move(pvs_port *port, uint32_t queue, uint32_t worker);

struct pvs_uplink_status {
    bool running;
    uint32_t error; /* errno of what last went wrong, 0 = nothing since it was started */
    uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes;
    uint64_t cycles; /* spent on fetching frames from it and forwarding them */
    uint32_t worker; /* who fetches from it, while it is started */
};
int pvs_uplink_status(const pvs_port *port, uint32_t queue, struct pvs_uplink_status *out);

/* ---- tunnels ---- */

/*
 * The VTEPs that the switch knows, by number: those that control names, and those that tunnels have learned (PVS_EV_VTEP). 0 is
 * none. An address is 16 bytes, IPv4 as ::ffff:a.b.c.d.
 */
struct pvs_vtep_info {
    uint8_t address[16];
    bool learned;   /* by a worker: nobody has asked for it */
    uint32_t age_s; /* seconds since a packet came from it; UINT32_MAX: none has */
};
/* The number of an address, which control then owns; -ENOSPC. */
int pvs_vtep_add(pvs_switch *sw, const uint8_t *address, uint32_t *number);
/* -ENOENT */
int pvs_vtep_info(const pvs_switch *sw, uint32_t number, uint64_t now_ns, struct pvs_vtep_info *out);
/*
 * To remove one: unlink (its address isn't found any more), pvs_sync, flush the FDBs of it, pvs_sync, free. -ENOENT. No
 * tunnel may name it by then.
 */
int pvs_vtep_unlink(pvs_switch *sw, uint32_t number);
int pvs_vtep_free(pvs_switch *sw, uint32_t number);

/* A virtual network of a tunnel. */
struct pvs_segment_conf {
    uint32_t vni; /* of GRE: the key */
    uint16_t vid; /* the VLAN whose frames it carries, without their tag; PVS_UNMAPPED: all that the port carries */
};

struct pvs_tunnel_conf {
    uint32_t kind;       /* enum pvs_tunnel_kind */
    pvs_port *endpoint;  /* what its packets come by */
    bool ipv6;           /* the underlay */
    bool no_key;         /* GRE without a key; its one segment's VNI counts for nothing */
    bool learning;       /* addresses behind VTEPs are learned, of any VTEP */
    bool too_big;        /* who sends what doesn't fit is told by ICMP */
    bool segmentation;   /* its sockets take UDP_SEGMENT */
    int32_t tos;         /* of the outer header: DSCP << 2; -1: the inner one's. ECN always is as RFC 6040 says */
    uint16_t dst_port;   /* UDP, host order */
    uint32_t n_sockets;  /* up to PVS_MAX_SOURCES, */
    const int *sockets;  /* non-blocking, which it sends by; open until no published tables name the tunnel */
    uint32_t n_segments; /* one, unmapped; or up to 4,094, each with a VLAN */
    const struct pvs_segment_conf *segments;
};
/* A port without queues, for a tunnel; destroyed as any other. -ENOSPC */
int pvs_tunnel_port_create(pvs_switch *sw, pvs_port **out);
/* What a port becomes a tunnel by, when it is published with it. The endpoint's port must outlive it. -EINVAL, -ENOMEM */
int pvs_tunnel_create(pvs_switch *sw, const struct pvs_tunnel_conf *conf, pvs_tunnel **out);
/* It must be out of the published tables. */
void pvs_tunnel_destroy(pvs_tunnel *tunnel);
/*
 * Where segment number `segment` floods to; and whose packets are taken, besides these, of a tunnel that doesn't learn. Numbers of VTEPs.
 * A command: it may be given at any time, before the tunnel is published and after.
 */
int64_t pvs_tunnel_set_remotes(pvs_tunnel *tunnel, uint32_t segment, const uint16_t *flood, uint32_t n_flood,
                               const uint16_t *others, uint32_t n_others);
/* errno of what went wrong last when it sent, 0 = nothing has. */
uint32_t pvs_tunnel_error(const pvs_tunnel *tunnel);

/* ---- tables: what decide() reads, published as a whole ---- */

/* A port's VLANs; `vlan_mode` of Open vSwitch. */
enum pvs_vlan_mode {
    PVS_VLAN_TRUNK = 0,       /* frames keep their tags; those without are in no VLAN (0) */
    PVS_VLAN_ACCESS,          /* untagged frames, of one VLAN */
    PVS_VLAN_NATIVE_TAGGED,   /* a trunk; untagged frames that come in are of its own VLAN, */
    PVS_VLAN_NATIVE_UNTAGGED, /* and those of it go out untagged */
    PVS_VLAN_DOT1Q_TUNNEL, /* all that comes in gets an 802.1ad tag of its own VLAN, which is taken off what goes out */
    PVS_VLAN_MAPPED,       /* of a tunnel: untagged frames, of the VLAN that their segment is mapped to */
};

/* A token bucket: so many units in a second on average, so many at once. 0 a second: there is no limit. */
struct pvs_limit {
    uint64_t per_second, depth;
};

/* A network; IPv4 as ::ffff:a.b.c.d, with 96 bits more. */
struct pvs_network {
    uint8_t address[16];
    uint8_t bits; /* of the prefix, of 128 */
};

struct pvs_port_conf {
    pvs_port *port;
    uint16_t bridge; /* index into the bridges of the same tables */
    bool enabled;
    uint32_t mtu;             /* L3 bytes; 0 = not enforced */
    uint32_t backpressure_ms; /* how long known unicast waits for a full receiver; 0 = it is dropped */
    bool isolated;            /* from other isolated ports */
    uint32_t mesh;            /* 1 to 31: a number on its bridge, apart from other ports with the same one; 0: none */
    pvs_tunnel *tunnel;       /* NULL: it isn't one */
    uint32_t room;            /* of a tunnel: the largest frame that fits its underlay; 0 = any does */
    uint32_t mirror_in, mirror_out; /* the mirrors of its bridge that want what comes in by it, and goes out: bits */
    struct pvs_limit storm[3];      /* frames: broadcast, multicast, unknown unicast */
    struct pvs_limit policing;      /* bytes that come in: what is more is dropped */
    struct pvs_limit shaping;       /* bytes that go out: what is more waits */
    bool secure;                    /* who sends is looked at: */
    bool sticky;                    /* what was learned stays, and can't be learned elsewhere */
    uint32_t max_macs;              /* addresses that may be learned; 0: no limit */
    uint32_t n_macs;                /* addresses that may send; 0: any */
    const uint8_t *macs;            /* six bytes each */
    uint32_t n_networks;            /* with these only IPv4, IPv6 and ARP pass, of senders in these networks; 0: any */
    const struct pvs_network *networks;
    uint8_t vlan_mode; /* enum pvs_vlan_mode */
    uint16_t tag;      /* the own VLAN of other modes than trunk */
    const uint64_t
        *vlans; /* a bit for each VID that it carries (0: untagged), of a tunnel for each customer VID; NULL: all */
    uint32_t capture_in,
        capture_out; /* the captures that want what comes in by it, and goes out: bits, by pvs_capture_slot() */
};
/* A mirror sends frames of the ports that name it once more, to a port or into a VLAN. */
struct pvs_mirror_conf {
    pvs_port *port;        /* of the same bridge: no other frames leave by it, none comes in. NULL: */
    uint16_t vid;          /* the VLAN */
    uint16_t snaplen;      /* bytes of each frame that are kept; 0 = all */
    bool drops;            /* frames that came by a port and were dropped, as well */
    const uint64_t *vlans; /* the VLANs whose frames are wanted, as in pvs_port_conf; NULL: all */
};

struct pvs_bridge_conf {
    pvs_fdb *fdb;
    bool forward_bpdu, flood_unknown;
    bool punt_bpdu;                   /* hand link-local frames to the control plane as well */
    pvs_vlan_counters *vlan_counters; /* NULL: nothing is counted by VLAN */
    uint32_t n_mirrors;
    const struct pvs_mirror_conf *mirrors;
    pvs_flow_table *flows; /* NULL: every frame is forwarded as `normal` says. What its flows' slots stand for: */
    uint32_t n_flow_ports;
    pvs_port *const *flow_ports; /* ports of this bridge; NULL: there is none now */
    uint32_t n_flow_meters;
    const struct pvs_meter_conf *flow_meters;
    uint32_t n_flow_mirrors;
    const uint32_t *flow_mirrors; /* numbers of mirrors of this bridge */
};
int64_t pvs_publish(pvs_switch *sw, const struct pvs_port_conf *ports, uint32_t n_ports,
                    const struct pvs_bridge_conf *bridges, uint32_t n_bridges);

/* ---- flows ---- */

/*
 * What a flow looks at in a frame, as it came, and what Open vSwitch calls it (ovs-fields(7)); numbers in host order, the first
 * named in the highest bits. A key's bits outside of its mask are 0.
 *  0: in_port (32 bits: its slot), tun_id (32)
 *  1: dl_dst (48), dl_type (16; 0x05ff: none, a frame of IEEE 802.2)
 *  2: dl_src (48), vlan_tci (16; with 0x1000 of the outermost tag, 0: untagged)
 *  3: nw_proto (8; of ARP: arp_op), nw_tos (8), nw_ttl (8), nw_frag (8: 1 a fragment, 3 not the first one), tp_src (16; of ICMP:
 *     icmp_type), tp_dst (16; icmp_code)
 *  4, 5: nw_src (in the low 32 bits of word 5), ipv6_src, arp_spa; 6, 7: nw_dst, ipv6_dst, arp_tpa
 *  8: arp_sha (48), tcp_flags (16); 9: arp_tha (48), 0 (16); 10, 11: nd_target
 */
enum pvs_flow_action_kind {
    PVS_ACT_OUTPUT = 0,   /* slot: a port; not to the one it came by */
    PVS_ACT_IN_PORT,      /* to the one it came by */
    PVS_ACT_ALL,          /* to every port of the bridge but that one, whatever their VLANs; */
    PVS_ACT_FLOOD,        /* the same */
    PVS_ACT_NORMAL,       /* as if there were no flows */
    PVS_ACT_MIRROR,       /* slot: a mirror, which gets it whatever it selects */
    PVS_ACT_METER,        /* slot: a meter, once; what is too much is dropped, without the actions behind this one */
    PVS_ACT_PUSH_VLAN,    /* value: the TPID; VLAN and priority 0 */
    PVS_ACT_POP_VLAN,     /* the outermost tag, if there is one */
    PVS_ACT_SET_VLAN_VID, /* value; an untagged frame gets a tag */
    PVS_ACT_SET_VLAN_PCP, /* likewise */
    PVS_ACT_SET_DL_SRC,   /* value: a MAC address, first byte in bits 40-47 */
    PVS_ACT_SET_DL_DST,
    PVS_ACT_SET_NW_SRC, /* value: an IPv4 address, host order; of IPv4 only */
    PVS_ACT_SET_NW_DST,
    PVS_ACT_SET_NW_TOS, /* value: DSCP << 2; of IPv4 and IPv6, ECN stays */
    PVS_ACT_SET_TP_SRC, /* value: a port, of TCP, UDP and SCTP */
    PVS_ACT_SET_TP_DST,
    PVS_ACT_DEC_TTL,    /* of IPv4 and IPv6; one that would be 0 is dropped */
    PVS_ACT_SET_TUNNEL, /* value: which of its networks a tunnel carries it in, from here on */
    PVS_ACT_KINDS
};
struct pvs_flow_action {
    uint32_t kind; /* enum pvs_flow_action_kind */
    uint32_t slot;
    uint64_t value;
};
struct pvs_flow_conf {
    uint64_t key[12], mask[12]; /* PVS_FLOW_WORDS */
    uint32_t priority;          /* the highest counts; of those with the same one the first in the list */
    uint32_t counter;           /* of pvs_flow_counter_add() */
    uint32_t first, n_actions;  /* its actions; none: it is dropped */
};
/*
 * A table of flows, which never changes: one that differs is made anew, and published in its place. Its slots' numbers mean what the
 * bridge it is published with says. -EINVAL: more than PVS_MAX_ACTIONS actions, PVS_MAX_VARIANTS different forms of a frame that leave, or
 * two pushed tags; an unknown action; a key outside of its mask. -E2BIG: more than PVS_MAX_MASKS
 * different masks, each of which may cost a frame a look. -ENOMEM. May be called by any thread.
 */
int pvs_flow_table_create(pvs_switch *sw, const struct pvs_flow_conf *flows, uint32_t n_flows,
                          const struct pvs_flow_action *actions, uint32_t n_actions, uint64_t seed,
                          pvs_flow_table **out);
/* It must be out of the published tables. */
void pvs_flow_table_destroy(pvs_flow_table *table);
struct pvs_flow_table_info {
    uint32_t flows, masks;
    uint64_t bytes; /* of memory, with its caches */
};
void pvs_flow_table_info(const pvs_flow_table *table, struct pvs_flow_table_info *out);

/* What a flow has counted outlives its table: a number, whose values grow; whoever gives one out again subtracts. -ENOSPC, -ENOMEM */
int pvs_flow_counter_add(pvs_switch *sw, uint32_t *counter);
/* No published table may name it. */
void pvs_flow_counter_remove(pvs_switch *sw, uint32_t counter);
/* Frames and their bytes, and when one was seen last (0: never); sums over the workers. Any thread may read. */
void pvs_flow_counters_read(const pvs_switch *sw, const uint32_t *counter, uint32_t n, uint64_t *packets,
                            uint64_t *bytes, uint64_t *used_ns);

/* A meter's state, which outlives the tables that name it; it must be out of those published when it is destroyed. -ENOMEM */
int pvs_flow_meter_create(pvs_switch *sw, pvs_flow_meter **out);
void pvs_flow_meter_destroy(pvs_flow_meter *meter);
/* Frames and bytes that were offered to it, and what of these it has dropped. */
void pvs_flow_meter_read(const pvs_flow_meter *meter, uint64_t *packets, uint64_t *bytes, uint64_t *dropped_packets,
                         uint64_t *dropped_bytes);
struct pvs_meter_conf {
    pvs_flow_meter *meter;
    struct pvs_limit limit; /* in bytes, or, with `packets`, in frames as they are on a wire */
    bool packets;
};

/* ---- what becomes of a frame, and why ---- */

enum pvs_step_kind {
    PVS_STEP_PARSED = 0, /* a: ethertype; b: VID << 16 | inner VID */
    PVS_STEP_TAKEN, /* a: enum pvs_drop, none: the port takes it (link, mirror's output, VTEP, port security, policing) */
    PVS_STEP_VLAN,   /* a: the VLAN it is in; b: 1, the port takes it in, or 0 */
    PVS_STEP_FLOW,   /* a: counter of the flow that matched, PVS_NO_FLOW: none does */
    PVS_STEP_ACTION, /* a: enum pvs_flow_action_kind; b: number of the action in its flow; c: 1, it had an effect */
    PVS_STEP_BPDU,   /* link-local; a: 1 if it is forwarded */
    PVS_STEP_SENDER, /* a: 1 if the sender may be on its port */
    PVS_STEP_LEARN,  /* a: 0 nothing, 1 refreshed, 2 new, 3 moved */
    PVS_STEP_FDB,    /* the destination; a: 0 unknown, 1 known; b: port_ref; c: VTEP */
    PVS_STEP_STORM,  /* a: 0 broadcast, 1 multicast, 2 unknown unicast; b: 1 if there may be more */
    PVS_STEP_FLOOD,  /* a: ports */
    PVS_STEP_MIRROR, /* a: number of a mirror that gets it */
    PVS_STEP_DROP,   /* a: enum pvs_drop, of the whole frame */
};
struct pvs_step {
    uint32_t kind; /* enum pvs_step_kind */
    uint32_t a, b, c;
};
struct pvs_trace_copy {
    uint32_t port_ref;
    uint16_t drop;      /* enum pvs_drop; none: it leaves */
    uint16_t vid, vtep; /* of a tunnel: in which VLAN's network, and to whom (0: all) */
    int16_t mirror;     /* number of the mirror that it is of, -1: of none */
    uint32_t tun_id;    /* of set_tunnel; PVS_NO_FLOW: by VLAN */
    uint32_t len;       /* bytes of the frame that leaves, */
    uint32_t head_len;
    uint8_t head[144]; /* and its first ones */
};
struct pvs_trace {
    uint32_t drop, counter;     /* enum pvs_drop of the whole frame; the flow that matched, PVS_NO_FLOW: none */
    uint32_t n_steps, n_copies; /* that there were; those beyond the arrays are not told */
    uint64_t key[12];           /* what flows look at; 0 without flows */
    struct pvs_step step[128];
    struct pvs_trace_copy copy[1024];
};
struct pvs_trace_conf {
    const uint8_t *frame;
    uint32_t len;
    uint32_t tun_id; /* of a tunnel's frame: its network, */
    uint16_t vid;    /* its VLAN (PVS_UNMAPPED: as its tag says), */
    uint16_t vtep;   /* and its sender */
};
/*
 * A command: what would become of a frame that came by a port, by the same function as for traffic, without any effect. `out` is the
 * command's until it is finished; its result is 0, -EINVAL for what is no frame, -ENOENT when the port isn't published.
 */
int64_t pvs_trace_frame(pvs_port *port, const struct pvs_trace_conf *conf, struct pvs_trace *out);
/*
 * Flows that a key nearly matches: which differ in one word of their mask only, those of the highest priority first. Their counters, and
 * in which word; how many.
 */
uint32_t pvs_flow_nearly(const pvs_flow_table *table, const uint64_t *key, uint32_t *counter, uint32_t *word,
                         uint32_t max);

/* What came into each VLAN of a bridge; it must be out of the published tables when it is destroyed. -ENOMEM. */
int pvs_vlan_counters_create(pvs_switch *sw, pvs_vlan_counters **out);
void pvs_vlan_counters_destroy(pvs_vlan_counters *counters);
void pvs_vlan_counters_read(const pvs_vlan_counters *counters, uint16_t vid, uint64_t *packets, uint64_t *bytes);

/* ---- FDB ---- */

struct pvs_fdb_item {
    uint8_t mac[6];
    uint16_t vid;
    uint32_t port_ref;
    uint32_t age_s; /* seconds since last seen; 0 for a static entry */
    uint16_t vtep;  /* behind this one; 0: behind none */
    bool is_static;
    bool is_sticky; /* learned, by a port that keeps it */
};
struct pvs_fdb_filter { /* what a flush removes: all fields given must match; static entries stay */
    bool by_port, by_vid, by_mac, by_sticky, by_vtep;
    bool sticky; /* only those of ports that keep them; or only others */
    uint32_t port_ref;
    uint16_t vid, vtep;
    uint8_t mac[6];
};
/* `aging_s` 0 = never. `seed` keeps guests from aiming at one bucket. */
int pvs_fdb_create(uint32_t limit, uint32_t aging_s, uint64_t seed, pvs_fdb **out);
void pvs_fdb_destroy(pvs_fdb *fdb);
void pvs_fdb_set_aging(pvs_fdb *fdb, uint32_t aging_s);
/* -ENOSPC when only static entries are left to evict. */
int pvs_fdb_set_static(pvs_fdb *fdb, const uint8_t *mac, uint16_t vid, uint32_t port_ref, uint16_t vtep);
/* Removes an entry of either kind; -ENOENT. */
int pvs_fdb_remove(pvs_fdb *fdb, const uint8_t *mac, uint16_t vid);
int pvs_fdb_flush(pvs_fdb *fdb, const struct pvs_fdb_filter *filter);
/*
 * Remove what is too old among the next `budget` slots; returns how many. The first `max` of them are told in `out`. Call
 * it until the cursor is 0 again.
 */
int pvs_fdb_sweep(pvs_fdb *fdb, uint64_t now_ns, uint32_t *cursor, uint32_t budget, struct pvs_fdb_item *out,
                  uint32_t max);
/* Copy entries from *cursor on; returns how many, *cursor is 0 at the end. */
int pvs_fdb_dump(pvs_fdb *fdb, uint64_t now_ns, uint32_t *cursor, struct pvs_fdb_item *out, uint32_t max);
/* Copy what `from` holds into `to` as far as it fits. */
void pvs_fdb_copy(pvs_fdb *to, pvs_fdb *from);
uint32_t pvs_fdb_count(const pvs_fdb *fdb);
/* What is known of one address; -ENOENT. */
int pvs_fdb_lookup(pvs_fdb *fdb, const uint8_t *mac, uint16_t vid, uint64_t now_ns, struct pvs_fdb_item *out);

/* ---- frames for Python, both ways; events ---- */

enum pvs_direction { PVS_INGRESS = 0, PVS_EGRESS = 1 };
/* INGRESS: as if the port's guest had sent it (not counted as received). EGRESS: straight to the port. */
int64_t pvs_inject(pvs_port *port, uint32_t direction, const uint8_t *frame, uint32_t len);

enum pvs_punt_reason { PVS_PUNT_BPDU = 0, PVS_PUNT_REASONS = 1 };
struct pvs_punt {
    uint64_t time_ns;
    uint32_t port_ref;
    uint32_t len; /* bytes that follow */
    uint16_t vid;
    uint16_t reason; /* enum pvs_punt_reason */
};
/* The next punted frame: its length, 0 when none waits; -EMSGSIZE (and kept) when `cap` is too small. */
int pvs_punt_next(pvs_switch *sw, struct pvs_punt *punt, uint8_t *frame, uint32_t cap);

/* VTEP: a tunnel has learned one. TOO_BIG: the kernel refused a packet to one, since it doesn't fit its path. */
enum pvs_event_kind { PVS_EV_LEARNED = 1, PVS_EV_MOVED = 2, PVS_EV_BROKEN = 3, PVS_EV_VTEP = 4, PVS_EV_TOO_BIG = 5 };
struct pvs_event {
    uint64_t time_ns;
    uint32_t kind; /* enum pvs_event_kind */
    uint32_t port_ref;
    uint32_t detail; /* MOVED: the old port's ref; BROKEN: a code of pvs_broken_reason() */
    uint16_t vid;
    uint8_t mac[6];
    uint16_t vtep; /* where an address is now; which it is about */
};
/* 1 and the next event, or 0. */
int pvs_event_next(pvs_switch *sw, struct pvs_event *event);
/* What found no room in the two rings above, or was over its rate: events first, then punts by reason. */
uint64_t pvs_lost(const pvs_switch *sw, uint32_t which);

/* ---- what was seen: the flight recorder, and captures ---- */

/* An instruction of classic BPF, as libpcap makes them (linux/filter.h, struct sock_filter). */
struct pvs_bpf {
    uint16_t code;
    uint8_t jt, jf;
    uint32_t k;
};
enum pvs_record_kind { PVS_RECORD_RX_DROP = 1, PVS_RECORD_TX_DROP = 2, PVS_RECORD_FRAME = 3 };
/* A drop: what the drop counter of `port_ref` counted; or a frame that came by a port. 128 bytes. */
struct pvs_record {
    uint64_t number; /* of its kind of ring, from 0; only grows */
    uint64_t time_ns;
    uint32_t port_ref; /* whose counter it is; of a frame: that it came by */
    uint32_t in_ref;   /* that it came by; 0: it isn't known */
    uint32_t count;    /* frames that it stands for: 1, or more that the kernel or a queue lost at once */
    uint32_t len;      /* of the frame; 0: it isn't known */
    uint16_t vid;
    uint8_t kind;    /* enum pvs_record_kind */
    uint8_t drop;    /* enum pvs_drop; of a frame: why it went nowhere, none: it went */
    uint16_t copies; /* of a frame: that left, */
    uint16_t out;    /* and the index of the first one's port */
    uint8_t n_bytes;
    uint8_t bytes[87]; /* the first of the frame */
};
/*
 * The worker's last drops (PVS_RECORD_DROPS) or sampled frames, oldest first, from `number` on: how many, at most `max`. Any thread
 * may read at any time; what is overwritten meanwhile is left out.
 */
#define PVS_RECORD_DROPS  0
#define PVS_RECORD_FRAMES 1
#define PVS_RECORDS       4096
uint32_t pvs_records_read(const pvs_switch *sw, uint32_t worker, uint32_t ring, uint64_t number, struct pvs_record *out,
                          uint32_t max);
/*
 * A command: which frames are kept besides drops: one of `every` (0: none), or, with a filter, of those that pass it. -EINVAL: a filter that
 * jumps backwards or out of itself, or isn't understood.
 */
int64_t pvs_recorder_set(pvs_switch *sw, uint32_t every, const struct pvs_bpf *filter, uint32_t n);

/*
 * Frames that pass by ports, copied to who reads them. Each worker has a ring of `ring_bytes` (a power of two, 64 KiB to 16 MiB) for it;
 * what finds no room is counted and goes on its way. -EINVAL (a filter as above), -ENOSPC, -ENOMEM.
 */
struct pvs_capture_conf {
    uint32_t snaplen; /* bytes that are kept of a frame, 14 to 65568 */
    uint32_t ring_bytes;
    const struct pvs_bpf *filter;
    uint32_t n; /* 0: every frame */
};
int pvs_capture_create(pvs_switch *sw, const struct pvs_capture_conf *conf, pvs_capture **out);
/* It must be out of the published tables. */
void pvs_capture_destroy(pvs_capture *capture);
/* Its bit in struct pvs_port_conf. */
uint32_t pvs_capture_slot(const pvs_capture *capture);
struct pvs_captured {
    uint64_t time_ns;
    uint32_t port_ref;  /* that it passed by */
    uint32_t direction; /* enum pvs_direction */
    uint32_t drop;      /* enum pvs_drop; none: it went on */
    uint32_t lost;      /* of this capture and worker, since the one before */
    uint32_t peer_ref;  /* INGRESS: where its first copy went, EGRESS: that it came by; 0: unknown or none */
    uint32_t copies;    /* INGRESS: that left */
    uint32_t counter;   /* INGRESS: of the flow that matched, PVS_NO_FLOW: none */
    uint32_t len;       /* of the frame, */
    uint32_t n_bytes;   /* of which so many follow */
    uint16_t vid;
    bool unfinished; /* its checksum is left to whoever sends it on, or it is to be cut into segments */
};
/* The oldest that waits, of one worker: 1, or 0. -EMSGSIZE (and kept) when `cap` is too small. */
int pvs_capture_next(pvs_capture *capture, uint32_t worker, struct pvs_captured *out, uint8_t *bytes, uint32_t cap);
/* Lost by all workers. */
uint64_t pvs_capture_lost(const pvs_capture *capture);

/* ---- counters ---- */

uint32_t pvs_counter_count(void);
const char *pvs_counter_name(uint32_t i);
uint32_t pvs_drop_reason_count(void);
const char *pvs_drop_reason_name(uint32_t i);
/* counters[pvs_counter_count()], rx_drops and tx_drops[pvs_drop_reason_count()]: sums over the workers. */
void pvs_port_counters(const pvs_port *port, uint64_t *counters, uint64_t *rx_drops, uint64_t *tx_drops);

struct pvs_perf {
    uint64_t busy_cycles, idle_cycles, packets, loops, sleeps;
    uint64_t total_cycles;  /* since the worker was made, asleep or not */
    uint64_t learn_skipped; /* frames whose source was not learned: over the budget, or the table was locked */
    uint64_t bursts;        /* turns of a queue that gave frames */
    uint64_t queue_full;    /* copies that found their receiver full: dropped, or left to wait */
    uint64_t notifications, notifications_suppressed; /* guests that were called, and that had asked not to be */
    uint64_t kicks;                                   /* seen of guests */
    uint64_t burst_histogram[PVS_MAX_BURST + 1];      /* bursts by their number of frames */
    uint64_t cycles_per_second;                       /* 0 until it has been measured */
    bool sleeping;
};
int pvs_worker_perf(const pvs_switch *sw, uint32_t worker, struct pvs_perf *out);
/* cdef end */

#endif
