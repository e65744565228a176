/* SPDX-License-Identifier: Apache-2.0 */
/* counters.c - the names, for whoever reads. See counters.h. */
#include "counters.h"

#include <stddef.h>

#include "pvs_api.h"

uint32_t
pvs_counter_count(void)
{
    return PVS_COUNTER_COUNT;
}

const char *
pvs_counter_name(uint32_t i)
{
    static const char *const name[] = {
#define X(name) #name,
        PVS_COUNTERS(X)
#undef X
    };
    return i < PVS_COUNTER_COUNT ? name[i] : NULL;
}

uint32_t
pvs_drop_reason_count(void)
{
    return PVS_DROP_COUNT;
}

const char *
pvs_drop_reason_name(uint32_t i)
{
    static const char *const name[] = {
#define X(name) #name,
        PVS_DROP_REASONS(X)
#undef X
    };
    return i < PVS_DROP_COUNT ? name[i] : NULL;
}
