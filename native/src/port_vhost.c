/* SPDX-License-Identifier: Apache-2.0 */
/* port_vhost.c - see port_vhost.h for how it works and who may call it. */
#include "port_vhost.h"

#include <sched.h>

#include "copy.h"
#include "virtqueue_any.h"

/* How often a taken lock is looked at before the holder is given the processor: it may have been preempted. */
enum { LOCK_SPINS = 256 };
/* Chains that reserve_plain puts together: a 64 KiB frame takes 17 of 4 KiB. */
enum { PLAIN_CHAINS = 64 };
/* Bytes of a frame's tail that are fetched early, and when it is copied soon; the processor goes on by itself. */
enum { EARLY = 1024, SOON = 256 };

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

/* ---- from a guest ---- */

/* The region that was used last, with its index; an empty one when there is none. */
static inline struct pvs_span
last_region(const struct pvs_vq *vq, uint32_t *region)
{
    *region = vq->region_hint;
    return vq->region_hint < vq->memory->n ? vq->memory->spans[vq->region_hint] : (struct pvs_span){ 0 };
}

/* Header and head, copied out; what is left of the segments is the tail. Most frames lie in one segment. */
static inline void
gather(struct pvs_frame *frame, uint32_t header_len, struct virtio_net_hdr *header)
{
    struct pvs_seg *seg = frame->seg;
    uint32_t front = header_len + frame->head_len;

    if (__builtin_expect(seg->len >= front, 1)) {
        memcpy(header, seg->base, VIRTIO_NET_HDR_LEGACY); /* num_buffers says nothing about a sent frame */
        pvs_copy(frame->head, seg->base + header_len, frame->head_len);
        seg->base += front;
        seg->len -= front;
        frame->seg += seg->len == 0;
        frame->n_seg -= seg->len == 0;
        return;
    }
    struct pvs_cursor c = { .seg = seg, .n = frame->n_seg };
    pvs_cursor_read(&c, (uint8_t *)header, header_len);
    pvs_cursor_read(&c, frame->head, frame->head_len);
    frame->seg += frame->n_seg - c.n;
    frame->n_seg = c.n;
    if (c.n != 0) {
        frame->seg->base += c.offset;
        frame->seg->len -= c.offset;
    }
}

/* Have a tail brought into the second level of the cache, while the burst is decided on. */
static inline void
prefetch_early(const struct pvs_seg *seg)
{
    for (uint32_t line = 0; line < EARLY && line < seg->len; line += 64)
        __builtin_prefetch(seg->base + line, 0, 2);
}

/* Turn chains, of which the segments and their length are known, into parsed frames. */
static void
make_frames(const struct pvs_ring *ring, struct pvs_frame *frame, uint32_t n)
{
    uint32_t header_len = ring->vq.header_len, ref = ring->queue.port->ref;
    uint8_t pair = (uint8_t)(ring->queue.index / 2);

    for (const struct pvs_frame *end = frame + n; frame < end; frame++) {
        struct virtio_net_hdr header;
        frame->in_ref = ref;
        frame->pair = pair;
        frame->injected = false;
        if (frame->malformed || frame->len <= header_len || frame->len - header_len > PVS_MAX_FRAME) {
            frame->malformed = true;
            frame->head_len = 0; /* what is in it was another frame's */
            continue;
        }
        frame->len -= header_len;
        frame->head_len = (uint16_t)(frame->len < PVS_HEAD ? frame->len : PVS_HEAD);
        gather(frame, header_len, &header);
        if (frame->n_seg != 0)
            prefetch_early(frame->seg);
        frame->malformed = !pvs_parse(frame) || !pvs_offload_check(frame, &header, ring->offloads);
    }
}

