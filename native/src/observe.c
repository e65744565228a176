/* SPDX-License-Identifier: Apache-2.0 */
/*
 * observe.c - what control asks of the flight recorder, and how captures begin (pvs_api.h, "what was seen").
 */
#include <errno.h>
#include <stdlib.h>

#include "switch.h"

uint32_t
pvs_records_read(const struct pvs_switch *sw, uint32_t worker, uint32_t ring, uint64_t number, struct pvs_record *out,
                 uint32_t max)
{
    if (worker >= sw->conf.n_workers || ring >= PVS_RECORD_RINGS)
        return 0;
    return pvs_record_ring_read(&sw->worker[worker]->recorder.ring[ring], number, out, max);
}

int64_t
pvs_recorder_set(struct pvs_switch *sw, uint32_t every, const struct pvs_bpf *code, uint32_t n)
{
    struct pvs_filter *filter;
    int rc = pvs_filter_create(code, n, &filter);

    if (rc != 0)
        return rc;
    struct pvs_command *command = pvs_command_new(sw, PVS_OP_RECORDER, 0, &rc);
    if (command == NULL) {
        free(filter);
        return rc;
    }
    command->recorder.every = every;
    command->recorder.filter = filter;
    command->recorder.old = sw->samples;
    sw->samples = filter;
    return pvs_command_submit(sw, command);
}

static bool
capture_conf_valid(const struct pvs_capture_conf *conf)
{
    return conf->snaplen >= PVS_ETH_HLEN && conf->snaplen <= PVS_MAX_FRAME && conf->ring_bytes >= PVS_CAPTURE_MIN &&
           conf->ring_bytes <= PVS_CAPTURE_MAX && (conf->ring_bytes & (conf->ring_bytes - 1)) == 0;
}

/* All of it but its place. */
static int
capture_make(const struct pvs_switch *sw, const struct pvs_capture_conf *conf, struct pvs_capture **out)
{
    size_t size = (sizeof **out + 63) & ~(size_t)63;
    struct pvs_capture *capture = aligned_alloc(64, size);

    *out = capture;
    if (capture == NULL)
        return -ENOMEM;
    memset(capture, 0, size);
    capture->snaplen = conf->snaplen;
    int rc = pvs_filter_create(conf->filter, conf->n, &capture->filter);
    for (uint32_t i = 0; rc == 0 && i < sw->conf.n_workers; i++) {
        rc = pvs_spool_init(&capture->of[i].spool, conf->ring_bytes);
        capture->n_workers += rc == 0;
    }
    return rc;
}

int
pvs_capture_create(struct pvs_switch *sw, const struct pvs_capture_conf *conf, struct pvs_capture **out)
{
    struct pvs_capture *capture;
    uint32_t slot = 0;

    if (!capture_conf_valid(conf))
        return -EINVAL;
    while (slot < PVS_MAX_CAPTURES && sw->capture[slot] != NULL)
        slot++;
    if (slot == PVS_MAX_CAPTURES)
        return -ENOSPC;
    int rc = capture_make(sw, conf, &capture);
    if (rc != 0) {
        pvs_capture_destroy(capture);
        return rc;
    }
    capture->slot = slot;
    capture->place = &sw->capture[slot];
    sw->capture[slot] = capture;
    *out = capture;
    return 0;
}
