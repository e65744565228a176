/* SPDX-License-Identifier: Apache-2.0 */
/*
 * traffic.h - threads that play the guests of a lab, and know of every frame whether it may be there.
 *
 * How it works: a frame belongs to a stream (who sent it, to whom, which flow) and has a number in it; all of its bytes
 * follow from these, so a receiver can judge it alone. It must be whole, must not have come before, and, as a flow is
 * always sent by the same queue pair, must not come after a later one on the same receive ring, whatever was steered
 * anew meanwhile. A guest belongs to one thread at a time: to the one that plays it, or to whoever has taken it.
 */
#ifndef PVS_TRAFFIC_H
#define PVS_TRAFFIC_H

#include <pthread.h>
#include <stdatomic.h>

#include "lab.h"

/* Destinations: a port's number, or one of these. What control injects has a sender's number of its own. */
enum { TRAFFIC_EVERYBODY = LAB_PORTS, TRAFFIC_NOBODY, TRAFFIC_DESTINATIONS };
enum { TRAFFIC_CONTROL = LAB_PORTS, TRAFFIC_SENDERS };
enum { TRAFFIC_FLOWS = 4, TRAFFIC_PAIRS = 4, TRAFFIC_MAX_LEN = 1514 };

/* What one receiver has heard of one stream. */
struct traffic_stream {
    uint64_t *heard; /* a bit for each number */
    uint32_t words;
    uint32_t next[TRAFFIC_PAIRS]; /* behind the last number on this receive ring */
};

struct traffic_guest {
    struct lab *lab;
    uint32_t port, pairs;
    pthread_mutex_t lock;
    _Atomic bool wanted; /* somebody has it or waits for it: its thread leaves it alone */
    _Atomic bool lazy;   /* takes nothing off its receive rings */
    uint64_t seed;
    uint32_t sent[TRAFFIC_DESTINATIONS][TRAFFIC_FLOWS];
    struct traffic_stream stream[TRAFFIC_SENDERS][TRAFFIC_DESTINATIONS][TRAFFIC_FLOWS];
    uint64_t taken;                 /* frames that the switch has given back, since the caller set it to 0 */
    uint64_t received, rx_bytes;    /* likewise */
    uint8_t frame[2048], got[2048]; /* scratch */
};

/* Play all guests of the lab, by `threads` threads, until the end. */
void traffic_start(struct lab *lab, uint32_t threads, uint64_t seed);
void traffic_end(void);
/* Without `send` nothing new is sent; without `flood` nothing to everybody, and nobody may get what is for others. */
void traffic_set(bool send, bool flood);

/* Take a guest from its thread, and give it back. */
struct traffic_guest *traffic_take(uint32_t port);
void traffic_give(struct traffic_guest *guest);
/* Take off the rings of a taken guest what is there. */
void traffic_collect(struct traffic_guest *guest);

/* Build frame `number` of a stream; its length. */
uint32_t traffic_frame(uint8_t *frame, uint32_t sender, uint32_t to, uint32_t flow, uint32_t number);

#endif
