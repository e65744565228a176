/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Latency between two driver guests: one frame at a time there and back, by the generator's means.
 */
#define _GNU_SOURCE
#include "generate.h"

#include <string.h>
#include <time.h>

/* Wait for frame `seq` of this run at r. False when patience ends. */
static bool
await_frame(struct gen *g, struct receiver *r, uint64_t seq)
{
    uint64_t end = pvd_gen_now() + g->conf.stall_ns;
    for (uint32_t idle = 0; pvd_gen_now() < end; idle++) {
        pvd_gen_receive(g, r);
        pvd_tx_reap_queue(g->tx);
        if (r->next > seq) {
            return true;
        }
        pvd_gen_relax(idle);
    }
    return false;
}

static bool
send_one(struct gen *g, uint64_t seq)
{
    g->sent = seq;
    bool sent = pvd_gen_send(g);
    pvd_publish(g->tx);
    pvd_queue_kick(g->tx);
    return sent;
}

static void
sleep_ns(uint64_t ns)
{
    struct timespec ts = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };
    nanosleep(&ts, NULL);
}

static int
pingpong(struct gen *there, struct gen *back, uint32_t count, uint64_t interval_ns, uint64_t *out)
{
    int came_back = 0;
    pvd_gen_fill(there);
    pvd_gen_fill(back);
    for (uint32_t i = 0; i < count; i++) {
        out[i] = UINT64_MAX;
    }
    for (uint32_t i = 0; i < count && !pvd_gen_stopped(there); i++) {
        pvd_gen_silence(there);
        pvd_gen_silence(back);
        uint64_t sent_at = pvd_gen_now();
        bool ok = send_one(there, i) && await_frame(there, &there->rx[0], i) && send_one(back, i) &&
                  await_frame(back, &back->rx[0], i);
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
    struct pvd_gen_conf one_way = *conf;
    struct pvd_gen_result unused = { 0 };
    struct gen there;
    struct gen back;
    one_way.window = 1;
    one_way.level = 1;
    one_way.flags = 0;
    one_way.n_dst = 1;
    one_way.n_src = 1;
    int rc = pvd_gen_init(&there, a, &b, 1, &one_way);
    if (rc != 0) {
        return rc;
    }
    memcpy(one_way.dst, conf->src, sizeof(one_way.dst));
    memcpy(one_way.src, conf->dst, sizeof(one_way.src));
    rc = pvd_gen_init(&back, b, &a, 1, &one_way);
    if (rc != 0) {
        pvd_gen_free(&there);
        return rc;
    }
    there.result = &unused;
    back.result = &unused;
    pvd_gen_choose_layout(&there);
    pvd_gen_choose_layout(&back);
    rc = pvd_gen_await_quiet(&there);
    if (rc == 0) {
        rc = pvd_gen_await_quiet(&back);
    }
    if (rc == 0) {
        rc = pingpong(&there, &back, count, interval_ns, out);
    }
    pvd_gen_free(&there);
    pvd_gen_free(&back);
    return rc;
}