/* Look at chains, at most `max`, without taking them: the segments and the length of each go into its frame. */
PVS_FOR_EACH_FORMAT uint32_t
look_ahead(struct pvs_vq *vq, bool packed, struct pvs_burst *burst, uint32_t max, enum pvs_broken *broken)
{
    uint32_t n = 0, used = 0, walked = 0, region;
    struct pvs_span span = last_region(vq, &region);
    uint16_t at = vq->next_avail;

    for (; n < max && walked <= PVS_ARENA; n++) { /* descriptors cost time even when they carry nothing */
        struct pvs_frame *frame = &burst->frame[n];
        struct pvs_seg *seg = &burst->arena[used];
        frame->seg = seg;
        if (used < PVS_ARENA && pvs_vq_look_plain(vq, packed, at, 0, &span, region, seg, &frame->chain)) {
            at = packed ? pvs_packed_advance(vq, at, 1) : (uint16_t)(at + 1);
            frame->len = seg->len;
            frame->n_seg = 1;
            frame->malformed = false;
            walked++;
        } else {
            struct pvs_chain chain;
            uint32_t cap = PVS_ARENA - used < PVS_MAX_SEGS ? PVS_ARENA - used : PVS_MAX_SEGS;
            if (!pvs_vq_look(vq, at, false, seg, cap, &chain, broken))
                break;
            if (chain.truncated && cap < PVS_MAX_SEGS)
                break; /* a chain that only the rest of the arena was too small for waits for the next burst */
            at = chain.next;
            frame->chain = chain.id;
            frame->len = chain.len < UINT32_MAX ? (uint32_t)chain.len : UINT32_MAX;
            frame->n_seg = chain.n;
            frame->malformed = chain.wrong_direction || chain.truncated;
            walked += chain.walked;
            span = last_region(vq, &region);
        }
        burst->next[n] = at;
        used += frame->n_seg;
        if (frame->n_seg != 0) {
            __builtin_prefetch(seg->base);
            __builtin_prefetch(seg->base + 64);
        }
    }
    return n;
}

uint32_t
pvs_guest_tx_fetch(struct pvs_ring *ring, struct pvs_burst *burst, enum pvs_broken *broken)
{
    struct pvs_vq *vq = &ring->vq;
    uint32_t n = pvs_vq_expect(vq, PVS_BURST, broken);

    /* in passes, so that the cache misses of a burst overlap: ids, descriptors, then headers */
    if (n != 0)
        n = vq->packed ? look_ahead(vq, true, burst, n, broken) : look_ahead(vq, false, burst, n, broken);
    make_frames(ring, burst->frame, n);
    return n;
}

void
pvs_guest_tx_finish(struct pvs_ring *ring, const struct pvs_burst *burst, uint32_t n)
{
    struct pvs_vq *vq = &ring->vq;

    pvs_vq_take(vq, burst->next[n - 1]);
    if (vq->in_order) {
        pvs_vq_give_batch(vq, burst->frame[n - 1].chain, burst->next[n - 1], n);
        return;
    }
    /* a transmit chain has nothing written into it */
    if (vq->packed)
        for (uint32_t i = 0; i < n; i++)
            pvs_packed_give(vq, burst->frame[i].chain, burst->next[i], 0);
    else
        for (uint32_t i = 0; i < n; i++)
            pvs_split_give(vq, burst->frame[i].chain, 0);
}

/* ---- to a guest ---- */

/* Find room for `need` bytes from position *at on, which is moved behind it. Nothing is taken off the ring. */
static enum pvs_drop
reserve(struct pvs_vq *vq, uint16_t *at, uint32_t need, struct pvs_landing *l, enum pvs_broken *broken)
{
    uint32_t n_chain = l->n_chain, n_seg = l->n_seg, walked = 0;
    uint64_t room = 0;
    uint16_t here = *at;

    while (room < need) {
        struct pvs_chain chain;
        uint32_t cap = PVS_MAX_SEGS - (n_seg - l->n_seg);
        if (cap == 0 || walked >= PVS_MAX_SEGS) /* descriptors cost time even when they have no room */
            return PVS_DROP_guest_rx_too_small;
        if (!pvs_vq_look(vq, here, true, l->seg + n_seg, cap, &chain, broken))
            return PVS_DROP_guest_rx_full;
        walked += chain.walked;
        if (chain.wrong_direction)
            *broken = PVS_BROKEN_RX_READABLE;
        else if (!chain.truncated && chain.len < vq->header_len)
            *broken = PVS_BROKEN_RX_TINY;
        if (*broken != PVS_BROKEN_NONE)
            return PVS_DROP_guest_rx_full;
        if ((!vq->mrg_rxbuf || chain.truncated) && room + chain.len < need)
            return PVS_DROP_guest_rx_too_small;
        l->chain[n_chain].id = chain.id;
        l->chain[n_chain].next = here = chain.next;
        l->chain[n_chain].room = chain.len < need ? (uint32_t)chain.len : need;
        n_chain++;
        n_seg += chain.n;
        room += chain.len;
    }
    l->n_chain = n_chain;
    l->n_seg = n_seg;
    *at = here;
    return PVS_DROP_none;
}

