/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy.h - how much a port's frames may be, besides where they go: storm control by class, policing of what comes in, shaping of what
 * goes out.
 *
 * How it works: each limit is a token bucket, kept as one moment, that at which the bucket will be full again (the virtual scheduling
 * algorithm of ITU-T I.371, A.2). A frame conforms when the moment, moved by what the frame costs, is no further away than the bucket
 * is deep. Several workers may serve one port: the moment is moved by a compare-and-exchange. Nothing else follows from
 * it, so relaxed orderings do.
 *
 * pvs_decide asks whether a frame conforms and changes nothing; the worker charges what it commits.
 */
#ifndef PVS_POLICY_H
#define PVS_POLICY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum pvs_storm { PVS_STORM_BROADCAST, PVS_STORM_MULTICAST, PVS_STORM_UNKNOWN, PVS_STORM_CLASSES };

/* A limit. unit 0: there is none. */
struct pvs_rate {
    uint64_t unit;     /* ns that a frame, or a byte, takes at this rate, << PVS_RATE_SHIFT */
    uint64_t depth_ns; /* of the bucket */
};

/* A frame of 65,535 segments at one a second still has a cost in 64 bits; a byte at 10^12 bit/s is told to 0.2 %. */
enum { PVS_RATE_SHIFT = 16 };

/* When the bucket will be full again, in ns. */
typedef _Atomic uint64_t pvs_meter;

/* A port's limits, as the tables have them, */
struct pvs_policy {
    struct pvs_rate storm[PVS_STORM_CLASSES]; /* in frames */
    struct pvs_rate policing, shaping;        /* in bytes */
};

/* and what has been used of them, as the port has it. */
struct pvs_meters {
    pvs_meter storm[PVS_STORM_CLASSES];
    pvs_meter policing, shaping;
};

/* `per_second` units at most, `depth` of them at once (2^32 at most). */
static inline struct pvs_rate
pvs_rate_of(uint64_t per_second, uint64_t depth)
{
    const uint64_t second = 1000000000;
    struct pvs_rate rate = { 0 };

    if (per_second != 0) {
        uint64_t at_once = depth < UINT32_MAX ? depth : UINT32_MAX;
        rate.unit = (second << PVS_RATE_SHIFT) / per_second;
        rate.depth_ns = at_once / per_second * second + at_once % per_second * second / per_second;
    }
    return rate;
}

static inline uint64_t
pvs_rate_cost(const struct pvs_rate *rate, uint32_t units)
{
    return units * rate->unit >> PVS_RATE_SHIFT;
}

/* How far the bucket will be from full, in ns, once these are charged. */
static inline uint64_t
pvs_meter_after(const struct pvs_rate *rate, const pvs_meter *meter, uint32_t units, uint64_t now_ns)
{
    uint64_t full = atomic_load_explicit(meter, memory_order_relaxed);

    return (full > now_ns ? full - now_ns : 0) + pvs_rate_cost(rate, units);
}

static inline bool
pvs_meter_allows(const struct pvs_rate *rate, const pvs_meter *meter, uint32_t units, uint64_t now_ns)
{
    return rate->unit == 0 || pvs_meter_after(rate, meter, units, now_ns) <= rate->depth_ns;
}

/* Returns the moment when the bucket had been full without these. */
static inline uint64_t
pvs_meter_charge(const struct pvs_rate *rate, pvs_meter *meter, uint32_t units, uint64_t now_ns)
{
    uint64_t full = atomic_load_explicit(meter, memory_order_relaxed), from;

    do {
        from = full > now_ns ? full : now_ns;
    } while (!atomic_compare_exchange_weak_explicit(meter, &full, from + pvs_rate_cost(rate, units),
                                                    memory_order_relaxed, memory_order_relaxed));
    return from;
}

/* The bucket is full. */
static inline void
pvs_meter_fill(pvs_meter *meter)
{
    atomic_store_explicit(meter, 0, memory_order_relaxed);
}

#endif
