/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtqueue_lab.h - one ring at a time, for tests of virtqueue_any.h and the formats under it.
 *
 * How it works: the ring under test, `vq`, is the transmit ring of a driver guest with two adjacent regions. No worker has
 * to do with it. Tests write descriptors raw, into and about the guest's scratch memory, which ends where memory does.
 */
#ifndef PVS_VIRTQUEUE_LAB_H
#define PVS_VIRTQUEUE_LAB_H

#include "lab.h"
#include "virtqueue_any.h"

enum { VQ_NUM = 8, N = PVD_DESC_NEXT, W = PVD_DESC_WRITE, I = PVD_DESC_INDIRECT };

extern pvd_guest *guest;
extern pvs_memory *memory;
extern struct pvs_vq vq;
extern struct pvs_seg seg[PVS_MAX_SEGS];
extern struct pvs_chain chain;
extern uint64_t scratch;
extern enum pvs_broken broken;

/* VERSION_1, INDIRECT_DESC and EVENT_IDX. */
#define VQ_MODERN (1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_F_INDIRECT_DESC | 1ULL << VIRTIO_F_EVENT_IDX)

/* Make the guest and attach its ring, and take it down. */
void vq_set_up(uint64_t features, uint32_t num);
void vq_tear_down(void);
/* Where the ring lies and what it was made with; a packed one goes on at its beginning. */
struct pvs_ring_conf vq_conf(void);
/* A memory of one region of `size` bytes at user address VQ_UVA, whose file begins at `offset`. */
#define VQ_UVA 0x100000
pvs_memory *vq_one_region(uint64_t size, uint64_t offset);

#endif