/* Take `n` chains that were reserved, from `first` on, and give them back with `need` bytes in them. */
static inline void
give(struct pvs_vq *vq, const struct pvs_landing *l, uint32_t first, uint32_t n, uint32_t need)
{
    for (uint32_t i = first; i < first + n; i++) {
        uint32_t part = l->chain[i].room < need ? l->chain[i].room : need;
        pvs_vq_give(vq, l->chain[i].id, l->chain[i].next, part);
        need -= part;
    }
    pvs_vq_take(vq, l->chain[first + n - 1].next);
}

enum pvs_drop
pvs_guest_rx_deliver(struct pvs_ring *ring, struct pvs_pieces *pieces, struct pvs_landing *l, enum pvs_broken *broken)
{
    struct pvs_vq *vq = &ring->vq;
    uint32_t need = vq->header_len + pieces->len;
    uint16_t at = vq->next_avail;

    l->n_chain = l->n_seg = 0;
    enum pvs_drop drop = reserve(vq, &at, need, l, broken);
    if (drop != PVS_DROP_none)
        return drop;
    struct pvs_cursor c = { .seg = l->seg, .n = l->n_seg };
    pieces->header.num_buffers = (uint16_t)l->n_chain;
    pvs_piece_write(pieces, &c, vq->header_len);
    give(vq, l, 0, l->n_chain, need);
    pvs_count(&ring->packets, 1);
    pvs_count(&ring->bytes, pieces->len);
    return PVS_DROP_none;
}

/* Copy the tail from segment to segment. */
static void
scatter(const struct pvs_frame *frame, struct pvs_cursor to)
{
    for (uint32_t i = 0; i < frame->n_seg; i++) {
        if (i + 1 < frame->n_seg)
            __builtin_prefetch(frame->seg[i + 1].base);
        pvs_cursor_write(&to, frame->seg[i].base, frame->seg[i].len);
    }
}

/*
 * Write a header, as two words that are made in registers. To copy it would be to read words over fields that have just
 * been written one by one: no store buffer forwards that, and the copy waits until they are in the cache (40 cycles).
 */
static inline void
put_header(uint8_t *to, const struct virtio_net_hdr *h, uint32_t header_len)
{
    *(pvs_u64 *)to = h->flags | (uint64_t)h->gso_type << 8 | (uint64_t)h->hdr_len << 16 | (uint64_t)h->gso_size << 32 |
                     (uint64_t)h->csum_start << 48;
    if (header_len == VIRTIO_NET_HDR_LEGACY)
        *(pvs_u16 *)(to + 8) = h->csum_offset;
    else
        *(pvs_u32 *)(to + 8) = h->csum_offset | (uint32_t)h->num_buffers << 16;
}

/* Write header, head and tail into segments that have room for them. */
static inline void
land(const struct pvs_frame *frame, const struct virtio_net_hdr *header, uint32_t header_len, const struct pvs_seg *seg,
     uint32_t n)
{
    uint32_t front = header_len + frame->head_len;

    if (__builtin_expect(seg->len < front, 0)) {
        struct pvs_cursor c = { .seg = seg, .n = n };
        pvs_cursor_write(&c, (const uint8_t *)header, header_len);
        pvs_cursor_write(&c, frame->head, frame->head_len);
        scatter(frame, c);
        return;
    }
    put_header(seg->base, header, header_len);
    pvs_copy(seg->base + header_len, frame->head, frame->head_len);
    if (frame->n_seg == 0)
        return;
    if (frame->n_seg == 1 && seg->len - front >= frame->seg->len) {
        pvs_copy(seg->base + front, frame->seg->base, frame->seg->len);
        return;
    }
    struct pvs_cursor c = { .seg = seg, .n = n, .offset = front };
    if (front == seg->len)
        c = (struct pvs_cursor){ .seg = seg + 1, .n = n - 1 };
    scatter(frame, c);
}

