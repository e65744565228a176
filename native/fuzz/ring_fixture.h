/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring_fixture.h - what the fuzzers of rings have in common: three ports on a bridge, A and B whose rings and memory the
 * fuzzer writes, and C, an honest guest that sends to B and receives A's floods.
 *
 * How it works: made once in a process; rings start anew for each input, in the format that the features say. Addresses of
 * descriptors are folded so that most of them hit memory, its end, and the border between the two regions; one in eight is
 * left as it is. Whatever comes: no crash, no hang, and the honest guest finds its rings in order. Anything else aborts.
 */
#ifndef PVS_RING_FIXTURE_H
#define PVS_RING_FIXTURE_H

#include <stddef.h>
#include <stdint.h>

#include "driver/pvs_driver.h"
#include "pvs_api.h"

enum { A, B, C, N_PORTS, NUM = 16, TABLE = 24, TURNS = 4 };

struct input {
    const uint8_t *at;
    size_t left;
};

void require(int truth);
/* The next `n` bytes as a number, zeros behind the end. */
uint64_t take(struct input *in, size_t n);

pvd_guest *fixture_guest(int p);
/* 8 bytes of features for A and B, all but the ring format; two bits more are about the honest guest's rings. */
struct fixture_features {
    uint64_t hostile, honest;
};
struct fixture_features fixture_features(struct input *in);
/* Start all rings: those of A and B of this size, at this place (SET_VRING_BASE). */
void fixture_start(struct fixture_features features, uint32_t num, uint32_t base);
/* Fold an arbitrary address into scratch memory, or about the border of the regions, or just before the end of memory. */
uint64_t fixture_fold(int p, uint64_t raw);
/* A length that is mostly small. */
uint32_t fixture_len(uint64_t raw);
/* Behind TABLE descriptors at the beginning of scratch, the rest of the input lies about: headers and frames. */
void fixture_litter(const struct input *in);
/* The honest guest sends a frame to B (or to all) and receives. */
void fixture_honest_turn(int turn);
/* Stop all rings; only A and B may have been found broken. */
void fixture_stop(void);

#endif
