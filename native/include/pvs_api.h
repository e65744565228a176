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
#define PVS_MAX_PORTS   1024
#define PVS_MAX_BRIDGES 64
#define PVS_MAX_MIRRORS 32
#define PVS_MAX_WORKERS 16
#define PVS_MAX_PAIRS   16
#define PVS_MAX_REGIONS 509
#define PVS_COMMANDS    1024
#define PVS_MAX_FRAME   65568
#define PVS_MAX_BURST   64
#define PVS_MAX_VTEPS   16384
#define PVS_MAX_SOURCES 64
#define PVS_UNMAPPED    0xffff

typedef struct pvs_switch pvs_switch;
typedef struct pvs_port pvs_port;
typedef struct pvs_fdb pvs_fdb;
typedef struct pvs_vlan_counters pvs_vlan_counters;
typedef struct pvs_region pvs_region;
typedef struct pvs_memory pvs_memory;
typedef struct pvs_tunnel pvs_tunnel;

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
/* The port must be out of the published tables and its rings stopped: -EBUSY otherwise. */
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
};
int64_t pvs_publish(pvs_switch *sw, const struct pvs_port_conf *ports, uint32_t n_ports,
                    const struct pvs_bridge_conf *bridges, uint32_t n_bridges);

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
