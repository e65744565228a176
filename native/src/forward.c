/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forward.c - from a frame to its copies: decide, deliver, commit (steps 4 and 5 of docs/walk-of-a-frame.md).
 *
 * pvs_decide says what should happen and changes nothing; this file makes it happen, frame by frame in order. Copies are
 * delivered, or put on a list to be written at the end of the burst, before effects are committed: a frame that has to wait
 * for its receiver leaves no trace, and is decided on anew when it is tried again.
 * Called by the worker's round and by the inject command.
 */
#include "effects.h"
#include "parse.h"

bool
pvs_allow(struct pvs_allowance *allowance, uint32_t now_s, uint32_t limit)
{
    if (allowance->second != now_s)
        *allowance = (struct pvs_allowance){ .second = now_s };
    if (allowance->used >= limit)
        return false;
    allowance->used++;
    return true;
}

static struct pvs_counters *
counters_of(const struct pvs_worker *w, const struct pvs_port *port)
{
    return port->counters[w->index];
}

/* ---- what came from a port ---- */

/* Frames of one port, not yet in its counters: most of a burst differ in nothing that is counted one by one. */
struct tally {
    uint64_t packets, bytes, broadcast, multicast;
    uint32_t size[PVS_SIZE_BINS];
};

/* Add frames to the same destination, or one that is malformed. */
static inline void
tally_add(struct pvs_worker *w, const struct pvs_port *port, struct tally *t, const struct pvs_frame *frame, uint32_t n)
{
    if (frame->malformed) {
        pvs_drop_rx(w, port, frame, PVS_DROP_malformed, 1);
        return;
    }
    t->packets += n;
    if (pvs_mac_is_group(frame->parsed.dst)) {
        t->broadcast += frame->parsed.dst == PVS_MAC_BROADCAST ? n : 0;
        t->multicast += frame->parsed.dst != PVS_MAC_BROADCAST ? n : 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        t->bytes += frame[i].len;
        t->size[pvs_size_bin(frame[i].len)]++;
    }
}

static void
tally_count(struct pvs_worker *w, const struct pvs_port *port, const struct tally *t)
{
    struct pvs_counters *c = counters_of(w, port);

    pvs_count(&c->value[PVS_C_rx_packets], t->packets);
    pvs_count(&c->value[PVS_C_rx_bytes], t->bytes);
    for (uint32_t i = 0; i < PVS_SIZE_BINS; i++)
        if (t->size[i] != 0)
            pvs_count(&c->value[PVS_C_rx_1_to_64_packets + i], t->size[i]);
    if (t->broadcast != 0)
        pvs_count(&c->value[PVS_C_rx_broadcast_packets], t->broadcast);
    if (t->multicast != 0)
        pvs_count(&c->value[PVS_C_rx_multicast_packets], t->multicast);
}

static void
count_vlan(const struct pvs_worker *w, struct pvs_vlan_counters *counted, uint16_t vid, uint64_t packets,
           uint64_t bytes)
{
    pvs_count(&counted->of[w->index][vid].packets, packets);
    pvs_count(&counted->of[w->index][vid].bytes, bytes);
}

/* Count a frame in the VLAN that it came into. One that was not decided on came by a plain port. */
static void
count_one(const struct pvs_worker *w, struct pvs_vlan_counters *counted, const struct pvs_frame *frame, bool decided)
{
    enum pvs_drop drop = decided ? (enum pvs_drop)w->verdict.drop : PVS_DROP_none;

    if (drop != PVS_DROP_vlan_filtered && drop != PVS_DROP_link_down && drop != PVS_DROP_mirror_output)
        count_vlan(w, counted, decided ? w->verdict.place.vid : frame->parsed.vid, 1, frame->len);
}

void
pvs_drop_received(struct pvs_worker *w, const struct pvs_port *port, const struct pvs_frame *frame, uint32_t n,
                  enum pvs_drop why)
{
    struct tally t = { 0 };

