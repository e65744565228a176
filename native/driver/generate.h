/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the load generator (generate.c) and the latency probe (latency.c) share. Private to native/driver.
 */
#ifndef PVD_GENERATE_H
#define PVD_GENERATE_H

#include "internal.h"

#define NS_PER_S 1000000000ull

struct receiver {
    struct pvd_queue *q;
    uint64_t next; /* sequence number that comes next */
    uint64_t received;
    uint64_t given_up; /* less one for each that came after all */
};

struct gen {
    struct pvd_gen_conf conf;
    struct pvd_gen_result *result;
    struct pvd_queue *tx;
    struct pvd_layout layout;
    bool plain;
    uint32_t n_rx;
    struct receiver *rx;
    uint32_t run;
    uint64_t sent;
    uint64_t forgiven; /* in flight at a stall: no longer waited for */
    uint64_t start;
    uint64_t last_progress;
    uint8_t *frame;   /* scratch: one frame */
    uint8_t *scratch; /* and another, of frames received in pieces */
};

uint64_t pvd_gen_now(void);
/* A generator from `tx` to `rx`, its template made; 0 or an error, and then nothing is left to free. */
int pvd_gen_init(struct gen *g, pvd_guest *tx, pvd_guest **rx, uint32_t n_rx, const struct pvd_gen_conf *conf);
void pvd_gen_free(struct gen *g);
void pvd_gen_choose_layout(struct gen *g);
int pvd_gen_await_quiet(struct gen *g);
void pvd_gen_fill(struct gen *g);
void pvd_gen_silence(struct gen *g);
/* Make frame number g->sent available in g->layout, unpublished. False when the ring is full. */
bool pvd_gen_send(struct gen *g);
/* Take, check and repost up to a burst. Whether there was any. */
bool pvd_gen_receive(struct gen *g, struct receiver *r);
bool pvd_gen_stopped(const struct gen *g);
void pvd_gen_relax(uint32_t idle);

#endif
