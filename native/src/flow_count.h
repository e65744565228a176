/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow_count.h - what flows and meters have counted, and how full a meter's bucket is.
 *
 * How it works: both outlive the tables that name them, since tables are made anew when a flow changes. A flow's counter is a number; behind it
 * stands, for each worker, its own triple of values, which nobody else writes (counters.h). They lie in chunks, which are made when
 * they are first needed and stay. A meter's bucket is shared by all workers, as a port's are (policy.h).
 *
 * Who may call: workers add; control hands out and takes back; any thread reads sums.
 */
#ifndef PVS_FLOW_COUNT_H
#define PVS_FLOW_COUNT_H

#include "counters.h"
#include "policy.h"
#include "pvs_api.h"

/* Those of every bridge, and twice: all of a bridge's flows may be replaced, whose counters are given back after that. */
enum { PVS_FLOW_COUNTERS = 2 * PVS_MAX_BRIDGES * PVS_MAX_FLOWS };
enum { PVS_FLOW_CHUNK = 4096, PVS_FLOW_CHUNKS = (PVS_FLOW_COUNTERS + PVS_FLOW_CHUNK - 1) / PVS_FLOW_CHUNK };

struct pvs_flow_count {
    _Atomic uint64_t packets, bytes, used_ns;
};

struct pvs_flow_counters {
    uint32_t n_workers;
    uint32_t n, n_free; /* control's: given out so far, and given back */
    uint32_t *free;
    struct pvs_flow_count *chunk[PVS_FLOW_CHUNKS]; /* of each worker in turn */
};

static inline struct pvs_flow_count *
pvs_flow_count_of(const struct pvs_flow_counters *counters, uint32_t worker, uint32_t counter)
{
    return &counters->chunk[counter / PVS_FLOW_CHUNK][worker * PVS_FLOW_CHUNK + counter % PVS_FLOW_CHUNK];
}

static inline void
pvs_flow_count(const struct pvs_flow_counters *counters, uint32_t worker, uint32_t counter, uint64_t packets,
               uint64_t bytes, uint64_t now_ns)
{
    struct pvs_flow_count *c = pvs_flow_count_of(counters, worker, counter);

    pvs_count(&c->packets, packets);
    pvs_count(&c->bytes, bytes);
    atomic_store_explicit(&c->used_ns, now_ns, memory_order_relaxed);
}

struct pvs_flow_meter {
    pvs_meter bucket;
    struct pvs_rate rate; /* control's: the one that the bucket is kept by */
    struct {
        _Alignas(64) _Atomic uint64_t packets, bytes, dropped_packets, dropped_bytes;
    } of[PVS_MAX_WORKERS];
};

/* Numbers. -ENOSPC, -ENOMEM */
int pvs_flow_counters_take(struct pvs_flow_counters *counters, uint32_t *counter);
void pvs_flow_counters_give(struct pvs_flow_counters *counters, uint32_t counter);
void pvs_flow_counters_free(struct pvs_flow_counters *counters);

#endif
