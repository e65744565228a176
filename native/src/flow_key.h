/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow_key.h - what flows look at in a frame, as words (the layout is in pvs_api.h).
 *
 * How it works: pvs_layers_find says where the headers behind Ethernet are, by the rules of Open vSwitch (lib/flow.c,
 * miniflow_extract): a header that is cut short, or whose lengths contradict each other, isn't there, and its fields are 0.
 * pvs_flow_key reads the fields. Both look at the private head only: pvs_flow_pull makes it long enough before.
 *
 * Pure functions over a frame; called by pvs_decide, by flow_action.c, and by the worker (pull).
 */
#ifndef PVS_FLOW_KEY_H
#define PVS_FLOW_KEY_H

#include "frame.h"

enum {
    PVS_DL_TYPE_NONE = 0x05ff,
    PVS_ETHERTYPE_ARP = 0x0806,
    PVS_ETHERTYPE_RARP = 0x8035,
    PVS_FRAG_ANY = 1,
    PVS_FRAG_LATER = 2,
    PVS_TCI_PRESENT = 0x1000,
};

/* IANA protocol numbers. */
enum {
    PVS_PROTO_HOPOPTS = 0,
    PVS_PROTO_ICMP = 1,
    PVS_PROTO_TCP = 6,
    PVS_PROTO_UDP = 17,
    PVS_PROTO_ROUTING = 43,
    PVS_PROTO_FRAGMENT = 44,
    PVS_PROTO_AH = 51,
    PVS_PROTO_ICMPV6 = 58,
    PVS_PROTO_DSTOPTS = 60,
    PVS_PROTO_SCTP = 132,
};

/* Where the words of a key are that need looking behind the Ethernet header. */
enum { PVS_WORD_L4 = 3, PVS_WORD_SRC = 5, PVS_WORD_DST = 7, PVS_WORD_SHA = 8, PVS_WORD_THA = 9, PVS_WORD_TARGET = 10 };

/* How deep a table looks, or its actions reach. */
enum pvs_flow_depth { PVS_DEPTH_L2, PVS_DEPTH_L3 };

struct pvs_layers {
    uint16_t dl_type;
    uint16_t l3, l4; /* where they begin; 0: not there, or not whole */
    uint16_t end;    /* of what may be read: the head, without padding behind the IP packet */
    uint8_t proto, tos, ttl, frag;
    uint32_t packet; /* bytes of the IP packet, from l3 on */
};

void pvs_layers_find(const struct pvs_frame *frame, struct pvs_layers *layers);

/* `slot` and `tun_id` are its port's and its tunnel's. Words that `depth` doesn't reach are 0. */
void pvs_flow_key(const struct pvs_frame *frame, uint32_t slot, uint32_t tun_id, enum pvs_flow_depth depth,
                  uint64_t key[PVS_FLOW_WORDS]);

/*
 * Does another frame that came by the same port surely have the same key? Cheaper than to make both; for tunnels, whose keys have the
 * frames' networks, it isn't asked. False: it takes a look.
 */
bool pvs_flow_same_key(const struct pvs_frame *one, const struct pvs_frame *other, enum pvs_flow_depth depth);

/*
 * Have all headers that flows look at in the head, before anything is decided. A frame that hides some of them becomes malformed: they lie
 * behind the longest head, or a checksum is to be written over them later (virtio's csum_start).
 */
void pvs_flow_pull(struct pvs_frame *frame);

#endif
