/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio_abi.h - layouts and constants shared with the guest (virtio 1.2, sections 2.7 and 5.1.6; vhost-user).
 *
 * Only declarations. Fields that the guest may write at any time are _Atomic, so that each read in the code is one read.
 * The host is little-endian: so are modern and (on such a host) legacy rings.
 */
#ifndef PVS_VIRTIO_ABI_H
#define PVS_VIRTIO_ABI_H

#include <stdatomic.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio rings are read without byte swapping");

enum {
    VIRTIO_NET_F_CSUM = 0,
    VIRTIO_NET_F_GUEST_CSUM = 1,
    VIRTIO_NET_F_MTU = 3,
    VIRTIO_NET_F_GUEST_TSO4 = 7,
    VIRTIO_NET_F_GUEST_TSO6 = 8,
    VIRTIO_NET_F_GUEST_ECN = 9,
    VIRTIO_NET_F_HOST_TSO4 = 11,
    VIRTIO_NET_F_HOST_TSO6 = 12,
    VIRTIO_NET_F_HOST_ECN = 13,
    VIRTIO_NET_F_MRG_RXBUF = 15,
    VIRTIO_NET_F_GUEST_ANNOUNCE = 21,
    VIRTIO_F_ANY_LAYOUT = 27,
    VIRTIO_F_INDIRECT_DESC = 28,
    VIRTIO_F_EVENT_IDX = 29,
    VIRTIO_F_VERSION_1 = 32,
    VIRTIO_F_RING_PACKED = 34,
    VIRTIO_F_IN_ORDER = 35,
    VIRTIO_NET_F_GUEST_USO4 = 54,
    VIRTIO_NET_F_GUEST_USO6 = 55,
    VIRTIO_NET_F_HOST_USO = 56,
};

enum { VRING_DESC_F_NEXT = 1, VRING_DESC_F_WRITE = 2, VRING_DESC_F_INDIRECT = 4 };
enum { VRING_AVAIL_F_NO_INTERRUPT = 1, VRING_USED_F_NO_NOTIFY = 1 };

/* One descriptor, as a private copy. */
struct vring_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
_Static_assert(sizeof(struct vring_desc) == 16, "virtio 1.2, 2.7.5");

/* ring[num] is the used_event field (EVENT_IDX). */
struct vring_avail {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    _Atomic uint16_t ring[];
};

struct vring_used_elem {
    uint32_t id;
    uint32_t len;
};

/* After ring[num] comes avail_event, a 16-bit field (EVENT_IDX). */
struct vring_used {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    struct vring_used_elem ring[];
};

/*
 * A descriptor of a packed ring (virtio 1.2, 2.8.13), read and written as two words, each at once: the address; and
 * length, buffer id (from bit 32) and flags (from bit 48).
 */
struct vring_packed_desc {
    _Atomic uint64_t addr;
    _Atomic uint64_t rest;
};
_Static_assert(sizeof(struct vring_packed_desc) == 16, "virtio 1.2, 2.8.13");

enum { VRING_PACKED_AVAIL = 1 << 7, VRING_PACKED_USED = 1 << 15, VRING_PACKED_WRAP = 1 << 15 };

/* When a side wants to be notified (virtio 1.2, 2.8.14). off_wrap: a position. */
struct vring_packed_event {
    _Atomic uint16_t off_wrap;
    _Atomic uint16_t flags;
};
enum { VRING_EVENT_ENABLE = 0, VRING_EVENT_DISABLE = 1, VRING_EVENT_DESC = 2 };

/* virtio 1.2, 5.1.6: num_buffers is absent from the legacy header of 10 bytes. */
struct virtio_net_hdr {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers;
};
_Static_assert(sizeof(struct virtio_net_hdr) == 12, "virtio 1.2, 5.1.6");

/* virtio 1.2, 5.1.6: flags and gso_type. */
enum { VIRTIO_NET_HDR_F_NEEDS_CSUM = 1 };
enum {
    VIRTIO_NET_HDR_GSO_NONE = 0,
    VIRTIO_NET_HDR_GSO_TCPV4 = 1,
    VIRTIO_NET_HDR_GSO_UDP = 3, /* UFO: never offered */
    VIRTIO_NET_HDR_GSO_TCPV6 = 4,
    VIRTIO_NET_HDR_GSO_UDP_L4 = 5, /* USO */
    VIRTIO_NET_HDR_GSO_ECN = 0x80, /* a bit beside TCPV4 or TCPV6 */
};

enum { VIRTIO_NET_HDR_LEGACY = 10, VIRTIO_NET_HDR_NUM_BUFFERS = 10 };

#endif
