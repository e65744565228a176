/* SPDX-License-Identifier: Apache-2.0 */
/* trace.c - pvs_decide once more, with notes of what it does: decide.c, compiled so that it tells. */
#include "decide.h"

static void
note(struct pvs_trace *trace, enum pvs_step_kind kind, uint32_t a, uint32_t b, uint32_t c)
{
    if (trace->n_steps < sizeof trace->step / sizeof trace->step[0])
        trace->step[trace->n_steps] = (struct pvs_step){ .kind = kind, .a = a, .b = b, .c = c };
    trace->n_steps++;
}

#define PVS_NOTED
#define PVS_DECIDE             pvs_decide_noted
#define NOTE(v, kind, a, b, c) note((v)->trace, kind, (uint32_t)(a), (uint32_t)(b), (uint32_t)(c))

#include "decide.c"