    for (uint32_t i = 0; i < n; i++) {
        tally_add(w, port, &t, &frame[i], 1);
        if (!frame[i].malformed)
            pvs_drop_rx(w, port, &frame[i], why, 1);
        pvs_saw_dropped(w, &frame[i], frame[i].malformed ? PVS_DROP_malformed : why);
    }
    tally_count(w, port, &t);
    w->taken_packets = t.packets;
    w->taken_bytes = t.bytes;
}

/* What a verdict does besides sending copies. */
static inline void
commit(struct pvs_worker *w, struct pvs_port *in, const struct pvs_frame *frame, const struct pvs_verdict *v)
{
    if (!pvs_one_pair(in) && !frame->injected)
        pvs_steer_note(&in->steering, frame);
    if (v->punt)
        pvs_punt_frame(w, frame, v->place.vid, PVS_PUNT_BPDU);
    if (v->learn)
        pvs_learn(w, frame, v);
    if (v->policed || v->storm != 0)
        pvs_charge(w, frame, v);
    if (v->probes != 0)
        pvs_count_flow(w, frame, v);
    if (v->drop != PVS_DROP_none && !frame->injected)
        pvs_drop_rx(w, in, frame, (enum pvs_drop)v->drop, 1);
}

/* ---- bursts ---- */

/*
 * Find the places of a burst's destinations, and have what a large FDB knows of its addresses brought into the cache: first
 * buckets, then their entries. An address that the frame before had as well is not looked for again.
 */
static void
find_places(struct pvs_worker *w, const struct pvs_fdb *fdb, const struct pvs_vlan *rules, uint32_t n)
{
    struct pvs_fdb_place place = { 0 }, source[PVS_BURST];
    uint64_t dst = UINT64_MAX, src = UINT64_MAX;
    uint32_t n_sources = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct pvs_parsed *p = &w->source[i].parsed;
        if (w->source[i].malformed)
            continue; /* it isn't looked for */
        uint16_t vid = pvs_vlan_of(rules, p);
        if (pvs_key(p->dst, vid) != dst) {
            dst = pvs_key(p->dst, vid);
            place = pvs_fdb_place(fdb, p->dst, vid);
        }
        w->place[i] = place;
        if (pvs_key(p->src, vid) != src) {
            src = pvs_key(p->src, vid);
            source[n_sources++] = pvs_fdb_place(fdb, p->src, vid);
        }
    }
    for (uint32_t i = 0; i < n; i++)
        if (!w->source[i].malformed)
            pvs_fdb_prefetch(fdb, &w->place[i]);
    for (uint32_t i = 0; i < n_sources; i++)
        pvs_fdb_prefetch(fdb, &source[i]);
}

/*
 * Decide on frame number `i` of the burst and deliver its copies. False: it has to wait, and nothing was committed.
 * *source is the key of one that the FDB knows to be there (0: none), before and after.
 */
static inline bool
forward_one(struct pvs_worker *w, uint32_t i, struct pvs_queue *from, uint64_t *source)
{
    const struct pvs_tables *tables = w->tables;
    const struct pvs_frame *frame = &w->source[i];
    struct pvs_verdict *v = &w->verdict;

    uint64_t key = pvs_key(frame->parsed.src, frame->parsed.vid);

    struct pvs_moment now = { .ns = w->now_ns, .s = w->now_s, .worker = w->index };
    pvs_decide(frame, tables, now, key == *source && *source != 0, v);
    for (uint32_t k = 0; k < v->n_egress; k++) {
        const struct pvs_port_view *out = &tables->port[v->egress[k].port];
        if (v->egress[k].drop != PVS_DROP_none)
            pvs_drop_copy(w, frame, &v->egress[k]);
        else if (!pvs_deliver_in_burst(w, out, i, &v->egress[k], (k | v->known) == 0 ? from : NULL))
            return false;
    }
    commit(w, tables->port[pvs_ref_index(frame->in_ref)].port, frame, v);
    *source = v->learn || v->drop != PVS_DROP_none ? 0 : key;
    return true;
}

/*
 * Where the last frame went, for those behind it in the same VLAN between the same two addresses: by the lists of guests with
 * one queue pair each, to one of them, or (a flood) as it came to all that have a list; and it changed nothing. Then so do they,
 * whatever other workers learn meanwhile: a burst is one moment.
 */
