/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-net on a virtqueue (virtio 1.2, sections 5.1.6.2 and 5.1.6.4): net header and frame are one
 * byte string that a chain carries; received frames may be spread over several chains (MRG_RXBUF).
 */
#include "internal.h"

#include <errno.h>
#include <string.h>

/* virtio 1.2, 5.1.6: flags and gso_type. */
enum { HDR_F_NEEDS_CSUM = 1, HDR_F_DATA_VALID = 2 };
enum { GSO_NONE = 0, GSO_TCPV4 = 1, GSO_UDP = 3, GSO_TCPV6 = 4, GSO_UDP_L4 = 5, GSO_ECN = 0x80 };

/* One descriptor where the device must take any layout, else the legacy rule: the header in its own. */
static struct pvd_layout
plain_layout(const struct pvd_guest *g)
{
    struct pvd_layout layout = { 0 };
    if (!pvd_any_layout(g)) {
        layout.n_cuts = 1;
        layout.cuts[0] = g->hdr_len;
    }
    return layout;
}

/* Write `len` bytes at `offset` of the chain's byte string. */
static void
chain_write(const struct pvd_queue *q, uint16_t head, uint32_t offset, const void *src, uint32_t len)
{
    const uint8_t *from = src;
    for (uint32_t i = 0; len > 0; i++) {
        struct pvd_seg seg;
        pvd_chain_seg(q, head, i, &seg);
        if (offset >= seg.len) {
            offset -= seg.len;
            continue;
        }
        uint32_t n = seg.len - offset < len ? seg.len - offset : len;
        pvd_copy_in(q->guest, seg.gpa + offset, from, n);
        from += n;
        len -= n;
        offset = 0;
    }
}

int
pvd_tx_post(struct pvd_queue *q, const void *hdr, const void *frame, uint32_t len, const struct pvd_layout *layout)
{
    static const uint8_t no_hdr[PVD_MAX_HDR_LEN];
    uint32_t hdr_len = q->guest->hdr_len;
    if (len > q->guest->conf.tx_buf_size - hdr_len) {
        return -EMSGSIZE;
    }
    struct pvd_layout plain = plain_layout(q->guest);
    int head = pvd_chain_build(q, hdr_len + len, layout != NULL ? layout : &plain);
    if (head < 0) {
        return head;
    }
    chain_write(q, (uint16_t)head, 0, hdr != NULL ? hdr : no_hdr, hdr_len);
    chain_write(q, (uint16_t)head, hdr_len, frame, len);
    pvd_chain_post(q, (uint16_t)head);
    return 0;
}

int
pvd_tx(pvd_guest *guest, uint32_t pair, const void *hdr, const void *frame, uint32_t len,
       const struct pvd_layout *layout)
{
    struct pvd_queue *q = pvd_queue_of(guest, 2 * pair + 1);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    int rc = pvd_tx_post(q, hdr, frame, len, layout);
    if (rc == 0) {
        pvd_publish(q);
    }
    return rc;
}

int
pvd_tx_reap_queue(struct pvd_queue *q)
{
    int n = 0;
    for (;;) {
        uint32_t used_len;
        int head = pvd_used_take(q, &used_len);
        if (head == -EAGAIN) {
            return n;
        }
        if (head < 0) {
            return head;
        }
        uint32_t len = q->chains[head].len;
        pvd_chain_free(q, (uint16_t)head);
        if (used_len != 0) {
            /* The length counts bytes that the device wrote, and these buffers were not for writing. */
            return pvd_fail(q, PVD_ERR_LEN_LONG);
        }
        q->counters.frames++;
        q->counters.bytes += len > q->guest->hdr_len ? len - q->guest->hdr_len : 0;
        n++;
    }
}

int
pvd_tx_reap(pvd_guest *guest, uint32_t pair)
{
    struct pvd_queue *q = pvd_queue_of(guest, 2 * pair + 1);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    return pvd_tx_reap_queue(q);
}

int
pvd_rx_fill_queue(struct pvd_queue *q, uint32_t max, const struct pvd_layout *layout)
{
    uint32_t n = 0;
    q->rx_layout = layout != NULL ? *layout : plain_layout(q->guest);
    while (n < max) {
        int head = pvd_chain_build(q, q->guest->conf.rx_buf_size, &q->rx_layout);
        if (head == -ENOSPC) {
            break;
        }
        if (head < 0) {
            return head;
        }
        pvd_chain_post(q, (uint16_t)head);
        n++;
    }
    pvd_publish(q);
    return (int)n;
}

