/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far two processors are apart: the round trip of a cache line that two threads, one pinned to each, write in turn.
 *
 * On a machine whose host moves virtual processors about, this changes under way, by a factor of five and for seconds on end; and
 * all that two processors share takes as much longer. A benchmark measures it beside its figures.
 */
#define _GNU_SOURCE
#include "pvs_driver.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

/* Trips that are timed at once: so short that the scheduler seldom comes between. So many times are enough. */
#define TRIPS    32
#define BATCHES  128
#define NS_PER_S UINT64_C(1000000000)

/*
 * `turn` is the line: it counts up, from an even number by the thread that measures, from an odd one by the thread that answers.
 * Nothing else is passed by it, so relaxed loads and stores do; the line travels all the same.
 */
struct court {
    _Alignas(64) atomic_uint_fast64_t turn;
    _Alignas(64) atomic_bool over;
};

static uint64_t
now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void *
answer(void *arg)
{
    struct court *court = arg;
    uint64_t next = 1;
    while (!atomic_load_explicit(&court->over, memory_order_relaxed)) {
        if (atomic_load_explicit(&court->turn, memory_order_relaxed) == next) {
            atomic_store_explicit(&court->turn, next + 1, memory_order_relaxed);
            next += 2;
        }
    }
    return NULL;
}

/* One trip there and back from `turn`, an even number. False when time is up before the answer. */
static bool
trip(struct court *court, uint64_t turn, uint64_t end)
{
    atomic_store_explicit(&court->turn, turn + 1, memory_order_relaxed);
    for (uint32_t spins = 1; atomic_load_explicit(&court->turn, memory_order_relaxed) != turn + 2; spins++) {
        if (spins % 4096 == 0 && now_ns() > end) {
            return false;
        }
    }
    return true;
}

struct shortest {
    struct court *court;
    uint64_t budget_ns;
    double ns; /* 0: no batch was completed */
};

static void *
measure(void *arg)
{
    struct shortest *found = arg;
    uint64_t began = now_ns();
    uint64_t end = began + found->budget_ns;
    uint64_t turn = 0;
    uint64_t now = began;
    for (int batch = 0; batch < BATCHES && now < end; batch++) {
        for (int i = 0; i < TRIPS; i++, turn += 2) {
            if (!trip(found->court, turn, end)) {
                return NULL;
            }
        }
        uint64_t after = now_ns();
        double ns = (double)(after - now) / TRIPS;
        if (found->ns == 0 || ns < found->ns) {
            found->ns = ns;
        }
        now = after;
    }
    return NULL;
}

/* Start a thread on one processor. An errno, or 0. */
static int
start(pthread_t *thread, uint32_t cpu, void *(*body)(void *), void *arg)
{
    if (cpu >= CPU_SETSIZE) {
        return EINVAL;
    }
    pthread_attr_t attr;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    int rc = pthread_attr_init(&attr);
    if (rc != 0) {
        return rc;
    }
    rc = pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
    if (rc == 0) {
        rc = pthread_create(thread, &attr, body, arg);
    }
    pthread_attr_destroy(&attr);
    return rc;
}

int
pvd_line_trip(uint32_t cpu_a, uint32_t cpu_b, uint64_t budget_ns, double *ns)
{
    struct court court;
    atomic_init(&court.turn, 0);
    atomic_init(&court.over, false);
    struct shortest found = { .court = &court, .budget_ns = budget_ns };
    pthread_t near;
    pthread_t far;
    int rc = start(&far, cpu_b, answer, &court);
    if (rc != 0) {
        return -rc;
    }
    rc = start(&near, cpu_a, measure, &found);
    if (rc == 0) {
        pthread_join(near, NULL);
    }
    atomic_store_explicit(&court.over, true, memory_order_relaxed);
    pthread_join(far, NULL);
    *ns = found.ns;
    if (rc == 0 && found.ns == 0) {
        rc = ETIME;
    }
    return -rc;
}