struct way {
    uint64_t dst, src, shape;
    uint32_t longest;     /* what fits the smallest MTU that is enforced */
    uint32_t n;           /* lists; 0 = there is no such frame */
    uint16_t vid;         /* the VLAN */
    struct pvs_edit edit; /* not nothing: the one list has frames that were edited so */
    struct pvs_destination *first;
};

/* Which tags and what protocol a frame has, as one number. */
static inline uint64_t
shape_of(const struct pvs_parsed *p)
{
    uint64_t shape;

    _Static_assert(sizeof *p - offsetof(struct pvs_parsed, ethertype) == sizeof shape, "all behind the addresses");
    memcpy(&shape, &p->ethertype, sizeof shape);
    return shape;
}

static inline bool
goes_same_way(const struct way *way, const struct pvs_frame *frame)
{
    /* no checksum to be filled in, so it isn't to be cut either */
    return !frame->malformed && frame->parsed.dst == way->dst && frame->parsed.src == way->src &&
           shape_of(&frame->parsed) == way->shape && !frame->request.checksum && frame->len <= way->longest;
}

/* How many frames from number `i` on go the same way, within the budget, which their copies are taken from. */
static inline uint32_t
count_same_way(struct pvs_worker *w, const struct way *way, uint32_t i, uint32_t n)
{
    uint64_t room = (PVS_BUDGET - w->spent) / way->n, spent = 0;
    uint32_t end = i;

    for (; end < n && spent < room && goes_same_way(way, &w->source[end]); end++)
        spent += pvs_copy_cost(&w->source[end]);
    w->spent += spent * way->n;
    return end - i;
}

/* Put the frames from number `i` on that go the same way on its list, edited; as many as there is room for. */
static __attribute__((noinline)) uint32_t
go_same_way_edited(struct pvs_worker *w, const struct way *way, uint32_t i, uint32_t n)
{
    uint32_t room = PVS_EDITED - w->edited.n;
    uint32_t same = count_same_way(w, way, i, n - i < room ? n : i + room);
    struct pvs_destination *d = way->first;

    for (uint32_t number = i; number < i + same; number++)
        d->number[d->n++] = (uint8_t)pvs_edited(w, number, 0, &way->edit);
    return same;
}

/* Put the frames from number `i` on that go the same way on its lists. How many they are. */
static inline uint32_t
go_same_way(struct pvs_worker *w, const struct way *way, uint32_t i, uint32_t n)
{
    if (!pvs_edit_is_nothing(&way->edit))
        return go_same_way_edited(w, way, i, n);
    uint32_t same = count_same_way(w, way, i, n);
    for (uint32_t k = 0; k < way->n; k++)
        for (uint32_t number = i; number < i + same; number++)
            way->first[k].number[way->first[k].n++] = (uint8_t)number;
    return same;
}

/*
 * Put a frame on the list that the FDB names: its source is known to be there, and what leaves by this list is subject to
 * nothing but the MTU. NULL: it has to be decided on. Some frames of this burst went there already, by the long way.
 */
static inline struct pvs_destination *
go_directly(struct pvs_worker *w, const struct pvs_fdb *fdb, uint32_t i, uint64_t source)
{
    const struct pvs_frame *frame = &w->source[i];

    if (pvs_key(frame->parsed.src, frame->parsed.vid) != source || source == 0 || pvs_mac_is_group(frame->parsed.dst) ||
        frame->request.checksum)
        return NULL;
    struct pvs_fdb_hit hit = w->places_found ? pvs_fdb_find_at(fdb, &w->place[i], w->now_s)
                                             : pvs_fdb_find(fdb, frame->parsed.dst, frame->parsed.vid, w->now_s);
    struct pvs_destination *d = pvs_destination_of(w, (uint16_t)pvs_ref_index((uint32_t)hit.at));
    if (hit.state == PVS_FDB_UNKNOWN || d == NULL || d->direct != (uint32_t)hit.at || d->base != w->source ||
        !pvs_fits_mtu(frame, d->mtu))
        return NULL;
    pvs_destination_add(w, d, i);
    return d;
}

