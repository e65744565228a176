/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Latency between two driver guests: one frame at a time there and back, by the generator's means.
 */
#define _GNU_SOURCE
#include "generate.h"

#include <time.h>

/* Wait for frame `seq` of a flow at its only receiver. False when patience ends. */
static bool
await_frame(struct pvd_flow *f, uint64_t seq)
{
    uint64_t end = pvd_gen_now() + f->gen->conf.stall_ns;
    for (uint32_t idle = 0; pvd_gen_now() < end; idle++) {
        f->rx->receive(f->rx);
        f->reap(f);
        if (f->rx->next.seq > seq) {
            return true;
        }
        pvd_gen_relax(idle);
    }
    return false;
}

static bool
send_one(struct pvd_flow *f, uint64_t seq)
{
    pvd_cursor_set(&f->spec, &f->next, 0, seq);
    return f->send(f, 1) == 1;
}

static void
sleep_ns(uint64_t ns)
{
    struct timespec ts = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };
    nanosleep(&ts, NULL);
}

static int
pingpong(struct pvd_gen *g, uint32_t count, uint64_t interval_ns, uint64_t *out)
{
    struct pvd_flow *there = &g->flows[0];
    struct pvd_flow *back = &g->flows[1];
    int came_back = 0;
    for (uint32_t i = 0; i < count; i++) {
        out[i] = UINT64_MAX;
    }
    for (uint32_t i = 0; i < count && !pvd_gen_stopped(g); i++) {
        pvd_gen_silence(g);
        uint64_t sent_at = pvd_gen_now();
        bool ok = send_one(there, i) && await_frame(there, i) && send_one(back, i) && await_frame(back, i);
        if (ok) {
            out[i] = pvd_gen_now() - sent_at;
            came_back++;
        }
        if (interval_ns > 0) {
            sleep_ns(interval_ns);
        }
    }
    return came_back;
}

int
pvd_pingpong(pvd_guest *a, pvd_guest *b, const struct pvd_gen_conf *conf, uint32_t count, uint64_t interval_ns,
             uint64_t *out)
{
    struct pvd_gen_conf one_way = { .len = conf->len, .window = 1, .level = 1, .stall_ns = conf->stall_ns };
    struct pvd_way ways[2] = { { .tx = a, .rx = &b, .n_rx = 1, .dst = conf->dst, .src = conf->src },
                               { .tx = b, .rx = &a, .n_rx = 1, .dst = conf->src, .src = conf->dst } };
    struct pvd_gen_result unused = { 0 };
    struct pvd_gen g;
    int rc = pvd_gen_open(&g, ways, 2, &one_way, &unused);
    if (rc != 0) {
        return rc;
    }
    rc = pingpong(&g, count, interval_ns, out);
    pvd_gen_close(&g);
    return rc;
}
