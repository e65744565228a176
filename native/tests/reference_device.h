/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reference_device.h - a virtio device as plain as the specification's own words, for tests of the driver alone.
 *
 * How it works: it takes chains from a ring into private memory, checks with CHECK that the driver wrote them as it must,
 * and gives them back by single used elements, or by one for a batch where IN_ORDER was negotiated. Split and packed
 * (virtio 1.2, sections 2.7 and 2.8). It is slow on purpose: every step is written out, nothing is cached. It neither
 * sleeps nor calls; whether it should is answered by reference_wants_call.
 */
#ifndef PVS_REFERENCE_DEVICE_H
#define PVS_REFERENCE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "driver/pvs_driver.h"

enum { REFERENCE_SEGS = 128, REFERENCE_HEADER = 12, REFERENCE_FRAME = 65536 + 128 };

struct reference_ring {
    pvd_guest *guest;
    struct pvd_vring v;
    uint64_t features;
    bool writable; /* a receive ring: the driver's chains are for the device to write */
    bool packed, in_order;
    uint32_t next_avail; /* split: free-running; packed: index of a descriptor, and its wrap counter */
    uint32_t next_used;
    bool avail_wrap, used_wrap;
    uint32_t next_desc; /* split with IN_ORDER: the descriptor that the next chain begins with */
};

struct reference_chain {
    uint16_t id;
    uint16_t n_desc; /* descriptors in the ring */
    uint32_t n_segs;
    uint32_t len;
    struct {
        uint64_t gpa;
        uint32_t len;
    } seg[REFERENCE_SEGS];
};

struct reference_ring reference_open(pvd_guest *guest, uint32_t ring, uint64_t features);
/* The next available chain; false when there is none. */
bool reference_take(struct reference_ring *r, struct reference_chain *c);
/* Use a chain: `len` bytes were written to it. */
void reference_use(struct reference_ring *r, const struct reference_chain *c, uint32_t len);
/* Use `n` chains by one element. Needs IN_ORDER, and nothing else in flight before them. */
void reference_use_batch(struct reference_ring *r, const struct reference_chain *c, uint32_t n);
/* Write any used element, such as an illegal one, where the next one belongs, and go on behind `n_desc` descriptors. */
void reference_use_raw(struct reference_ring *r, uint32_t id, uint32_t len, uint16_t n_desc);
/* All of a chain's bytes; of a receive chain, write `len` of them. */
void reference_read(const struct reference_ring *r, const struct reference_chain *c, uint8_t *to);
void reference_write(const struct reference_ring *r, const struct reference_chain *c, const uint8_t *from,
                     uint32_t len);
/* Take a whole frame with its header, used at once: its length, or 0. `frame` has room for REFERENCE_FRAME. */
uint32_t reference_receive(struct reference_ring *tx, uint8_t *frame);
/* Give the guest a frame with its header, over as many buffers as it takes: whether there was room for all of it. */
bool reference_send(struct reference_ring *rx, uint8_t *frame, uint32_t len);
/* Whether the driver wants a call for what was used since the ring stood at `next_used`, `used_wrap`. */
bool reference_wants_call(const struct reference_ring *r, uint32_t next_used, bool used_wrap);
/* Ask for kicks (and, with EVENT_IDX, for one at the next chain), or ask for none. */
void reference_ask_kick(struct reference_ring *r, bool wanted);
/* Copy what tx made available to rx, which may be of another format, `batch` frames by one element where IN_ORDER allows
 * it. How many frames were copied. */
uint32_t reference_forward(struct reference_ring *tx, struct reference_ring *rx, uint32_t max, uint32_t batch);

#endif
