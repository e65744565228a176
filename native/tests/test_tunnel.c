/* SPDX-License-Identifier: Apache-2.0 */
/* test_tunnel.c - a tunnel's networks and remotes: what control may ask for, and what workers find (tunnel.h). */
#include "tunnel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lab.h"

static pvs_switch *sw;
static pvs_port *endpoint;
static const int sockets[PVS_MAX_SOURCES] = { 5, 6, 7 };
static struct pvs_segment_conf segments[PVS_VLANS];

static void
open_it(void)
{
    struct pvs_switch_conf sc = { .n_workers = 1, .cpus = { -1 } };

    CHECK_EQ(pvs_switch_create(&sc, &sw), 0);
    CHECK_EQ(pvs_uplink_create(sw, 1, &endpoint), 0);
}

static void
close_it(void)
{
    CHECK_EQ(pvs_port_destroy(endpoint), 0);
    pvs_switch_destroy(sw);
}

static struct pvs_tunnel_conf
conf_of(uint32_t kind, uint32_t n_segments)
{
    return (struct pvs_tunnel_conf){ .kind = kind,
                                     .endpoint = endpoint,
                                     .dst_port = 4789,
                                     .n_sockets = 3,
                                     .sockets = sockets,
                                     .n_segments = n_segments,
                                     .segments = segments };
}

static int
create(const struct pvs_tunnel_conf *conf)
{
    struct pvs_tunnel *tunnel = NULL;
    int rc = pvs_tunnel_create(sw, conf, &tunnel);

    CHECK_EQ(tunnel != NULL, rc == 0);
    if (rc == 0)
        pvs_tunnel_destroy(tunnel);
    return rc;
}

TEST(tunnel_a_conf_is_checked)
{
    struct pvs_tunnel_conf c;

    open_it();
    segments[0] = (struct pvs_segment_conf){ .vni = 100, .vid = PVS_UNMAPPED };
    for (uint32_t kind = 0; kind <= PVS_GRE; kind++) {
        c = conf_of(kind, 1);
        CHECK_EQ(create(&c), 0);
    }
    c = conf_of(PVS_GRE + 1, 1);
    CHECK_EQ(create(&c), -EINVAL);
    c = conf_of(PVS_VXLAN, 1);
    c.endpoint = NULL;
    CHECK_EQ(create(&c), -EINVAL);
    c = conf_of(PVS_VXLAN, 0);
    CHECK_EQ(create(&c), -EINVAL);
    c = conf_of(PVS_VXLAN, 1);
    c.n_sockets = 0;
    CHECK_EQ(create(&c), -EINVAL);
    c.n_sockets = PVS_MAX_SOURCES;
    CHECK_EQ(create(&c), 0);
    c.n_sockets = PVS_MAX_SOURCES + 1;
    CHECK_EQ(create(&c), -EINVAL);
    c = conf_of(PVS_VXLAN, 1);
    c.tos = 255;
    CHECK_EQ(create(&c), 0);
    c.tos = 256;
    CHECK_EQ(create(&c), -EINVAL);
    c = conf_of(PVS_VXLAN, 2); /* two of all VLANs */
    segments[1] = (struct pvs_segment_conf){ .vni = 101, .vid = PVS_UNMAPPED };
    CHECK_EQ(create(&c), -EINVAL);
    close_it();
}

TEST(tunnel_a_network_has_24_bits_and_a_key_32)
{
    open_it();
    segments[0] = (struct pvs_segment_conf){ .vni = 0xffffff, .vid = PVS_UNMAPPED };
    for (uint32_t kind = 0; kind <= PVS_GRE; kind++) {
        struct pvs_tunnel_conf c = conf_of(kind, 1);
        segments[0].vni = 0xffffff;
        CHECK_EQ(create(&c), 0);
        segments[0].vni = 0x1000000;
        CHECK_EQ(create(&c), kind == PVS_GRE ? 0 : -EINVAL);
        segments[0].vni = UINT32_MAX;
        CHECK_EQ(create(&c), kind == PVS_GRE ? 0 : -EINVAL);
        c.no_key = true;
        segments[0].vni = 0;
        CHECK_EQ(create(&c), kind == PVS_GRE ? 0 : -EINVAL);
    }
    close_it();
}