/* The way of a frame by a list, or several. */
static inline struct way
way_of(const struct pvs_frame *frame, uint16_t vid, uint32_t mtu, uint32_t n, struct pvs_destination *first)
{
    return (struct way){ .dst = frame->parsed.dst,
                         .src = frame->parsed.src,
                         .shape = shape_of(&frame->parsed),
                         .longest = mtu == 0 ? UINT32_MAX : mtu + frame->parsed.l3_offset,
                         .n = n,
                         .vid = vid,
                         .first = first };
}

/* Does a list end in frame number `i`, as it came or edited as each one of its shape is? */
static bool
ends_in(const struct pvs_worker *w, const struct pvs_destination *d, uint32_t i, const struct pvs_edit *edit)
{
    const struct pvs_edited *e = &w->edited;

    if (d == NULL || d->n == 0)
        return false;
    if (pvs_edit_is_nothing(edit))
        return d->base == w->source && d->number[d->n - 1] == i;
    /* a tag that is put in the place of another keeps that one's priority */
    return d->base == e->frame && e->n != 0 && d->number[d->n - 1] == e->n - 1 && !(edit->cut != 0 && edit->push);
}

/* Frame number `i` has been forwarded: is it one of those that others can follow? */
static void
note_way(struct pvs_worker *w, struct way *way, uint32_t i)
{
    const struct pvs_verdict *v = &w->verdict;
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(w->source[i].in_ref)];
    const struct pvs_edit *edit = NULL;
    uint32_t mtu = 0;

    way->n = 0;
    if (v->n_egress == 0 || v->learn || v->punt || !pvs_one_pair(in->port) || !in->steady ||
        (v->n_egress != 1 && v->n_egress != w->n_destinations))
        return;
    for (uint32_t k = 0; k < v->n_egress; k++) {
        const struct pvs_port_view *out = &w->tables->port[v->egress[k].port];
        edit = pvs_verdict_edit(v, v->egress[k].form);
        if (v->egress[k].drop != PVS_DROP_none || !pvs_one_pair(out->port) || !out->steady ||
            !ends_in(w, pvs_destination_of(w, v->egress[k].port), i, edit) ||
            (v->n_egress != 1 && !pvs_edit_is_nothing(edit)))
            return;
        if (out->mtu != 0 && (mtu == 0 || out->mtu < mtu))
            mtu = out->mtu;
    }
    *way = way_of(&w->source[i], v->place.vid, mtu, v->n_egress,
                  v->n_egress == 1 ? pvs_destination_of(w, v->egress[0].port) : w->destination);
    way->edit = *edit;
}

/*
 * Forward the frames of the burst from number `done` on, before number `n`, of which nobody wants to hear one by one. Where it ended:
 * earlier, if the budget is spent or one has to wait.
 */
static inline uint32_t
forward_unseen(struct pvs_worker *w, const struct pvs_port *port, struct pvs_queue *from, uint32_t done, uint32_t n,
               struct tally *t, bool *waiting)
{
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(port->ref)];
    const struct pvs_bridge_view *bridge = &w->tables->bridge[in->bridge];
    const struct pvs_fdb *fdb = bridge->fdb;
    struct pvs_vlan_counters *counted = bridge->counted;
    const struct pvs_frame *frame = w->source;
    /* no rule is to be obeyed, and no queue pair noted for what it sends */
    bool plain = pvs_one_pair(port) && in->plain;
    struct way way = { 0 };
    uint64_t source = 0;

    while (done < n && w->spent < PVS_BUDGET) {
        const struct pvs_frame *f = &frame[done];
        uint32_t same = way.n != 0 ? go_same_way(w, &way, done, n) : 0;
        struct pvs_destination *d = NULL;
        if (same != 0) {
            uint64_t before = t->bytes;
            tally_add(w, port, t, f, same);
            if (counted != NULL)
                count_vlan(w, counted, way.vid, same, t->bytes - before);
            done += same;
            continue;
        }
        if (f->malformed) {
            /* it is counted, and goes nowhere; one that waited half delivered may have become one */
            from->progress.done = 0;
        } else if (plain && (d = go_directly(w, fdb, done, source)) != NULL) {
            if (done + 1 < n && f[1].parsed.dst == f->parsed.dst)
                way = way_of(f, f->parsed.vid, d->mtu, 1, d);
        } else if (forward_one(w, done, from, &source)) {
            way.n = 0; /* it may have changed what the FDB says, or broken a receiver */
            if (done + 1 < n && f[1].parsed.dst == f->parsed.dst)
                note_way(w, &way, done);
            from->progress.done = 0; /* it was the frame's that has left */
        } else {
            *waiting = true;
            break;
        }
        tally_add(w, port, t, f, 1);
        if (counted != NULL && !f->malformed)
            count_one(w, counted, f, d == NULL);
        done++;
    }
    return done;
}

