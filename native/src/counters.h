/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counters.h - what is counted, once, by name.
 *
 * Counters only grow. Each worker has its own set for each port and is its only writer, so an increment is a relaxed
 * load and a relaxed store; whoever reads sums over the workers. The names are the API's: the X-macros below are the
 * only place where they stand.
 */
#ifndef PVS_COUNTERS_H
#define PVS_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

/* clang-format off */
/* The switch's view: rx is what the port's guest sent, tx what it received. */
#define PVS_COUNTERS(X)          \
    X(rx_packets)                \
    X(rx_bytes)                  \
    X(rx_broadcast_packets)      \
    X(rx_multicast_packets)      \
    X(rx_1_to_64_packets)        \
    X(rx_65_to_127_packets)      \
    X(rx_128_to_255_packets)     \
    X(rx_256_to_511_packets)     \
    X(rx_512_to_1023_packets)    \
    X(rx_1024_to_1522_packets)   \
    X(rx_1523_to_max_packets)    \
    X(tx_packets)                \
    X(tx_bytes)

/* Why a frame, or a copy of it, went nowhere. */
#define PVS_DROP_REASONS(X)                                                                          \
    X(none)                                                                                          \
    X(malformed)            /* no Ethernet header, too long, or a buffer of the wrong direction */   \
    X(link_down)            /* the port is administratively down, or the receiver is not there */    \
    X(queue_disabled)       /* the guest sent on a ring that its front end has disabled */           \
    X(no_destination)       /* nobody to send it to */                                               \
    X(same_port)            /* the destination was learned on the port the frame came from */        \
    X(bpdu)                 /* link-local, and forward_bpdu is off; or PAUSE */                      \
    X(vlan_filtered)        /* the port, or the receiver's, isn't a member of the frame's VLAN, or its tags are refused */ \
    X(mirror_output)        /* by, or for, a port that is the output of a mirror */                  \
    X(isolated)             /* between two protected ports */                                        \
    X(split_horizon)        /* between two tunnels of one mesh */                                    \
    X(port_security)        /* the sender may not be on this port, or says to be somebody else */     \
    X(storm_control)        /* more broadcast, multicast or unknown unicast than the port may send */ \
    X(policed)              /* more than the port may send */                                        \
    X(shaped)               /* it would have had to wait too long for the port's rate */              \
    X(flow_drop)            /* a flow says so, or none of its actions sends it anywhere */            \
    X(meter)                /* more than a flow's meter lets through */                               \
    X(ttl_exceeded)         /* a flow's dec_ttl would have made it 0 */                               \
    X(mtu_exceeded)                                                                                  \
    X(guest_rx_full)        /* the receiving guest had no buffers posted */                          \
    X(guest_rx_too_small)   /* no mergeable buffers, and the frame is larger than the one posted */  \
    X(uplink_tx_full)       /* the kernel had no room to send it by the interface */                 \
    X(uplink_rx_full)       /* the kernel received it, and had no room until it was fetched */       \
    X(uplink_refused)       /* the kernel would not send it */                                       \
    X(no_route)             /* the host knows no way to a tunnel's remote VTEP */                    \
    X(tunnel_malformed)     /* the header of a tunnel's packet is cut short, or asks for what isn't understood */ \
    X(tunnel_ecn)           /* its way has marked congestion, and who sent the frame can't be told (RFC 6040) */ \
    X(unknown_vni)          /* no tunnel has the network that a packet names */                      \
    X(unknown_vtep)         /* a tunnel that doesn't learn was sent something by none of its remotes */
/* clang-format on */

enum pvs_counter {
#define X(name) PVS_C_##name,
    PVS_COUNTERS(X)
#undef X
        PVS_COUNTER_COUNT
};

enum pvs_drop {
#define X(name) PVS_DROP_##name,
    PVS_DROP_REASONS(X)
#undef X
        PVS_DROP_COUNT
};

struct pvs_counters {
    _Alignas(64) _Atomic uint64_t value[PVS_COUNTER_COUNT];
    _Atomic uint64_t rx_drop[PVS_DROP_COUNT];
    _Atomic uint64_t tx_drop[PVS_DROP_COUNT];
};

/* relaxed load and store, not an atomic add: there is one writer */
static inline void
pvs_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

enum { PVS_SIZE_BINS = 7 };

/* The size bin of a received frame, counted from rx_1_to_64_packets, as OVS names them. */
static inline uint32_t
pvs_size_bin(uint32_t len)
{
    if (len <= 64 || len > 1522)
        return len <= 64 ? 0 : PVS_SIZE_BINS - 1;
    return 26 - (uint32_t)__builtin_clz(len); /* 65 to 127: 1, and one more for each doubling */
}

#endif
