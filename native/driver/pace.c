/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast two processors are at the moment: each by itself, and from one to the other.
 *
 * On a machine whose host moves virtual processors about, and lets neighbours run on the other hardware thread of their cores, both
 * change under way: the round trip of a cache line by a factor of five, arithmetic by half. A benchmark looks at it beside its
 * figures. One thread pinned to each processor first times a loop that keeps all of a core's adders busy, then the two write
 * one cache line in turn.
 */
#define _GNU_SOURCE
#include "pvs_driver.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

/* What is timed at once is so short that the scheduler seldom comes between; the shortest of so many counts. */
#define LOOPS      20000
#define LOOP_TIMES 16
#define TRIPS      32
#define TRIP_TIMES 128
#define NS_PER_S   UINT64_C(1000000000)

/*
 * `turn` is the line: it counts up, from an even number by the thread that measures, from an odd one by the thread that answers.
 * Nothing else is passed by it, so relaxed loads and stores do; the line travels all the same.
 */
struct court {
    _Alignas(64) atomic_uint_fast64_t turn;
    _Alignas(64) atomic_bool over;
    uint64_t end;        /* when patience ends */
    double trip_ns;      /* written by the thread that measures; 0: nothing was completed */
    double answering_ns; /* a loop of the thread that answers */
    double measuring_ns;
};

static uint64_t
now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static double
shorter(double before, uint64_t ns, uint32_t times)
{
    double each = (double)ns / times;
    return before == 0 || each < before ? each : before;
}

/* The empty statement keeps the compiler from doing several additions in one. */
#define ADD(x)                          \
    do {                                \
        (x)++;                          \
        __asm__ volatile("" : "+r"(x)); \
    } while (0)

/* ns of one turn of a loop of twelve additions, of which six don't depend on each other. */
static double
time_loop(void)
{
    double shortest = 0;
    uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0;
    for (uint32_t times = 0; times < LOOP_TIMES; times++) {
        uint64_t began = now_ns();
        for (uint32_t i = 0; i < LOOPS; i++) {
            ADD(a);
            ADD(b);
            ADD(c);
            ADD(d);
            ADD(e);
            ADD(f);
            ADD(a);
            ADD(b);
            ADD(c);
            ADD(d);
            ADD(e);
            ADD(f);
        }
        shortest = shorter(shortest, now_ns() - began, LOOPS);
    }
    return shortest;
}

static void *
answer(void *arg)
{
    struct court *court = arg;
    court->answering_ns = time_loop();
    uint64_t next = 1;
    while (!atomic_load_explicit(&court->over, memory_order_relaxed)) {
        if (atomic_load_explicit(&court->turn, memory_order_relaxed) == next) {
            atomic_store_explicit(&court->turn, next + 1, memory_order_relaxed);
            next += 2;
        }
    }
    return NULL;
}

/* One trip there and back from `turn`, an even number. False when patience ends before the answer. */
static bool
trip(struct court *court, uint64_t turn)
{
    atomic_store_explicit(&court->turn, turn + 1, memory_order_relaxed);
    for (uint32_t spins = 1; atomic_load_explicit(&court->turn, memory_order_relaxed) != turn + 2; spins++) {
        if (spins % 4096 == 0 && now_ns() > court->end) {
            return false;
        }
    }
    return true;
}

static void *
measure(void *arg)
{
    struct court *court = arg;
    court->measuring_ns = time_loop();
    uint64_t turn = 0;
    uint64_t now = now_ns();
    for (uint32_t times = 0; times < TRIP_TIMES && now < court->end; times++) {
        for (uint32_t i = 0; i < TRIPS; i++, turn += 2) {
            if (!trip(court, turn)) {
                return NULL;
            }
        }
        uint64_t after = now_ns();
        court->trip_ns = shorter(court->trip_ns, after - now, TRIPS);
        now = after;
    }
    return NULL;
}

/* Start a thread on one processor. An errno, or 0. */
static int
start(pthread_t *thread, uint32_t cpu, void *(*body)(void *), struct court *court)
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
        rc = pthread_create(thread, &attr, body, court);
    }
    pthread_attr_destroy(&attr);
    return rc;
}

int
pvd_pace_measure(uint32_t cpu_a, uint32_t cpu_b, uint64_t patience_ns, struct pvd_pace *pace)
{
    struct court court = { .end = now_ns() + patience_ns };
    pthread_t measuring;
    pthread_t answering;
    int rc = start(&answering, cpu_b, answer, &court);
    if (rc != 0) {
        return -rc;
    }
    rc = start(&measuring, cpu_a, measure, &court);
    if (rc == 0) {
        pthread_join(measuring, NULL);
    }
    atomic_store_explicit(&court.over, true, memory_order_relaxed);
    pthread_join(answering, NULL);
    if (rc == 0 && court.trip_ns == 0) {
        rc = ETIME;
    }
    *pace = (struct pvd_pace){ .a_ns = court.measuring_ns, .b_ns = court.answering_ns, .line_ns = court.trip_ns };
    return -rc;
}