/*
 * Find room for all of these frames where each has a chain of one descriptor to itself, as most have. False: some has not,
 * and reserve_all is to look closer.
 */
PVS_FOR_EACH_FORMAT bool
reserve_singles(const struct pvs_vq *vq, bool packed, const struct pvs_frame *frames, const uint8_t *number, uint32_t n,
                struct pvs_landing *l)
{
    uint32_t header_len = vq->header_len, region;
    struct pvs_span span = last_region(vq, &region);
    uint16_t at = vq->next_avail;

    if (!packed && (uint16_t)(vq->seen_avail - at) < n)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        struct pvs_seg *seg = &l->seg[i];
        uint32_t need = header_len + frames[number[i]].len;
        if (!pvs_vq_look_plain(vq, packed, at, VRING_DESC_F_WRITE, &span, region, seg, &l->chain[i].id) ||
            seg->len < need)
            return false;
        at = packed ? pvs_packed_advance(vq, at, 1) : (uint16_t)(at + 1);
        l->chain[i].next = at;
        l->chain[i].room = need;
        pvs_prefetch_write(seg->base);
        pvs_prefetch_write(seg->base + 64);
    }
    return true;
}

/* Where in a landing a frame's part begins. */
struct place {
    uint32_t chain, seg;
};

/* One for each frame, and one behind the last. */
struct places {
    struct place at[PVS_BURST + 1];
};

/* As reserve, for chains of one descriptor each in the region that was used last. False: reserve is to try. */
PVS_FOR_EACH_FORMAT bool
reserve_plain(struct pvs_vq *vq, bool packed, const struct pvs_span *span, uint32_t region, uint16_t *at, uint32_t need,
              struct pvs_landing *l)
{
    uint32_t room = 0, n = 0;
    uint16_t here = *at;

    for (; room < need && n < PLAIN_CHAINS && (n == 0 || vq->mrg_rxbuf); n++) {
        struct pvs_seg *seg = &l->seg[l->n_seg + n];
        uint32_t k = l->n_chain + n;
        if ((!packed && here == vq->seen_avail) ||
            !pvs_vq_look_plain(vq, packed, here, VRING_DESC_F_WRITE, span, region, seg, &l->chain[k].id) ||
            seg->len < vq->header_len)
            return false;
        here = packed ? pvs_packed_advance(vq, here, 1) : (uint16_t)(here + 1);
        l->chain[k].next = here;
        l->chain[k].room = seg->len < need ? seg->len : need;
        room += l->chain[k].room; /* no more than PLAIN_CHAINS times a frame's size */
        pvs_prefetch_write(seg->base);
        pvs_prefetch_write(seg->base + 64);
    }
    if (room < need)
        return false;
    l->n_chain += n;
    l->n_seg += n;
    *at = here;
    return true;
}

/* Find room for frames, from `first` on, until all have it (or none is to be had) or the landing is full. How far it got. */
PVS_FOR_EACH_FORMAT uint32_t
reserve_all(struct pvs_vq *vq, bool packed, const struct pvs_frame *frames, const uint8_t *number, uint32_t first,
            uint32_t n, struct pvs_landing *l, struct places *places, uint16_t *at, struct pvs_delivery *d)
{
    uint32_t i = first, header_len = vq->header_len, region;
    struct pvs_span span = last_region(vq, &region);

    for (; i < n && l->n_seg <= PVS_LANDING - PVS_MAX_SEGS; i++) {
        uint32_t need = header_len + frames[number[i]].len;
        enum pvs_drop drop = PVS_DROP_none;
        places->at[i] = (struct place){ l->n_chain, l->n_seg };
        if (d->broken != PVS_BROKEN_NONE || !reserve_plain(vq, packed, &span, region, at, need, l)) {
            drop = d->broken != PVS_BROKEN_NONE ? PVS_DROP_guest_rx_full : reserve(vq, at, need, l, &d->broken);
            d->dropped |= drop != PVS_DROP_none;
            span = last_region(vq, &region);
        }
        d->drop[i] = (uint8_t)drop;
    }
    places->at[i] = (struct place){ l->n_chain, l->n_seg };
    return i;
}

