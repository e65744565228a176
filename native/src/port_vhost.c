/* SPDX-License-Identifier: Apache-2.0 */
/* port_vhost.c - see port_vhost.h for how it works and who may call it. */
#include "port_vhost.h"

#include <sched.h>

#include "virtqueue_split.h"

/* How often a taken lock is looked at before the holder is given the processor: it may have been preempted. */
enum { LOCK_SPINS = 256 };

static inline void
pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void
pvs_ring_lock(struct pvs_ring *ring)
{
    for (uint32_t spins = 0; !pvs_ring_try(ring); spins++) {
        if (spins < LOCK_SPINS)
            pause_briefly();
        else
            sched_yield();
    }
}

/* Turn a chain's segments into a parsed frame: header and head are copied out, the tail stays in place. */
static void
gather(const struct pvs_ring *ring, const struct pvs_chain *chain, struct pvs_seg *seg, struct pvs_frame *frame)
{
    const struct pvs_vq *vq = &ring->vq;
    struct virtio_net_hdr header;

    frame->chain = chain->head;
    frame->in_ref = ring->queue.port->ref;
    frame->pair = (uint8_t)(ring->queue.index / 2);
    frame->injected = false;
    frame->len = 0;
    frame->n_seg = 0;
    frame->malformed = chain->wrong_direction || chain->truncated || chain->len <= vq->header_len ||
                       chain->len - vq->header_len > PVS_MAX_FRAME;
    if (frame->malformed)
        return;
    frame->len = (uint32_t)chain->len - vq->header_len;
    frame->head_len = (uint16_t)(frame->len < PVS_HEAD ? frame->len : PVS_HEAD);

    struct pvs_cursor c = { .seg = seg, .n = chain->n };
    pvs_cursor_read(&c, (uint8_t *)&header, vq->header_len);
    pvs_cursor_read(&c, frame->head, frame->head_len);
    if (c.n != 0) {
        struct pvs_seg *tail = seg + (chain->n - c.n);
        tail->base += c.offset;
        tail->len -= c.offset;
        frame->seg = tail;
        frame->n_seg = c.n;
    }
    frame->malformed = !pvs_parse(frame) || !pvs_offload_check(frame, &header, ring->offloads);
}

uint32_t
pvs_guest_tx_fetch(struct pvs_ring *ring, struct pvs_burst *burst, enum pvs_broken *broken)
{
    struct pvs_vq *vq = &ring->vq;
    struct pvs_chain chain[PVS_BURST];
    struct pvs_seg *start[PVS_BURST];
    uint16_t head[PVS_BURST];
    uint32_t n = pvs_split_available(vq, broken), used = 0, walked = 0;

    if (n == 0)
        return 0;
    if (n > PVS_BURST)
        n = PVS_BURST;
    /* three passes, so that the cache misses of a burst overlap: ids, descriptors, payload */
    for (uint32_t i = 0; i < n; i++) {
        head[i] = pvs_split_head(vq, i);
        __builtin_prefetch(&vq->desc[head[i] & vq->mask]);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t cap = PVS_ARENA - used < PVS_MAX_SEGS ? PVS_ARENA - used : PVS_MAX_SEGS;
        start[i] = &burst->arena[used];
        *broken = pvs_split_chain(vq, head[i], false, start[i], cap, &chain[i]);
        /* a chain that only the rest of the arena was too small for waits for the next burst */
        if (*broken != PVS_BROKEN_NONE || (chain[i].truncated && cap < PVS_MAX_SEGS)) {
            n = i;
            break;
        }
        used += chain[i].n;
        walked += chain[i].walked;
        if (walked > PVS_ARENA)
            n = i + 1; /* descriptors cost time even when they carry nothing: the rest has its turn later */
        if (chain[i].n != 0)
            __builtin_prefetch(start[i]->base);
    }
    for (uint32_t i = 0; i < n; i++)
        gather(ring, &chain[i], start[i], &burst->frame[i]);
    return n;
}

void
pvs_guest_tx_finish(struct pvs_ring *ring, const struct pvs_burst *burst, uint32_t n)
{
    pvs_split_take(&ring->vq, n);
    for (uint32_t i = 0; i < n; i++)
        pvs_split_give(&ring->vq, burst->frame[i].chain, 0); /* a transmit chain has nothing written into it */
}

/* Chains reserved for one frame. */
struct reservation {
    uint32_t n_chain, n_seg;
    uint64_t room;
    struct {
        uint16_t head;
        uint32_t room;
    } chain[PVS_MAX_SEGS];
};

/* Find room for `need` bytes without taking anything off the ring. */
static enum pvs_drop
reserve(struct pvs_vq *vq, uint32_t need, struct pvs_seg *seg, struct reservation *r, enum pvs_broken *broken)
{
    r->n_chain = r->n_seg = 0;
    r->room = 0;
    while (r->room < need) {
        struct pvs_chain chain;
        if (r->n_chain >= (uint16_t)(vq->seen_avail - vq->next_avail) && pvs_split_available(vq, broken) <= r->n_chain)
            return PVS_DROP_guest_rx_full;
        if (r->n_seg == PVS_MAX_SEGS)
            return PVS_DROP_guest_rx_too_small;
        *broken =
            pvs_split_chain(vq, pvs_split_head(vq, r->n_chain), true, seg + r->n_seg, PVS_MAX_SEGS - r->n_seg, &chain);
        if (*broken == PVS_BROKEN_NONE && chain.wrong_direction)
            *broken = PVS_BROKEN_RX_READABLE;
        else if (*broken == PVS_BROKEN_NONE && !chain.truncated && chain.len < vq->header_len)
            *broken = PVS_BROKEN_RX_TINY;
        if (*broken != PVS_BROKEN_NONE)
            return PVS_DROP_guest_rx_full;
        if ((!vq->mrg_rxbuf || chain.truncated) && r->room + chain.len < need)
            return PVS_DROP_guest_rx_too_small;
        r->chain[r->n_chain].head = chain.head;
        r->chain[r->n_chain].room = chain.len < need ? (uint32_t)chain.len : need;
        r->n_chain++;
        r->n_seg += chain.n;
        r->room += chain.len;
    }
    return PVS_DROP_none;
}

enum pvs_drop
pvs_guest_rx_deliver(struct pvs_ring *ring, struct pvs_pieces *pieces, struct pvs_seg *scratch, enum pvs_broken *broken)
{
    struct pvs_vq *vq = &ring->vq;
    uint32_t need = vq->header_len + pieces->len;
    struct reservation r;

    enum pvs_drop drop = reserve(vq, need, scratch, &r, broken);
    if (drop != PVS_DROP_none)
        return drop;

    struct pvs_cursor c = { .seg = scratch, .n = r.n_seg };
    pieces->header.num_buffers = (uint16_t)r.n_chain;
    pvs_piece_write(pieces, &c, vq->header_len);

    pvs_split_take(vq, r.n_chain);
    for (uint32_t i = 0, left = need; i < r.n_chain; i++) {
        uint32_t part = r.chain[i].room < left ? r.chain[i].room : left;
        pvs_split_give(vq, r.chain[i].head, part);
        left -= part;
    }
    pvs_count(&ring->packets, 1);
    pvs_count(&ring->bytes, pieces->len);
    return PVS_DROP_none;
}
