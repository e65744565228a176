/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The generator's path for rings of any layout: by the same means as pvd_tx and pvd_rx.
 */
#include "generate.h"

#include <errno.h>

uint32_t
pvd_general_send(struct pvd_flow *f, uint32_t n)
{
    const struct pvd_spec *s = &f->spec;
    uint32_t i = 0;
    for (; i < n; i++) {
        pvd_frame_write(s, &f->next, s->paced ? pvd_due(f, f->sent) : 0, f->frame);
        if (pvd_tx_post(f->tx, s->header, f->frame, s->len, &f->layout) != 0) {
            break;
        }
        pvd_cursor_next(s, &f->next);
        f->sent++;
    }
    if (i > 0) {
        pvd_publish(f->tx);
        pvd_queue_kick(f->tx);
    }
    return i;
}

bool
pvd_general_reap(struct pvd_flow *f)
{
    return pvd_tx_reap_queue(f->tx) > 0;
}

bool
pvd_general_receive(struct pvd_receiver *r)
{
    struct pvd_queue *q = r->q;
    struct pvd_view *view = q->guest->view;
    uint32_t n = pvd_used_pending(q, PVD_GEN_BURST);
    uint32_t taken = q->n_taken;
    if (n == 0) {
        return false;
    }
    if (r->flow->spec.paced) {
        r->flow->gen->now = pvd_gen_now();
    }
    for (uint32_t i = 0; i < n && i < PVD_GEN_BURST; i++) {
        int rc = pvd_rx_view(q, view, r->flow->spec.level >= 1);
        if (rc == -EAGAIN) {
            break;
        }
        if (rc == 0) {
            pvd_frame_judge(r, view->pieces, view->n_pieces, view->len);
            pvd_rx_release(q, view, true);
        }
    }
    pvd_publish(q);
    pvd_queue_kick(q);
    return q->n_taken != taken;
}
