/* SPDX-License-Identifier: Apache-2.0 */
/* test_thread_pace.c - how fast two processors are, alone and from one to the other. */
#include <errno.h>
#include <sched.h>
#include <stdint.h>

#include "driver/pvs_driver.h"
#include "test.h"

enum { PATIENCE_NS = 1000 * 1000 * 1000 };

TEST(thread_pace_of_two_processors)
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
    struct pvd_pace pace = { 0 };
    if (found == 2) {
        CHECK_EQ(pvd_pace_measure(cpus[0], cpus[1], PATIENCE_NS, &pace), 0);
        CHECK(pace.a_ns > 0.1 && pace.b_ns > 0.1 && pace.line_ns > 1);
    }
}

TEST(thread_pace_has_bounds)
{
    struct pvd_pace pace;
    CHECK_EQ(pvd_pace_measure(0, CPU_SETSIZE, PATIENCE_NS, &pace), -EINVAL);
    CHECK_EQ(pvd_pace_measure(CPU_SETSIZE - 1, 0, PATIENCE_NS, &pace), -EINVAL);
    CHECK_EQ(pvd_pace_measure(0, 0, 0, &pace), -ETIME);
}