/* Fetch what frames that are written soon have behind their heads. */
static inline void
prefetch_tail(const struct pvs_frame *frame)
{
    if (frame->n_seg != 0)
        for (uint32_t line = 0; line < SOON; line += 64)
            __builtin_prefetch(frame->seg->base + line);
}

/* As land_all, after reserve_singles. */
PVS_FOR_EACH_FORMAT void
land_singles(struct pvs_vq *vq, bool packed, const struct pvs_frame *frames, const uint8_t *number, uint32_t n,
             const struct pvs_landing *l, struct pvs_delivery *d)
{
    uint32_t header_len = vq->header_len;
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct pvs_frame *frame = &frames[number[i]];
        uint8_t *to = l->seg[i].base;
        struct virtio_net_hdr header = { .num_buffers = 1 };
        if (i + 2 < n)
            prefetch_tail(&frames[number[i + 2]]);
        if (frame->request.checksum) {
            header = pvs_request_header(&frame->request);
            header.num_buffers = 1;
        }
        put_header(to, &header, header_len);
        pvs_copy(to + header_len, frame->head, frame->head_len);
        if (frame->n_seg == 1)
            pvs_copy(to + header_len + frame->head_len, frame->seg->base, frame->seg->len);
        else if (frame->n_seg != 0)
            scatter(frame, (struct pvs_cursor){ .seg = &l->seg[i], .n = 1, .offset = header_len + frame->head_len });
        if (packed)
            pvs_packed_give(vq, l->chain[i].id, l->chain[i].next, l->chain[i].room);
        else
            pvs_split_give(vq, l->chain[i].id, l->chain[i].room);
        bytes += frame->len;
    }
    pvs_vq_take(vq, l->chain[n - 1].next);
    d->packets += n;
    d->bytes += bytes;
}

/* Write the frames numbered number[first] to number[end - 1] that have room, and give their chains back. */
static void
land_all(struct pvs_vq *vq, const struct pvs_frame *frames, const uint8_t *number, uint32_t first, uint32_t end,
         const struct pvs_landing *l, const struct places *places, struct pvs_delivery *d)
{
    uint32_t header_len = vq->header_len;

    for (uint32_t i = first; i < end; i++) {
        const struct pvs_frame *frame = &frames[number[i]];
        const struct place *place = &places->at[i];
        if (i + 2 < end)
            prefetch_tail(&frames[number[i + 2]]);
        if (d->drop[i] != PVS_DROP_none)
            continue;
        uint32_t n = place[1].chain - place->chain;
        struct virtio_net_hdr header = pvs_request_header(&frame->request);
        header.num_buffers = (uint16_t)n;
        land(frame, &header, header_len, l->seg + place->seg, place[1].seg - place->seg);
        give(vq, l, place->chain, n, header_len + frame->len);
        d->packets++;
        d->bytes += frame->len;
    }
}

/* What pvs_guest_rx_deliver_whole is, for one format. */
PVS_FOR_EACH_FORMAT void
deliver_whole(struct pvs_vq *vq, bool packed, const struct pvs_frame *frames, const uint8_t *number, uint32_t n,
              struct pvs_landing *l, struct pvs_delivery *d)
{
    struct places places;
    uint16_t at = vq->next_avail;

    pvs_vq_expect(vq, n, &d->broken);
    if (reserve_singles(vq, packed, frames, number, n, l)) {
        land_singles(vq, packed, frames, number, n, l, d);
        return;
    }
    for (uint32_t first = 0, end; first < n; first = end) {
        l->n_chain = l->n_seg = 0;
        end = reserve_all(vq, packed, frames, number, first, n, l, &places, &at, d);
        land_all(vq, frames, number, first, end, l, &places, d);
    }
}

void
pvs_guest_rx_deliver_whole(struct pvs_ring *ring, const struct pvs_frame *frames, const uint8_t *number, uint32_t n,
                           struct pvs_landing *l, struct pvs_delivery *d)
{
    struct pvs_vq *vq = &ring->vq;

    d->packets = 0;
    d->bytes = 0;
    d->dropped = false;
    d->broken = PVS_BROKEN_NONE;
    if (vq->packed)
        deliver_whole(vq, true, frames, number, n, l, d);
    else
        deliver_whole(vq, false, frames, number, n, l, d);
    pvs_count(&ring->packets, d->packets);
    pvs_count(&ring->bytes, d->bytes);
}
