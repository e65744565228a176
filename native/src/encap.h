/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encap.h - what stands before a frame in a tunnel: the headers of VXLAN (RFC 7348, 5), Geneve (RFC 8926, 3.4) and GRE (RFC 2784, 2;
 * RFC 2890, 2), and what the outer IP header takes from the inner one and leaves to it (RFC 6040).
 *
 * Pure functions over bytes. What they read of a packet is private memory: it was received into the switch's own.
 */
#ifndef PVS_ENCAP_H
#define PVS_ENCAP_H

#include "frame.h"
#include "pvs_api.h"

/* The longest header that is written: GRE's and UDP's are 8 bytes at most, and Geneve goes without options. */
enum { PVS_OUTER = 8 };
/* GRE without a key has no network's number; this is none of 32 bits. */
#define PVS_NO_KEY (1ULL << 32)

/* What a packet's header says. */
struct pvs_outer {
    uint64_t vni; /* or PVS_NO_KEY */
    uint32_t len; /* of the header: the frame begins behind it */
};

/*
 * Read the header that `len` bytes begin with. False: it is cut short, not of Ethernet, of another version, asks for what must be
 * understood and isn't (critical options, a source route), or its checksum is wrong.
 */
bool pvs_outer_read(enum pvs_tunnel_kind kind, const uint8_t *packet, uint32_t len, struct pvs_outer *outer);

/* Write a header; how long it is. `vni` may be PVS_NO_KEY. */
uint32_t pvs_outer_write(enum pvs_tunnel_kind kind, uint64_t vni, uint8_t *header);

/*
 * The TOS, or traffic class, of the outer header: `tos` with DSCP << 2, or -1 for the inner DSCP (0 if it isn't IP); with the inner ECN
 * (RFC 6040, 4.1: normal mode).
 */
uint8_t pvs_outer_tos(const struct pvs_frame *frame, int32_t tos);

/* What the way has marked is marked in the frame, which was parsed (RFC 6040, 4.2). False: it must not go on. */
bool pvs_ecn_inherit(struct pvs_frame *frame, uint8_t outer_tos);

#endif