int
pvd_rx_fill(pvd_guest *guest, uint32_t pair, uint32_t max, const struct pvd_layout *layout)
{
    struct pvd_queue *q = pvd_queue_of(guest, 2 * pair);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    return pvd_rx_fill_queue(q, max, layout);
}

static bool
guards_intact(const struct pvd_queue *q, uint16_t head)
{
    for (uint32_t i = 0; i < q->chains[head].n_segs; i++) {
        struct pvd_seg seg;
        uint8_t guard[PVD_GUARD_LEN];
        pvd_chain_seg(q, head, i, &seg);
        pvd_copy_out(q->guest, guard, seg.gpa + seg.len, sizeof(guard));
        for (uint32_t k = 0; k < sizeof(guard); k++) {
            if (guard[k] != PVD_GUARD_BYTE) {
                return false;
            }
        }
    }
    return true;
}

/* Add bytes [skip, used) of a chain to the view. False when the view has no room for so many pieces. */
static bool
view_add(struct pvd_view *v, const struct pvd_queue *q, uint16_t head, uint32_t skip, uint32_t used)
{
    uint32_t at = 0;
    for (uint32_t i = 0; at < used; i++) {
        struct pvd_seg seg;
        pvd_chain_seg(q, head, i, &seg);
        uint32_t from = skip > at ? skip - at : 0;
        uint32_t to = used - at < seg.len ? used - at : seg.len;
        while (from < to) {
            uint32_t n = to - from;
            if (v->n_pieces == PVD_MAX_PIECES) {
                return false;
            }
            const uint8_t *ptr = pvd_piece(q->guest, seg.gpa + from, &n);
            v->pieces[v->n_pieces++] = (struct pvd_piece_ref){ .ptr = ptr, .len = n };
            from += n;
        }
        at += seg.len;
    }
    v->len += used - skip;
    return true;
}

static void
read_header(const struct pvd_queue *q, uint16_t head, struct pvd_net_header *h)
{
    uint8_t *to = (uint8_t *)h;
    uint32_t left = q->guest->hdr_len;
    h->num_buffers = 1;
    for (uint32_t i = 0; left > 0; i++) {
        struct pvd_seg seg;
        pvd_chain_seg(q, head, i, &seg);
        uint32_t n = seg.len < left ? seg.len : left;
        pvd_copy_out(q->guest, to, seg.gpa, n);
        to += n;
        left -= n;
    }
}

/* Whether num_buffers can be right when `more` further buffers are used. */
bool
pvd_buffers_plausible(const struct pvd_guest *g, uint32_t n, uint32_t more)
{
    return n == 1 || (n > 1 && n - 1 <= more && n <= PVD_MAX_PIECES && pvd_has(g, PVD_F_MRG_RXBUF));
}

/* Whether the guest said that it takes this gso_type; USO has two features and one type. */
static bool
gso_negotiated(const struct pvd_guest *g, uint8_t gso_type)
{
    bool ecn = (gso_type & GSO_ECN) != 0;
    bool plain = !ecn || pvd_has(g, PVD_F_GUEST_ECN);

    switch (gso_type & ~GSO_ECN) {
    case GSO_NONE:
        return !ecn;
    case GSO_TCPV4:
        return plain && pvd_has(g, PVD_F_GUEST_TSO4);
    case GSO_TCPV6:
        return plain && pvd_has(g, PVD_F_GUEST_TSO6);
    case GSO_UDP:
        return !ecn && pvd_has(g, PVD_F_GUEST_UFO);
    case GSO_UDP_L4:
        return !ecn && (pvd_has(g, PVD_F_GUEST_USO4) || pvd_has(g, PVD_F_GUEST_USO6));
    default:
        return false;
    }
}

/* Judge what the header says of a frame of `len` bytes (virtio 1.2, 5.1.6.4.1). */
bool
pvd_offload_plausible(const struct pvd_guest *g, const struct pvd_net_header *h, uint32_t len)
{
    bool partial = (h->flags & HDR_F_NEEDS_CSUM) != 0;

    if ((h->flags & ~(HDR_F_NEEDS_CSUM | HDR_F_DATA_VALID)) != 0 || !gso_negotiated(g, h->gso_type)) {
        return false;
    }
    if (h->flags != 0 && !pvd_has(g, PVD_F_GUEST_CSUM)) {
        return false;
    }
    if (partial && (uint32_t)h->csum_start + h->csum_offset + 2 > len) {
        return false;
    }
    return h->gso_type == GSO_NONE || (partial && h->gso_size > 0 && h->hdr_len < len);
}