/*
 * The list that frame number `i` has gone to, if whatever has its key goes there as well; NULL: it must be decided on. Meters and edits
 * want each frame, and of what came by a tunnel the key has only the network.
 */
static struct pvs_destination *
list_of_key(struct pvs_worker *w, uint32_t i)
{
    const struct pvs_verdict *v = &w->verdict;
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(w->source[i].in_ref)];
    const struct pvs_port_view *out = &w->tables->port[v->egress[0].port];

    if (v->n_egress != 1 || v->egress[0].drop != PVS_DROP_none || v->learn || v->punt || v->placed != 0 ||
        (v->flow != PVS_NO_FLOW && (v->n_meters != 0 || v->over != 0)))
        return NULL;
    if (in->tunnel != NULL || !in->steady || !out->steady || !pvs_one_pair(in->port) || !pvs_one_pair(out->port))
        return NULL;
    struct pvs_destination *d = pvs_destination_of(w, v->egress[0].port);
    /* one of frames as they came: edited ones are on lists of their own */
    return d != NULL && d->n != 0 && d->base == w->source && d->number[d->n - 1] == i ? d : NULL;
}

/* Frame number `i` has been forwarded, by flows. Put those behind it that have its key on its list; how many they are. */
static uint32_t
follow(struct pvs_worker *w, const struct pvs_flows *flows, uint32_t i, uint32_t n)
{
    const struct pvs_frame *frame = &w->source[i];
    struct pvs_destination *d = NULL;
    uint32_t same = 0;

    for (; i + same + 1 < n && w->spent < PVS_BUDGET; same++) {
        const struct pvs_frame *next = &frame[same + 1];
        if (next->malformed || next->request.checksum || !pvs_flow_same_key(frame, next, flows->table->depth))
            break;
        if (d == NULL && (d = list_of_key(w, i)) == NULL)
            break;
        if (d->n == PVS_BURST || !pvs_fits_mtu(next, d->mtu)) /* flows may have sent several copies of one there */
            break;
        pvs_destination_add(w, d, i + same + 1);
    }
    return same;
}

/* As forward_unseen, on a bridge with flows: what has the key of the frame before goes the same way, anything else is decided on. */
static __attribute__((noinline)) uint32_t
forward_by_flows(struct pvs_worker *w, const struct pvs_port *port, struct pvs_queue *from, uint32_t done, uint32_t n,
                 struct tally *t, bool *waiting)
{
    const struct pvs_bridge_view *bridge = &w->tables->bridge[w->tables->port[pvs_ref_index(port->ref)].bridge];
    uint64_t source = 0;

    while (done < n && w->spent < PVS_BUDGET) {
        const struct pvs_frame *f = &w->source[done];
        if (!f->malformed && !forward_one(w, done, from, &source)) {
            *waiting = true;
            break;
        }
        from->progress.done = 0;
        tally_add(w, port, t, f, 1);
        done++;
        if (f->malformed)
            continue;
        if (bridge->counted != NULL)
            count_one(w, bridge->counted, f, true);
        uint32_t same = follow(w, bridge->flows, done - 1, n);
        if (same == 0)
            continue;
        uint64_t before = t->bytes;
        tally_add(w, port, t, &f[1], same);
        if (bridge->counted != NULL)
            count_vlan(w, bridge->counted, w->verdict.place.vid, same, t->bytes - before);
        if (w->verdict.flow != PVS_NO_FLOW)
            pvs_flow_count(w->flow_counters, w->index, w->verdict.flow, same, t->bytes - before, w->now_ns);
        done += same;
    }
    return done;
}

