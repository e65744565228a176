/* SPDX-License-Identifier: Apache-2.0 */
/* tunnel.c - see tunnel.h. */
#include "tunnel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool
is_in(const uint16_t *sorted, uint32_t n, uint16_t number)
{
    uint32_t from = 0;

    while (from < n) {
        uint32_t middle = from + (n - from) / 2;
        if (sorted[middle] == number)
            return true;
        if (sorted[middle] < number)
            from = middle + 1;
        else
            n = middle;
    }
    return false;
}

bool
pvs_tunnel_takes(struct pvs_tunnel *tunnel, struct pvs_segment *segment, uint16_t vtep)
{
    if (tunnel->learning)
        return true;
    const struct pvs_remotes *r = pvs_segment_remotes(segment);
    return r != NULL && vtep != 0 && is_in(r->vtep + r->n_flood, r->n_known, vtep);
}

/* ---- an endpoint's networks ---- */

static uint32_t
place_of(const struct pvs_demux *demux, uint64_t vni)
{
    return (uint32_t)(vni * 0x9e3779b97f4a7c15ULL >> 32) & demux->mask;
}

const struct pvs_network_entry *
pvs_demux_find(const struct pvs_demux *demux, uint64_t vni)
{
    for (uint32_t i = place_of(demux, vni);; i = (i + 1) & demux->mask) {
        const struct pvs_network_entry *e = &demux->entry[i];
        if (e->tunnel == NULL)
            return NULL;
        if (e->vni == vni)
            return e;
    }
}

struct pvs_demux *
pvs_demux_create(struct pvs_port *endpoint, uint32_t n)
{
    uint32_t places = 16;

    while (places < 2 * n)
        places *= 2;
    struct pvs_demux *d = calloc(1, sizeof *d + places * sizeof d->entry[0]);
    if (d != NULL) {
        d->endpoint = endpoint;
        d->mask = places - 1;
    }
    return d;
}

int
pvs_demux_add(struct pvs_demux *demux, const struct pvs_network_entry *entry)
{
    uint32_t i = place_of(demux, entry->vni);

    for (; demux->entry[i].tunnel != NULL; i = (i + 1) & demux->mask)
        if (demux->entry[i].vni == entry->vni)
            return -EEXIST;
    demux->entry[i] = *entry;
    return 0;
}

/* ---- control's side ---- */

int
pvs_tunnel_check(const struct pvs_tunnel_conf *conf)
{
    bool mapped = conf->n_segments != 0 && conf->segments[0].vid != PVS_UNMAPPED;

    if (conf->kind > PVS_GRE || conf->endpoint == NULL || conf->n_sockets == 0 || conf->n_sockets > PVS_MAX_SOURCES ||
        conf->n_segments == 0 || conf->n_segments >= PVS_VLANS - 1 || conf->tos > 255 ||
        (!mapped && conf->n_segments != 1) || (conf->no_key && (conf->kind != PVS_GRE || mapped)))
        return -EINVAL;
    for (uint32_t i = 0; i < conf->n_segments; i++) {
        const struct pvs_segment_conf *s = &conf->segments[i];
        if ((conf->kind != PVS_GRE && s->vni >> 24 != 0) || (mapped && (s->vid == 0 || s->vid >= PVS_VLANS - 1)))
            return -EINVAL;
    }
    return 0;
}

/* -EINVAL: two segments have the same VLAN. */
static int
map_vlans(struct pvs_tunnel *t)
{
    t->by_vid = malloc(PVS_VLANS * sizeof *t->by_vid);
    if (t->by_vid == NULL)
        return -ENOMEM;
    memset(t->by_vid, 0xff, PVS_VLANS * sizeof *t->by_vid); /* PVS_NO_SEGMENT */
    for (uint32_t i = 0; i < t->n_segments; i++) {
        uint16_t *place = &t->by_vid[t->segment[i].vid];
        if (*place != PVS_NO_SEGMENT)
            return -EINVAL;
        *place = (uint16_t)i;
    }
    return 0;
}

int
pvs_tunnel_make(struct pvs_switch *sw, const struct pvs_tunnel_conf *conf, struct pvs_tunnel **out)
{
    struct pvs_tunnel *t = calloc(1, sizeof *t + conf->n_segments * sizeof t->segment[0]);
    int rc = 0;

    if (t == NULL)
        return -ENOMEM;
    t->sw = sw;
    t->endpoint = conf->endpoint;
    t->kind = (enum pvs_tunnel_kind)conf->kind;
    t->ipv6 = conf->ipv6;
    t->learning = conf->learning;
    t->too_big = conf->too_big;
    t->tos = conf->tos;
    t->dst_port = conf->dst_port;
    t->n_sockets = conf->n_sockets;
    memcpy(t->socket, conf->sockets, conf->n_sockets * sizeof t->socket[0]);
    /* a raw socket takes no notice of UDP_SEGMENT: all would leave as one packet */
    atomic_store_explicit(&t->segmentation, conf->segmentation && t->kind != PVS_GRE, memory_order_relaxed);
    t->n_segments = conf->n_segments;
    for (uint32_t i = 0; i < conf->n_segments; i++) {
        t->segment[i].vni = conf->no_key ? PVS_NO_KEY : conf->segments[i].vni;
        t->segment[i].vid = conf->segments[i].vid;
    }
    if (t->segment[0].vid != PVS_UNMAPPED)
        rc = map_vlans(t);
    if (rc != 0)
        pvs_tunnel_free(t);
    else
        *out = t;
    return rc;
}

void
pvs_tunnel_free(struct pvs_tunnel *t)
{
    for (uint32_t i = 0; i < t->n_segments; i++)
        free(atomic_load_explicit(&t->segment[i].remotes, memory_order_relaxed));
    free(t->by_vid);
    free(t);
}

static int
compare_numbers(const void *a, const void *b)
{
    return *(const uint16_t *)a - *(const uint16_t *)b;
}

struct pvs_remotes *
pvs_remotes_make(const uint16_t *flood, uint32_t n_flood, const uint16_t *others, uint32_t n_others)
{
    uint32_t n = n_flood + n_others;
    struct pvs_remotes *r = malloc(sizeof *r + (n_flood + n) * sizeof r->vtep[0]);

    if (r == NULL)
        return NULL;
    r->n_flood = n_flood;
    r->n_known = n;
    uint16_t *known = r->vtep + n_flood;
    if (n_flood != 0) {
        memcpy(r->vtep, flood, n_flood * sizeof r->vtep[0]);
        memcpy(known, flood, n_flood * sizeof r->vtep[0]);
    }
    if (n_others != 0)
        memcpy(known + n_flood, others, n_others * sizeof r->vtep[0]);
    if (n != 0)
        qsort(known, n, sizeof known[0], compare_numbers);
    return r;
}