/* Take the next used buffer of a frame into the view. PVD_ERR_*; the buffer is in view->heads unless its id
 * is bad. */
static int
take_buffer(struct pvd_queue *q, struct pvd_view *v, bool guards, uint32_t *used)
{
    int head = pvd_used_take(q, used);
    if (head < 0) {
        return head;
    }
    v->heads[v->n_heads++] = (uint16_t)head;
    if (*used > q->chains[head].len) {
        return pvd_fail(q, PVD_ERR_LEN_LONG);
    }
    if (guards && !guards_intact(q, (uint16_t)head)) {
        return pvd_fail(q, PVD_ERR_GUARD);
    }
    return head;
}

static int
view_build(struct pvd_queue *q, struct pvd_view *v, bool guards)
{
    struct pvd_guest *g = q->guest;
    struct pvd_net_header h;
    uint32_t used;
    int head = take_buffer(q, v, guards, &used);
    if (head < 0) {
        return head;
    }
    if (used < g->hdr_len) {
        return pvd_fail(q, PVD_ERR_LEN_SHORT);
    }
    read_header(q, (uint16_t)head, &h);
    v->info = (struct pvd_rx_info){ .flags = h.flags,
                                    .gso_type = h.gso_type,
                                    .hdr_len = h.hdr_len,
                                    .gso_size = h.gso_size,
                                    .csum_start = h.csum_start,
                                    .csum_offset = h.csum_offset,
                                    .num_buffers = h.num_buffers };
    if (!pvd_buffers_plausible(g, h.num_buffers, h.num_buffers > 1 ? pvd_used_pending(q, h.num_buffers - 1u) : 0)) {
        return pvd_fail(q, PVD_ERR_NUM_BUFFERS);
    }
    if (!view_add(v, q, (uint16_t)head, g->hdr_len, used)) {
        return -EMSGSIZE;
    }
    while (v->n_heads < h.num_buffers) {
        head = take_buffer(q, v, guards, &used);
        if (head < 0) {
            return head;
        }
        if (!view_add(v, q, (uint16_t)head, 0, used)) {
            return -EMSGSIZE;
        }
    }
    return pvd_offload_plausible(g, &h, v->len) ? 0 : pvd_fail(q, PVD_ERR_HEADER);
}

/*
 * The next received frame, where it lies. 0; -EAGAIN; -EPROTO with view->info.error. After a failure the
 * buffers taken are free again; after success they are the caller's until pvd_rx_release.
 */
int
pvd_rx_view(struct pvd_queue *q, struct pvd_view *view, bool guards)
{
    view->len = 0;
    view->n_pieces = 0;
    view->n_heads = 0;
    view->info = (struct pvd_rx_info){ 0 };
    int rc = view_build(q, view, guards);
    if (rc < 0) {
        view->info.error = rc == -EPROTO ? q->counters.last_error : PVD_ERR_NONE;
        pvd_rx_release(q, view, false);
        return rc;
    }
    q->counters.frames++;
    q->counters.bytes += view->len;
    return 0;
}

/* Give the view's buffers back: posted again as they were (not yet published), or free. */
void
pvd_rx_release(struct pvd_queue *q, const struct pvd_view *view, bool repost)
{
    for (uint32_t i = 0; i < view->n_heads; i++) {
        /* A chain posted raw has no buffer of ours that could be posted again. */
        if (repost && q->chains[view->heads[i]].n_segs > 0) {
            pvd_chain_repost(q, view->heads[i]);
        } else {
            pvd_chain_free(q, view->heads[i]);
        }
    }
}

int
pvd_rx(pvd_guest *guest, uint32_t pair, void *buf, uint32_t cap, struct pvd_rx_info *info)
{
    struct pvd_queue *q = pvd_queue_of(guest, 2 * pair);
    if (q == NULL || guest->mute) {
        return q == NULL ? -EINVAL : -EFAULT;
    }
    bool refill = (guest->conf.flags & PVD_CONF_AUTO_REFILL) != 0;
    struct pvd_view *view = guest->view;
    int rc = pvd_rx_view(q, view, true);
    if (info != NULL) {
        *info = view->info;
    }
    if (rc == 0) {
        uint8_t *to = buf;
        rc = view->len <= cap ? (int)view->len : -EMSGSIZE;
        for (uint32_t i = 0; rc >= 0 && i < view->n_pieces; i++) {
            memcpy(to, view->pieces[i].ptr, view->pieces[i].len);
            to += view->pieces[i].len;
        }
        pvd_rx_release(q, view, refill);
        pvd_publish(q);
    }
    return rc;
}
