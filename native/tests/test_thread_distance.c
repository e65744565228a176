/* SPDX-License-Identifier: Apache-2.0 */
/* test_thread_distance.c - the round trip of a cache line between two processors. */
#include <errno.h>
#include <sched.h>
#include <stdint.h>

#include "driver/pvs_driver.h"
#include "test.h"

enum { PATIENCE_NS = 1000 * 1000 * 1000 };

TEST(thread_line_goes_there_and_back)
{
    cpu_set_t allowed;
    CHECK_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    uint32_t cpus[2] = { 0 };
    uint32_t found = 0;
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++) {
        if (CPU_ISSET(cpu, &allowed)) {
            cpus[found++] = cpu;
        }
    }
    double ns = 0;
    if (found == 2) {
        CHECK_EQ(pvd_line_trip(cpus[0], cpus[1], PATIENCE_NS, &ns), 0);
        CHECK(ns > 1 && ns < PATIENCE_NS);
    }
}

TEST(thread_line_trip_has_bounds)
{
    double ns = 0;
    CHECK_EQ(pvd_line_trip(0, CPU_SETSIZE, PATIENCE_NS, &ns), -EINVAL);
    CHECK_EQ(pvd_line_trip(CPU_SETSIZE - 1, 0, PATIENCE_NS, &ns), -EINVAL);
    CHECK_EQ(pvd_line_trip(0, 0, 0, &ns), -ETIME);
}
