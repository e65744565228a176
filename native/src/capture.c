/* SPDX-License-Identifier: Apache-2.0 */
/* capture.c - see capture.h: what workers do, and what control does of pvs_api.h that needs no switch. */
#include "capture.h"

#include <errno.h>
#include <stdlib.h>

#include "counters.h"

/* Copy the first `len` bytes, which are there. */
static void
copy_first(uint8_t *to, const struct pvs_frame *frame, uint32_t len)
{
    uint32_t part = len < frame->head_len ? len : frame->head_len;

    pvs_copy(to, frame->head, part);
    for (uint32_t i = 0; part < len; i++) {
        to += part;
        len -= part;
        part = len < frame->seg[i].len ? len : frame->seg[i].len;
        pvs_copy(to, frame->seg[i].base, part);
    }
}

void
pvs_capture_put(struct pvs_capture *capture, uint32_t worker, const struct pvs_frame *frame,
                struct pvs_captured *captured)
{
    struct pvs_spool *spool = &capture->of[worker].spool;

    if (!pvs_filter_passes(capture->filter, frame))
        return;
    captured->len = frame->len;
    captured->n_bytes = frame->len < capture->snaplen ? frame->len : capture->snaplen;
    uint8_t *place = pvs_spool_reserve(spool, (uint32_t)sizeof *captured + captured->n_bytes);
    if (place == NULL) {
        pvs_count(&capture->of[worker].lost, 1);
        capture->of[worker].lost_before++;
        return;
    }
    captured->lost = capture->of[worker].lost_before;
    capture->of[worker].lost_before = 0;
    memcpy(place, captured, sizeof *captured);
    copy_first(place + sizeof *captured, frame, captured->n_bytes);
    pvs_spool_commit(spool, (uint32_t)sizeof *captured + captured->n_bytes);
}

int
pvs_capture_next(struct pvs_capture *capture, uint32_t worker, struct pvs_captured *out, uint8_t *bytes, uint32_t cap)
{
    uint32_t len;

    if (worker >= capture->n_workers)
        return 0;
    const uint8_t *record = pvs_spool_peek(&capture->of[worker].spool, &len);
    if (record == NULL)
        return 0;
    memcpy(out, record, sizeof *out);
    if (out->n_bytes > cap)
        return -EMSGSIZE;
    memcpy(bytes, record + sizeof *out, out->n_bytes);
    pvs_spool_drop(&capture->of[worker].spool, len);
    return 1;
}

uint64_t
pvs_capture_lost(const struct pvs_capture *capture)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < capture->n_workers; i++)
        sum += atomic_load_explicit(&capture->of[i].lost, memory_order_relaxed);
    return sum;
}

uint32_t
pvs_capture_slot(const struct pvs_capture *capture)
{
    return capture->slot;
}

void
pvs_capture_destroy(struct pvs_capture *capture)
{
    if (capture == NULL)
        return;
    for (uint32_t i = 0; i < capture->n_workers; i++)
        pvs_spool_fini(&capture->of[i].spool);
    if (capture->place != NULL)
        *capture->place = NULL;
    free(capture->filter);
    free(capture);
}