TEST(tunnel_each_vlan_has_one_network)
{
    struct pvs_tunnel_conf c;
    struct pvs_tunnel *tunnel;

    open_it();
    for (uint32_t i = 0; i < PVS_VLANS; i++)
        segments[i] = (struct pvs_segment_conf){ .vni = 10000 + i, .vid = (uint16_t)(i + 1) };
    c = conf_of(PVS_GENEVE, 4094);
    CHECK_EQ(pvs_tunnel_create(sw, &c, &tunnel), 0);
    for (uint16_t vid = 1; vid <= 4094; vid++) {
        CHECK_EQ(pvs_tunnel_segment(tunnel, vid)->vni, 10000 + vid - 1);
        CHECK_EQ(pvs_tunnel_segment(tunnel, vid)->vid, vid);
    }
    CHECK(pvs_tunnel_segment(tunnel, 0) == NULL);
    CHECK(pvs_tunnel_segment(tunnel, 4095) == NULL);
    CHECK(pvs_tunnel_segment(tunnel, PVS_UNMAPPED) == NULL);
    pvs_tunnel_destroy(tunnel);
    c.n_segments = 4095;
    CHECK_EQ(create(&c), -EINVAL);
    c.n_segments = 10;
    static const uint16_t wrong[] = { 0, 4095, 4096, PVS_UNMAPPED, 3 /* the third one's */ };
    for (uint32_t i = 0; i < 5; i++) {
        segments[9].vid = wrong[i];
        CHECK_EQ(create(&c), -EINVAL);
    }
    segments[9].vid = 10;
    CHECK_EQ(create(&c), 0);
    c.kind = PVS_GRE;
    CHECK_EQ(create(&c), 0);
    c.no_key = true; /* one network can't be of several VLANs */
    CHECK_EQ(create(&c), -EINVAL);
    close_it();
}