/* Forward frame number `i` by the long way, and tell captures and the recorder. False: it has to wait. */
static __attribute__((noinline)) bool
forward_seen(struct pvs_worker *w, const struct pvs_port *port, struct pvs_queue *from, uint32_t i)
{
    const struct pvs_frame *frame = &w->source[i];
    struct pvs_vlan_counters *counted = w->tables->bridge[w->tables->port[pvs_ref_index(port->ref)].bridge].counted;
    struct tally t = { 0 };
    uint64_t source = 0;

    if (!frame->malformed && !forward_one(w, i, from, &source))
        return false;
    from->progress.done = 0;
    tally_add(w, port, &t, frame, 1);
    tally_count(w, port, &t);
    w->taken_packets += t.packets;
    w->taken_bytes += t.bytes;
    if (counted != NULL && !frame->malformed)
        count_one(w, counted, frame, true);
    pvs_saw(w, frame);
    return true;
}

/* Flows look at headers that may not be in the frames' heads yet, and must not be changed by a checksum later. */
static __attribute__((noinline)) void
pull_for_flows(const struct pvs_flows *flows, struct pvs_frame *frame, uint32_t n)
{
    bool deep = flows->table->depth != PVS_DEPTH_L2;

    for (uint32_t i = 0; i < n; i++)
        if (!frame[i].malformed && (deep || frame[i].request.checksum))
            pvs_flow_pull(&frame[i]);
}

uint32_t
pvs_forward_burst(struct pvs_worker *w, struct pvs_port *port, struct pvs_queue *from, struct pvs_frame *frame,
                  uint32_t n, bool *waiting)
{
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(port->ref)];
    const struct pvs_bridge_view *bridge = &w->tables->bridge[in->bridge];
    const struct pvs_fdb *fdb = bridge->fdb;
    struct tally t = { 0 };
    uint32_t done = 0;

    *waiting = false;
    if (in->ref != port->ref) { /* the port has left the tables; the queue's stop follows */
        pvs_drop_received(w, port, frame, n, PVS_DROP_link_down);
        return n;
    }
    w->source = frame;
    w->spent = w->taken_packets = w->taken_bytes = 0;
    w->edited.n = w->edited.n_seg = 0;
    if (bridge->flows != NULL)
        pull_for_flows(bridge->flows, frame, n);
    w->places_found = pvs_fdb_is_large(fdb);
    if (w->places_found)
        find_places(w, fdb, in->vlan, n);
    for (;;) {
        uint32_t next = pvs_next_seen(w, in, done, n), before = done;
        if (bridge->flows == NULL)
            done = forward_unseen(w, port, from, done, next, &t, waiting);
        else
            done = forward_by_flows(w, port, from, done, next, &t, waiting);
        w->recorder.left -= done - before;
        if (*waiting || done != next || done == n || w->spent >= PVS_BUDGET)
            break;
        *waiting = !forward_seen(w, port, from, done);
        if (*waiting)
            break;
        done++;
    }
    pvs_deliver_lists(w);
    tally_count(w, port, &t);
    w->taken_packets += t.packets;
    w->taken_bytes += t.bytes;
    return done;
}

void
pvs_forward_injected(struct pvs_worker *w, struct pvs_frame *frame)
{
    const struct pvs_port_view *in = &w->tables->port[pvs_ref_index(frame->in_ref)];
    uint64_t source = 0;

    if (w->tables->bridge[in->bridge].flows != NULL)
        pull_for_flows(w->tables->bridge[in->bridge].flows, frame, 1);
    if (frame->malformed)
        return;
    w->source = frame;
    w->edited.n = w->edited.n_seg = 0;
    forward_one(w, 0, NULL, &source);
    pvs_saw(w, frame);
    pvs_deliver_lists(w);
}
