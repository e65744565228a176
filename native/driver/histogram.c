/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Latencies in buckets: exact below 64 ns, and 32 buckets for each power of two above, so that a bucket's middle is
 * within 1/64 of all that is counted in it. What is longer than the last bucket counts as being there.
 */
#include "generate.h"

#define STEP_BITS 5u
#define STEPS     (1u << STEP_BITS) /* buckets of each power of two */

static uint32_t
bucket_of(uint64_t ns)
{
    if (ns < 2 * STEPS) {
        return (uint32_t)ns;
    }
    uint32_t shift = 63 - (uint32_t)__builtin_clzll(ns) - STEP_BITS;
    uint64_t bucket = (uint64_t)shift * STEPS + (ns >> shift);
    return bucket < PVD_GEN_BUCKETS ? (uint32_t)bucket : PVD_GEN_BUCKETS - 1;
}

void
pvd_latency_add(struct pvd_gen_result *result, uint64_t ns)
{
    result->latency[bucket_of(ns)]++;
    result->latencies++;
    result->latency_max = ns > result->latency_max ? ns : result->latency_max;
}

uint64_t
pvd_gen_bucket_ns(uint32_t bucket)
{
    if (bucket < 2 * STEPS) {
        return bucket;
    }
    uint32_t shift = bucket / STEPS - 1;
    uint64_t first = (uint64_t)(bucket % STEPS + STEPS) << shift;
    return first + (1ull << shift) / 2;
}

uint64_t
pvd_gen_latency(const struct pvd_gen_result *result, double share)
{
    double wanted = share * (double)result->latencies;
    uint64_t below = 0;
    for (uint32_t i = 0; i < PVD_GEN_BUCKETS; i++) {
        below += result->latency[i];
        if (below > 0 && (double)below >= wanted) {
            return pvd_gen_bucket_ns(i);
        }
    }
    return 0;
}