TEST(tunnel_without_a_map_there_is_one_network_for_all)
{
    struct pvs_tunnel *tunnel;

    open_it();
    segments[0] = (struct pvs_segment_conf){ .vni = 77, .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf c = conf_of(PVS_GRE, 1);
    CHECK_EQ(pvs_tunnel_create(sw, &c, &tunnel), 0);
    CHECK_EQ(pvs_tunnel_segment(tunnel, 0)->vni, 77);
    CHECK_EQ(pvs_tunnel_segment(tunnel, 4095)->vni, 77);
    pvs_tunnel_destroy(tunnel);
    c.no_key = true;
    CHECK_EQ(pvs_tunnel_create(sw, &c, &tunnel), 0);
    CHECK_EQ(pvs_tunnel_segment(tunnel, 9)->vni, PVS_NO_KEY);
    pvs_tunnel_destroy(tunnel);
    close_it();
}

/* ---- remotes ---- */

TEST(tunnel_remotes_are_those_to_flood_to_and_those_that_are_known)
{
    static const uint16_t flood[] = { 900, 3, 44, 16383 }, others[] = { 5, 1000, 4 };
    struct pvs_remotes *r = pvs_remotes_make(flood, 4, others, 3);

    CHECK_EQ(r->n_flood, 4);
    CHECK_EQ(r->n_known, 7);
    CHECK(memcmp(r->vtep, flood, sizeof flood) == 0); /* in their order */
    static const uint16_t known[] = { 3, 4, 5, 44, 900, 1000, 16383 };
    CHECK(memcmp(r->vtep + 4, known, sizeof known) == 0);
    free(r);
    r = pvs_remotes_make(NULL, 0, NULL, 0);
    CHECK_EQ(r->n_flood + r->n_known, 0);
    free(r);
    r = pvs_remotes_make(NULL, 0, others, 3);
    CHECK_EQ(r->n_flood, 0);
    CHECK_EQ(r->n_known, 3);
    free(r);
}

static bool
takes(struct pvs_tunnel *tunnel, uint16_t vtep)
{
    return pvs_tunnel_takes(tunnel, &tunnel->segment[0], vtep);
}

static void
finish(int64_t seq)
{
    uint64_t done;
    int64_t result;

    CHECK(seq > 0);
    for (int i = 0; i < 4 && pvs_reap(sw, &done, &result, 1) != 1; i++)
        CHECK(pvs_poll_once(sw, 0, 1000000000) >= 0);
    CHECK_EQ(done, seq);
    CHECK_EQ(result, 0);
}

TEST(tunnel_that_does_not_learn_takes_its_remotes_packets)
{
    static uint16_t flood[1000], others[1000];
    struct pvs_tunnel *tunnel;

    open_it();
    segments[0] = (struct pvs_segment_conf){ .vni = 77, .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf c = conf_of(PVS_VXLAN, 1);
    CHECK_EQ(pvs_tunnel_create(sw, &c, &tunnel), 0);
    CHECK(!takes(tunnel, 0));
    CHECK(!takes(tunnel, 1)); /* there is no list yet */
    for (uint32_t i = 0; i < 1000; i++) {
        flood[i] = (uint16_t)(3000 - 3 * i);
        others[i] = (uint16_t)(3 * i + 4);
    }
    for (uint32_t n = 0; n <= 1000; n += n < 20 ? 1 : 490) {
        finish(pvs_tunnel_set_remotes(tunnel, 0, flood, n, others, n));
        for (uint32_t vtep = 0; vtep < 3100; vtep++) {
            bool wanted = false;
            for (uint32_t i = 0; i < n; i++)
                wanted |= flood[i] == vtep || others[i] == vtep;
            CHECK_EQ(takes(tunnel, (uint16_t)vtep), wanted);
        }
    }
    CHECK_EQ(pvs_tunnel_set_remotes(tunnel, 1, flood, 1, NULL, 0), -EINVAL);
    CHECK_EQ(pvs_tunnel_set_remotes(tunnel, 0, flood, PVS_MAX_VTEPS + 1, NULL, 0), -EINVAL);
    CHECK_EQ(pvs_tunnel_set_remotes(tunnel, 0, NULL, 0, others, PVS_MAX_VTEPS + 1), -EINVAL);
    pvs_tunnel_destroy(tunnel);
    c.learning = true;
    CHECK_EQ(pvs_tunnel_create(sw, &c, &tunnel), 0);
    CHECK(takes(tunnel, 0) && takes(tunnel, 9));
    pvs_tunnel_destroy(tunnel);
    close_it();
}

TEST(tunnel_remotes_are_numbers_of_vteps)
{
    static const uint16_t wrong[] = { 0, PVS_MAX_VTEPS, 0xffff };
    struct pvs_tunnel *tunnel;

    open_it();
    segments[0] = (struct pvs_segment_conf){ .vni = 77, .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf c = conf_of(PVS_VXLAN, 1);
    CHECK_EQ(pvs_tunnel_create(sw, &c, &tunnel), 0);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(pvs_tunnel_set_remotes(tunnel, 0, &wrong[i], 1, NULL, 0), -EINVAL);
        CHECK_EQ(pvs_tunnel_set_remotes(tunnel, 0, NULL, 0, &wrong[i], 1), -EINVAL);
    }
    pvs_tunnel_destroy(tunnel);
    close_it();
}

/* The kernel would take no notice of where GRE is to be cut, and send all as one packet. */
TEST(tunnel_of_gre_is_never_segmented)
{
    struct pvs_tunnel *tunnel;

    open_it();
    segments[0] = (struct pvs_segment_conf){ .vni = 77, .vid = PVS_UNMAPPED };
    struct pvs_tunnel_conf c = conf_of(PVS_GRE, 1);
    c.segmentation = true;
    CHECK_EQ(pvs_tunnel_create(sw, &c, &tunnel), 0);
    CHECK(!atomic_load(&tunnel->segmentation));
    pvs_tunnel_destroy(tunnel);
    close_it();
}

/* ---- demux ---- */

static uint64_t
vni_of(uint32_t kind, uint32_t i)
{
    switch (kind) {
    case 0:
        return i;
    case 1:
        return i * 256;
    case 2:
        return 0xffffff - i;
    default:
        return i == 0 ? PVS_NO_KEY : i * 429496U;
    }
}

TEST(tunnel_a_demux_finds_each_of_ten_thousand_networks)
{
    enum { NETWORKS = 10000 };
    static struct pvs_tunnel tunnel;
    static struct pvs_segment segment[NETWORKS];

    for (uint32_t kind = 0; kind < 4; kind++) {
        struct pvs_demux *d = pvs_demux_create(NULL, NETWORKS);
        CHECK(d->mask + 1 >= 2 * NETWORKS);
        for (uint32_t i = 0; i < NETWORKS; i++) {
            struct pvs_network_entry e = {
                .vni = vni_of(kind, i), .tunnel = &tunnel, .segment = &segment[i], .port_ref = i
            };
            CHECK(pvs_demux_find(d, e.vni) == NULL);
            CHECK_EQ(pvs_demux_add(d, &e), 0);
            CHECK_EQ(pvs_demux_add(d, &e), -EEXIST);
        }
        for (uint32_t i = 0; i < NETWORKS; i++) {
            const struct pvs_network_entry *e = pvs_demux_find(d, vni_of(kind, i));
            CHECK(e != NULL && e->segment == &segment[i] && e->port_ref == i && e->tunnel == &tunnel);
        }
        CHECK(pvs_demux_find(d, 1ULL << 33) == NULL);
        free(d);
    }
}

TEST(tunnel_a_demux_tells_networks_of_one_place_apart)
{
    static struct pvs_tunnel tunnel;
    struct pvs_demux *d = pvs_demux_create(NULL, 8);
    uint64_t vni[8] = { 0 };
    uint32_t n = 0;

    CHECK_EQ(d->mask, 15);
    /* eight of the last place: they go on at the first */
    for (uint64_t v = 0; n < 8; v++)
        if (((uint32_t)(v * 0x9e3779b97f4a7c15ULL >> 32) & 15) == 15)
            vni[n++] = v;
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQ(pvs_demux_add(d, &(struct pvs_network_entry){ .vni = vni[i], .tunnel = &tunnel, .port_ref = i }), 0);
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQ(pvs_demux_find(d, vni[i])->port_ref, i);
    CHECK(pvs_demux_find(d, vni[7] + 1) == NULL);
    free(d);
    d = pvs_demux_create(NULL, 0);
    CHECK(pvs_demux_find(d, 0) == NULL);
    free(d);
}
