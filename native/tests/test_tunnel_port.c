/* SPDX-License-Identifier: Apache-2.0 */
/* test_tunnel_port.c - guests and what is behind tunnels, frame by frame: where they go, who is learned, what is dropped and why. Step by step. */
#include <errno.h>
#include <string.h>

#include "offload_lab.h"
#include "tunnel_lab.h"

enum { LEN = 200, VNI = 5001, GUESTS = 2 };
/* Hosts behind far VTEPs. */
#define BEHIND(i) LAB_MAC(0x100 + (i))

static struct tunnel_lab t;

static bool
open_kind(enum pvs_tunnel_kind kind)
{
    struct lab_conf lab = lab_conf_default(GUESTS);
    struct tunnel_lab_conf conf = { .kind = kind };

    if (!tunnel_lab_open(&t, &lab, &conf))
        return false;
    for (uint32_t i = 0; i < GUESTS; i++)
        lab_fill(&t.lab, i, 128);
    CHECK_EQ(tunnel_lab_add(&t, VNI), 0);
    lab_publish(&t.lab);
    return true;
}

static void
open_it(void)
{
    CHECK(open_kind(PVS_VXLAN));
}

static void
poll(void)
{
    lab_poll(&t.lab, 3);
}

static uint8_t *
frame_of(uint64_t dst, uint64_t src, uint32_t len, uint32_t salt)
{
    static uint8_t frame[PVS_MAX_FRAME];
    lab_frame(frame, dst, src, len, salt);
    return frame;
}

static void
guest_sends(uint32_t guest, uint64_t dst, uint32_t salt)
{
    lab_send(&t.lab, guest, frame_of(dst, LAB_MAC(guest), LEN, salt), LEN);
    poll();
}

static void
far_sends(uint32_t far, uint64_t vni, uint64_t dst, uint64_t src, uint32_t salt)
{
    far_send(&t, far, vni, frame_of(dst, src, LEN, salt), LEN);
    poll();
}

static void
guest_has(uint32_t guest, uint64_t dst, uint64_t src, uint32_t salt)
{
    lab_expect(&t.lab, guest, frame_of(dst, src, LEN, salt), LEN);
}

static void
far_has(uint32_t far, uint64_t vni, uint64_t dst, uint64_t src, uint32_t salt)
{
    far_expect(&t, far, vni, frame_of(dst, src, LEN, salt), LEN);
}

static void
nothing_more(void)
{
    for (uint32_t i = 0; i < FARS; i++)
        far_expect_nothing(&t, i);
    for (uint32_t i = 0; i < t.lab.conf.n_ports; i++)
        lab_expect_nothing(&t.lab, i);
}

/* The next event that isn't one of a guest's. */
static struct pvs_event
event(uint32_t kind)
{
    struct pvs_event e;

    do
        CHECK_EQ(pvs_event_next(t.lab.sw, &e), 1);
    while (e.kind != kind);
    return e;
}

static struct pvs_fdb_item
item(uint64_t mac, uint16_t vid)
{
    struct pvs_fdb_item found;
    uint8_t bytes[6];

    pvs_mac_store(bytes, mac);
    CHECK_EQ(pvs_fdb_lookup(t.lab.fdb, bytes, vid, t.lab.now_ns, &found), 0);
    return found;
}

static bool
is_known(uint64_t mac, uint16_t vid)
{
    struct pvs_fdb_item found;
    uint8_t bytes[6];

    pvs_mac_store(bytes, mac);
    return pvs_fdb_lookup(t.lab.fdb, bytes, vid, t.lab.now_ns, &found) == 0;
}

/* ---- there and back ---- */

static void
there_and_back(enum pvs_tunnel_kind kind)
{
    if (!open_kind(kind))
        return;
    tunnel_lab_flood(&t, 0, 0, FARS);
    guest_sends(0, LAB_BROADCAST, 1);
    guest_has(1, LAB_BROADCAST, LAB_MAC(0), 1);
    for (uint32_t i = 0; i < FARS; i++)
        far_has(i, VNI, LAB_BROADCAST, LAB_MAC(0), 1);
    guest_sends(0, BEHIND(1), 2); /* nobody knows it: to all */
    guest_has(1, BEHIND(1), LAB_MAC(0), 2);
    for (uint32_t i = 0; i < FARS; i++)
        far_has(i, VNI, BEHIND(1), LAB_MAC(0), 2);
    far_sends(1, VNI, LAB_MAC(0), BEHIND(1), 3);
    guest_has(0, LAB_MAC(0), BEHIND(1), 3);
    guest_sends(0, BEHIND(1), 4);
    far_has(1, VNI, BEHIND(1), LAB_MAC(0), 4);
    nothing_more();
    struct lab_counters c = tunnel_lab_counters(&t, 0);
    CHECK_EQ(c.value[PVS_C_tx_packets], 2 * FARS + 1);
    CHECK_EQ(c.value[PVS_C_tx_bytes], (2 * FARS + 1) * LEN);
    CHECK_EQ(c.value[PVS_C_rx_packets], 1);
    CHECK_EQ(c.value[PVS_C_rx_bytes], LEN);
    CHECK_EQ(lab_sum(c.tx_drop) + lab_sum(c.rx_drop), 0);
    CHECK_EQ(lab_sum(tunnel_lab_endpoint(&t).rx_drop), 0);
    struct pvs_uplink_status s;
    CHECK_EQ(pvs_uplink_status(t.endpoint, 0, &s), 0);
    CHECK_EQ(s.rx_packets, 1);
    CHECK_EQ(pvs_tunnel_error(t.tunnel[0].tunnel), 0);
    tunnel_lab_close(&t);
}

TEST(tunnel_vxlan_there_and_back)
{
    there_and_back(PVS_VXLAN);
}

TEST(tunnel_geneve_there_and_back)
{
    there_and_back(PVS_GENEVE);
}

TEST(tunnel_gre_there_and_back)
{
    there_and_back(PVS_GRE);
}

TEST(tunnel_frames_of_any_length_go_there_and_back)
{
    static const uint32_t lens[] = { 14, 59, 60, 127, 128, 129, 1500, 9000, 60000 };
    struct lab_conf lab = lab_conf_default(1);
    struct tunnel_lab_conf conf = { 0 };

    lab.guest.tx_buf_size = 65000;
    lab.guest.queue_size = 128;
    CHECK(tunnel_lab_open(&t, &lab, &conf));
    tunnel_lab_add(&t, VNI);
    tunnel_lab_flood(&t, 0, 0, 1);
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < sizeof lens / sizeof lens[0]; i++) {
        lab_fill(&t.lab, 0, 128);
        lab_send(&t.lab, 0, frame_of(LAB_BROADCAST, LAB_MAC(0), lens[i], i), lens[i]);
        poll();
        far_expect(&t, 0, VNI, frame_of(LAB_BROADCAST, LAB_MAC(0), lens[i], i), lens[i]);
        far_send(&t, 0, VNI, frame_of(LAB_BROADCAST, BEHIND(0), lens[i], i), lens[i]);
        poll();
        lab_expect(&t.lab, 0, frame_of(LAB_BROADCAST, BEHIND(0), lens[i], i), lens[i]);
    }
    far_send(&t, 0, VNI, frame_of(LAB_BROADCAST, BEHIND(0), 14, 0), 13); /* not even a header */
    far_send(&t, 0, VNI, frame_of(LAB_BROADCAST, BEHIND(0), 14, 0), 0);
    poll();
    lab_expect_nothing(&t.lab, 0);
    CHECK_EQ(tunnel_lab_counters(&t, 0).rx_drop[PVS_DROP_malformed], 2);
    tunnel_lab_close(&t);
}

TEST(tunnel_gre_without_a_key_is_a_network_of_its_own)
{
    struct pvs_segment_conf segment = { .vni = 0, .vid = PVS_UNMAPPED };

    if (!open_kind(PVS_GRE))
        return;
    struct pvs_tunnel_conf conf = tunnel_lab_tunnel(&t, 1, &segment);
    conf.no_key = true;
    uint32_t keyless = tunnel_lab_add_conf(&t, &conf);
    lab_publish(&t.lab);
    tunnel_lab_flood(&t, keyless, 0, 1);
    guest_sends(0, LAB_BROADCAST, 1);
    far_has(0, PVS_NO_KEY, LAB_BROADCAST, LAB_MAC(0), 1);
    guest_has(1, LAB_BROADCAST, LAB_MAC(0), 1);
    far_sends(0, PVS_NO_KEY, LAB_MAC(0), BEHIND(0), 2);
    guest_has(0, LAB_MAC(0), BEHIND(0), 2);
    CHECK_EQ(item(BEHIND(0), 0).port_ref, pvs_port_ref(t.tunnel[keyless].port));
    far_sends(0, 0, LAB_MAC(0), BEHIND(0), 3); /* key 0 is another one */
    CHECK_EQ(tunnel_lab_endpoint(&t).rx_drop[PVS_DROP_unknown_vni], 1);
    nothing_more();
    tunnel_lab_close(&t);
}

/* More VTEPs than one outbox takes, and frames enough for several of them. */
TEST(tunnel_a_flood_reaches_each_of_300_remotes)
{
    enum { REMOTES = 300, FRAMES = 3 };
    static uint16_t flood[REMOTES];
    static uint8_t heard[FRAMES][REMOTES + 2], got[LEN + 8];
    struct lab_conf lab = lab_conf_default(1);
    struct tunnel_lab_conf conf = { .wide = true };

    CHECK(tunnel_lab_open(&t, &lab, &conf));
    tunnel_lab_add(&t, VNI);
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < REMOTES; i++)
        flood[i] = tunnel_lab_vtep(&t, FARS + i);
    CHECK_EQ(lab_wait(&t.lab, pvs_tunnel_set_remotes(t.tunnel[0].tunnel, 0, flood, REMOTES, NULL, 0)), 0);
    for (uint32_t i = 0; i < FRAMES; i++) {
        uint8_t *frame = frame_of(LAB_BROADCAST, LAB_MAC(0), LEN, i);
        frame[20] = (uint8_t)i;
        lab_send(&t.lab, 0, frame, LEN);
    }
    poll();
    for (uint32_t i = 0; i < FRAMES * REMOTES; i++) {
        uint16_t to = 0;
        CHECK_EQ(far_receive(&t, 0, got, sizeof got, NULL, &to), LEN + 8);
        CHECK(to >= 2 + FARS && to < 2 + FARS + REMOTES);
        uint8_t number = got[8 + 20];
        CHECK(number < FRAMES);
        CHECK_EQ(heard[number][to - 2 - FARS]++, 0);
        CHECK(number == 0 || heard[number - 1][to - 2 - FARS] == 1); /* in order at each */
    }
    nothing_more();
    CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_tx_packets], FRAMES * REMOTES);
    tunnel_lab_close(&t);
}

TEST(tunnel_frames_without_a_way_are_dropped)
{
    open_it();
    guest_sends(0, LAB_BROADCAST, 1); /* there are no remotes */
    CHECK_EQ(tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_no_destination], 1);
    uint8_t address[16] = { [10] = 0xff, [11] = 0xff, [12] = 255, [13] = 255, [14] = 255, [15] = 255 };
    uint32_t number;
    CHECK_EQ(pvs_vtep_add(t.lab.sw, address, &number), 0); /* broadcast isn't allowed */
    uint16_t flood[2] = { (uint16_t)number, t.far[0].number };
    CHECK_EQ(lab_wait(&t.lab, pvs_tunnel_set_remotes(t.tunnel[0].tunnel, 0, flood, 2, NULL, 0)), 0);
    guest_sends(0, LAB_BROADCAST, 2);
    far_has(0, VNI, LAB_BROADCAST, LAB_MAC(0), 2); /* the other one has it still */
    CHECK_EQ(tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_uplink_refused], 1);
    CHECK_EQ(pvs_tunnel_error(t.tunnel[0].tunnel), EACCES);
    CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_tx_packets], 1);
    tunnel_lab_close(&t);
}

/* ---- who is learned ---- */

TEST(tunnel_learns_who_is_behind_which_vtep)
{
    open_it();
    far_sends(0, VNI, LAB_BROADCAST, BEHIND(0), 1);
    struct pvs_event e = event(PVS_EV_LEARNED);
    CHECK_EQ(e.vtep, t.far[0].number);
    CHECK_EQ(e.port_ref, pvs_port_ref(t.tunnel[0].port));
    CHECK_EQ(item(BEHIND(0), 0).vtep, t.far[0].number);
    far_sends(1, VNI, LAB_BROADCAST, BEHIND(0), 2); /* it has moved behind another one of the same port */
    e = event(PVS_EV_MOVED);
    CHECK_EQ(e.vtep, t.far[1].number);
    CHECK_EQ(e.detail, pvs_port_ref(t.tunnel[0].port));
    CHECK_EQ(item(BEHIND(0), 0).vtep, t.far[1].number);
    guest_sends(0, BEHIND(0), 3);
    far_has(1, VNI, BEHIND(0), LAB_MAC(0), 3);
    guest_sends(0, LAB_BROADCAST, 4);
    lab_send(&t.lab, 1, frame_of(LAB_BROADCAST, BEHIND(0), LEN, 5), LEN); /* to a guest, and back */
    poll();
    e = event(PVS_EV_MOVED);
    CHECK_EQ(e.vtep, 0);
    CHECK_EQ(item(BEHIND(0), 0).vtep, 0);
    guest_has(0, LAB_BROADCAST, BEHIND(0), 1);
    guest_has(0, LAB_BROADCAST, BEHIND(0), 2);
    guest_has(0, LAB_BROADCAST, BEHIND(0), 5);
    guest_sends(0, BEHIND(0), 6);
    for (uint32_t i = 0; i < FARS; i++)
        far_expect_nothing(&t, i);
    far_sends(2, VNI, LAB_BROADCAST, BEHIND(0), 7);
    CHECK_EQ(event(PVS_EV_MOVED).vtep, t.far[2].number);
    CHECK_EQ(item(BEHIND(0), 0).vtep, t.far[2].number);
    tunnel_lab_close(&t);
}

TEST(tunnel_learns_vteps_that_nobody_has_named)
{
    open_it();
    CHECK_EQ(pvs_vtep_unlink(t.lab.sw, t.far[0].number), 0);
    CHECK_EQ(lab_wait(&t.lab, pvs_sync(t.lab.sw)), 0);
    CHECK_EQ(pvs_vtep_free(t.lab.sw, t.far[0].number), 0);
    far_sends(0, VNI, LAB_BROADCAST, BEHIND(0), 1);
    struct pvs_event e = event(PVS_EV_VTEP);
    CHECK(e.vtep != 0);
    struct pvs_vtep_info info;
    CHECK_EQ(pvs_vtep_info(t.lab.sw, e.vtep, t.lab.now_ns, &info), 0);
    CHECK(info.learned);
    CHECK_EQ(info.age_s, 0);
    CHECK(memcmp(info.address, tunnel_lab_address(0), 16) == 0);
    CHECK_EQ(item(BEHIND(0), 0).vtep, e.vtep); /* with its first packet */
    guest_sends(0, BEHIND(0), 2);
    far_has(0, VNI, BEHIND(0), LAB_MAC(0), 2);
    CHECK_EQ(pvs_fdb_flush(t.lab.fdb, &(struct pvs_fdb_filter){ .by_vtep = true, .vtep = (uint16_t)(e.vtep + 1) }), 0);
    CHECK_EQ(pvs_fdb_flush(t.lab.fdb, &(struct pvs_fdb_filter){ .by_vtep = true, .vtep = e.vtep }), 1);
    CHECK(!is_known(BEHIND(0), 0));
    tunnel_lab_close(&t);
}

TEST(tunnel_that_does_not_learn_takes_frames_of_its_remotes_only)
{
    struct pvs_segment_conf segment = { .vni = 9, .vid = PVS_UNMAPPED };

    open_it();
    struct pvs_tunnel_conf conf = tunnel_lab_tunnel(&t, 1, &segment);
    conf.learning = false;
    uint32_t still = tunnel_lab_add_conf(&t, &conf);
    lab_publish(&t.lab);
    far_sends(0, 9, LAB_MAC(0), BEHIND(0), 1); /* there is no list yet */
    CHECK_EQ(tunnel_lab_counters(&t, still).rx_drop[PVS_DROP_unknown_vtep], 1);
    CHECK_EQ(
        lab_wait(&t.lab, pvs_tunnel_set_remotes(t.tunnel[still].tunnel, 0, &t.far[0].number, 1, &t.far[2].number, 1)),
        0);
    for (uint32_t i = 0; i < FARS; i++)
        far_sends(i, 9, LAB_MAC(0), BEHIND(i), 2);
    guest_has(0, LAB_MAC(0), BEHIND(0), 2);
    guest_has(1, LAB_MAC(0), BEHIND(0), 2); /* nobody knows guest 0 */
    guest_has(0, LAB_MAC(0), BEHIND(2), 2);
    guest_has(1, LAB_MAC(0), BEHIND(2), 2);
    CHECK_EQ(tunnel_lab_counters(&t, still).rx_drop[PVS_DROP_unknown_vtep], 2);
    CHECK_EQ(tunnel_lab_counters(&t, still).value[PVS_C_rx_packets], 4);
    CHECK(!is_known(BEHIND(0), 0) && !is_known(BEHIND(1), 0) && !is_known(BEHIND(2), 0));
    uint8_t mac[6]; /* where hosts are, control tells */
    pvs_mac_store(mac, BEHIND(1));
    CHECK_EQ(pvs_fdb_set_static(t.lab.fdb, mac, 0, pvs_port_ref(t.tunnel[still].port), t.far[1].number), 0);
    guest_sends(0, BEHIND(1), 3);
    far_has(1, 9, BEHIND(1), LAB_MAC(0), 3);
    nothing_more();
    tunnel_lab_close(&t);
}

/* ---- what belongs to nobody ---- */

TEST(tunnel_packets_of_nobody_are_counted_at_the_endpoint)
{
    static const uint8_t bad[][12] = { { 0 }, { 0, 0, 0, 0, 0, 0x13, 0x89 }, { 8, 0, 0 } };

    open_it();
    far_sends(0, VNI + 1, LAB_BROADCAST, BEHIND(0), 1);
    far_sends(0, VNI << 8 & 0xffffff, LAB_BROADCAST, BEHIND(0), 1);
    CHECK_EQ(tunnel_lab_endpoint(&t).rx_drop[PVS_DROP_unknown_vni], 2);
    far_send_bytes(&t, 0, bad[0], 12, 0, 0);
    far_send_bytes(&t, 0, bad[1], 12, 0, 0);
    far_send_bytes(&t, 0, bad[2], 7, 0, 0);
    far_send_bytes(&t, 0, bad[2], 0, 0, 0);      /* an empty datagram */
    far_sends(0, VNI, LAB_MAC(0), BEHIND(0), 2); /* behind them */
    CHECK_EQ(tunnel_lab_endpoint(&t).rx_drop[PVS_DROP_tunnel_malformed], 4);
    guest_has(0, LAB_MAC(0), BEHIND(0), 2);
    guest_has(1, LAB_MAC(0), BEHIND(0), 2);
    nothing_more();
    CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_rx_packets], 1);
    CHECK_EQ(tunnel_lab_endpoint(&t).value[PVS_C_rx_packets], 0);
    tunnel_lab_remove(&t);
    far_sends(0, VNI, LAB_MAC(0), BEHIND(0), 3); /* no tunnel is left */
    CHECK_EQ(tunnel_lab_endpoint(&t).rx_drop[PVS_DROP_unknown_vni], 3);
    nothing_more();
    tunnel_lab_close(&t);
}

TEST(tunnel_many_malformed_packets_hide_none)
{
    static const uint8_t bad[8];

    open_it();
    for (uint32_t i = 0; i < 100; i++)
        far_send_bytes(&t, 0, bad, sizeof bad, 0, 0);
    far_send(&t, 0, VNI, frame_of(LAB_MAC(0), BEHIND(0), LEN, 1), LEN);
    lab_poll(&t.lab, 10);
    guest_has(0, LAB_MAC(0), BEHIND(0), 1);
    CHECK_EQ(tunnel_lab_endpoint(&t).rx_drop[PVS_DROP_tunnel_malformed], 100);
    tunnel_lab_close(&t);
}

/* ---- several tunnels ---- */

TEST(tunnel_split_horizon_keeps_a_mesh_apart)
{
    open_it();
    uint32_t other = tunnel_lab_add(&t, 6000), third = tunnel_lab_add(&t, 7000);
    t.tunnel[0].conf->mesh = t.tunnel[other].conf->mesh = 31;
    t.tunnel[third].conf->mesh = 1;
    lab_publish(&t.lab);
    tunnel_lab_flood(&t, 0, 0, 2);
    tunnel_lab_flood(&t, other, 0, FARS);
    tunnel_lab_flood(&t, third, 0, 1);
    far_sends(0, VNI, LAB_BROADCAST, BEHIND(0), 1);
    guest_has(0, LAB_BROADCAST, BEHIND(0), 1);
    guest_has(1, LAB_BROADCAST, BEHIND(0), 1);
    far_has(0, 7000, LAB_BROADCAST, BEHIND(0), 1); /* another mesh: out by that, and neither back nor to its own */
    nothing_more();
    far_sends(1, 6000, LAB_MAC(9), BEHIND(1), 2); /* unknown unicast as well */
    guest_has(0, LAB_MAC(9), BEHIND(1), 2);
    guest_has(1, LAB_MAC(9), BEHIND(1), 2);
    far_has(0, 7000, LAB_MAC(9), BEHIND(1), 2);
    far_sends(1, 6000, BEHIND(0), BEHIND(1), 3); /* known, and in the mesh */
    CHECK_EQ(tunnel_lab_counters(&t, 0).tx_drop[PVS_DROP_split_horizon], 1);
    far_sends(0, VNI, BEHIND(0), BEHIND(2), 4); /* known, and behind the same port */
    CHECK_EQ(tunnel_lab_counters(&t, 0).rx_drop[PVS_DROP_same_port], 1);
    far_sends(0, 7000, BEHIND(1), BEHIND(3), 5); /* from mesh to mesh */
    far_has(1, 6000, BEHIND(1), BEHIND(3), 5);
    nothing_more();
    tunnel_lab_close(&t);
}

TEST(tunnel_a_mesh_has_one_of_31_numbers)
{
    open_it();
    t.tunnel[0].conf->mesh = 32;
    struct pvs_port_conf ports[3] = { t.lab.port[0].conf, t.lab.port[1].conf, t.lab.other[0] };
    CHECK_EQ(pvs_publish(t.lab.sw, ports, 3, &t.lab.conf.bridge, 1), -EINVAL);
    t.tunnel[0].conf->mesh = 0;
    tunnel_lab_close(&t);
}

TEST(tunnel_what_tables_refuse)
{
    open_it();
    struct pvs_port_conf ports[4] = { t.lab.port[0].conf, t.lab.port[1].conf, t.lab.other[0] };
    tunnel_lab_add(&t, VNI); /* the same network twice */
    ports[3] = t.lab.other[1];
    CHECK_EQ(pvs_publish(t.lab.sw, ports, 4, &t.lab.conf.bridge, 1), -EEXIST);
    ports[3] = (struct pvs_port_conf){ .port = t.endpoint, .enabled = true }; /* an endpoint on a bridge */
    CHECK_EQ(pvs_publish(t.lab.sw, ports, 4, &t.lab.conf.bridge, 1), -EINVAL);
    ports[2] = ports[3];
    ports[3] = t.lab.other[0];
    CHECK_EQ(pvs_publish(t.lab.sw, ports, 4, &t.lab.conf.bridge, 1), -EINVAL);
    ports[2] = t.lab.other[0];
    ports[0].tunnel = ports[2].tunnel; /* a port with queues */
    ports[2].tunnel = NULL;
    CHECK_EQ(pvs_publish(t.lab.sw, ports, 3, &t.lab.conf.bridge, 1), -EINVAL);
    ports[0].tunnel = NULL;
    ports[2] = t.lab.other[0];
    ports[2].vlan_mode = PVS_VLAN_MAPPED; /* which it isn't */
    CHECK_EQ(pvs_publish(t.lab.sw, ports, 3, &t.lab.conf.bridge, 1), -EINVAL);
    ports[2].vlan_mode = PVS_VLAN_TRUNK;
    ports[0].vlan_mode = PVS_VLAN_MAPPED;
    CHECK_EQ(pvs_publish(t.lab.sw, ports, 3, &t.lab.conf.bridge, 1), -EINVAL);
    t.lab.n_others = 1;
    lab_publish(&t.lab);
    t.lab.n_others = 2;
    tunnel_lab_remove(&t);
    tunnel_lab_close(&t);
}

/* ---- VLANs ---- */

static void
carry(struct pvs_port_conf *conf, uint64_t *set, uint16_t first, uint16_t last)
{
    for (uint16_t vid = first; vid <= last; vid++)
        set[vid / 64] |= 1ULL << vid % 64;
    conf->vlans = set;
}

/* A frame with tags in front of its EtherType, the first one's TCI and the second one's. */
static uint32_t
tagged(uint8_t *to, uint64_t dst, uint64_t src, uint32_t salt, uint32_t n, uint16_t tci)
{
    memcpy(to, frame_of(dst, src, LEN, salt), 12);
    for (uint32_t i = 0; i < n; i++) {
        put16(to + 12 + 4 * i, 0x8100);
        put16(to + 14 + 4 * i, i == 0 ? tci : 77);
    }
    memcpy(to + 12 + 4 * n, frame_of(dst, src, LEN, salt) + 12, LEN - 12);
    return LEN + 4 * n;
}

static struct {
    uint64_t mapped[64], trunk[64];
    struct pvs_segment_conf segment[3];
} map;

/* Tunnel 0 has VLANs 10, 11 and 20; guest 0 is a trunk of 10 to 20, guest 1 an access port of 10. */
static void
open_mapped(void)
{
    struct lab_conf lab = lab_conf_default(GUESTS);
    struct tunnel_lab_conf conf = { .kind = PVS_GENEVE };

    memset(&map, 0, sizeof map);
    map.segment[0] = (struct pvs_segment_conf){ .vni = 10010, .vid = 10 };
    map.segment[1] = (struct pvs_segment_conf){ .vni = 10011, .vid = 11 };
    map.segment[2] = (struct pvs_segment_conf){ .vni = 7, .vid = 20 };
    CHECK(tunnel_lab_open(&t, &lab, &conf));
    for (uint32_t i = 0; i < GUESTS; i++)
        lab_fill(&t.lab, i, 64);
    struct pvs_tunnel_conf tunnel = tunnel_lab_tunnel(&t, 3, map.segment);
    tunnel_lab_add_conf(&t, &tunnel);
    t.tunnel[0].conf->vlan_mode = PVS_VLAN_MAPPED;
    carry(t.tunnel[0].conf, map.mapped, 10, 11);
    carry(t.tunnel[0].conf, map.mapped, 20, 20);
    carry(&t.lab.port[0].conf, map.trunk, 10, 20);
    t.lab.port[1].conf.vlan_mode = PVS_VLAN_ACCESS;
    t.lab.port[1].conf.tag = 10;
    lab_publish(&t.lab);
    for (uint32_t i = 0; i < 3; i++)
        tunnel_lab_flood(&t, 0, i, i + 1);
}

TEST(tunnel_a_mapped_vlan_leaves_without_its_tag_in_its_network)
{
    uint8_t frame[LEN + 8];

    open_mapped();
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t len = tagged(frame, LAB_BROADCAST, LAB_MAC(0), i, 1, map.segment[i].vid | 0xe000);
        lab_send(&t.lab, 0, frame, len);
        poll();
        for (uint32_t far = 0; far <= i; far++)
            far_has(far, map.segment[i].vni, LAB_BROADCAST, LAB_MAC(0), i);
    }
    guest_has(1, LAB_BROADCAST, LAB_MAC(0), 0);
    nothing_more();
    lab_send(&t.lab, 0, frame, tagged(frame, LAB_BROADCAST, LAB_MAC(0), 9, 1, 15)); /* no member has it */
    poll();
    lab_send(&t.lab, 0, frame, tagged(frame, LAB_BROADCAST, LAB_MAC(0), 9, 2, 11)); /* a tag behind it: see vlan.h */
    poll();
    nothing_more();
    guest_sends(1, LAB_BROADCAST, 5); /* from an access port */
    far_has(0, 10010, LAB_BROADCAST, LAB_MAC(1), 5);
    tagged(frame, LAB_BROADCAST, LAB_MAC(1), 5, 1, 10);
    lab_expect(&t.lab, 0, frame, LEN + 4);
    nothing_more();
    tunnel_lab_close(&t);
}

TEST(tunnel_what_comes_by_a_mapped_network_is_in_its_vlan)
{
    uint8_t frame[LEN + 8];
    uint32_t len;

    open_mapped();
    for (uint32_t i = 0; i < 3; i++) {
        far_sends(i, map.segment[i].vni, LAB_BROADCAST, BEHIND(i), i);
        len = tagged(frame, LAB_BROADCAST, BEHIND(i), i, 1, map.segment[i].vid);
        lab_expect(&t.lab, 0, frame, len);
        CHECK_EQ(item(BEHIND(i), map.segment[i].vid).vtep, t.far[i].number);
        len = tagged(frame, BEHIND(i), LAB_MAC(0), 9, 1, map.segment[i].vid); /* and back, known */
        lab_send(&t.lab, 0, frame, len);
        poll();
        far_has(i, map.segment[i].vni, BEHIND(i), LAB_MAC(0), 9);
    }
    guest_has(1, LAB_BROADCAST, BEHIND(0), 0);
    nothing_more();
    len = tagged(frame, LAB_BROADCAST, BEHIND(0), 1, 1, 11);
    far_send(&t, 0, 10010, frame, len); /* a tag could name another VLAN */
    len = tagged(frame, LAB_BROADCAST, BEHIND(0), 1, 2, 0);
    far_send(&t, 0, 10010, frame, len);
    poll();
    nothing_more();
    CHECK_EQ(tunnel_lab_counters(&t, 0).rx_drop[PVS_DROP_vlan_filtered], 2);
    len = tagged(frame, LAB_MAC(1), BEHIND(0), 1, 1, 0x6000); /* a priority is none */
    far_send(&t, 0, 10010, frame, len);
    poll();
    lab_expect(&t.lab, 1, frame_of(LAB_MAC(1), BEHIND(0), LEN, 1), LEN);
    tunnel_lab_close(&t);
}

/* Frames of several networks and VTEPs in one burst: each is treated as its own network's. */
TEST(tunnel_a_burst_of_several_networks_and_vteps)
{
    uint8_t frame[LEN + 4];
    uint64_t seed = 3;
    static struct {
        uint32_t far, network;
    } sent[200];

    open_mapped();
    for (uint32_t i = 0; i < 60; i++) {
        sent[i].far = lab_random(&seed, FARS);
        sent[i].network = lab_random(&seed, 3);
        far_send(&t, sent[i].far, map.segment[sent[i].network].vni, frame_of(LAB_MAC(0), BEHIND(sent[i].far), LEN, i),
                 LEN);
    }
    lab_poll(&t.lab, 5);
    for (uint32_t i = 0; i < 60; i++) {
        uint32_t len = tagged(frame, LAB_MAC(0), BEHIND(sent[i].far), i, 1, map.segment[sent[i].network].vid);
        lab_expect(&t.lab, 0, frame, len);
        CHECK_EQ(item(BEHIND(sent[i].far), map.segment[sent[i].network].vid).vtep, t.far[sent[i].far].number);
    }
    lab_expect_nothing(&t.lab, 0);
    tunnel_lab_close(&t);
}

/* The same host behind one VTEP, then another, in one burst. */
TEST(tunnel_a_burst_of_a_host_that_moves)
{
    open_it();
    for (uint32_t i = 0; i < 9; i++)
        far_send(&t, i % FARS, VNI, frame_of(LAB_BROADCAST, BEHIND(0), LEN, i), LEN);
    poll();
    CHECK_EQ(event(PVS_EV_LEARNED).vtep, t.far[0].number);
    for (uint32_t i = 1; i < 9; i++)
        CHECK_EQ(event(PVS_EV_MOVED).vtep, t.far[i % FARS].number);
    CHECK_EQ(item(BEHIND(0), 0).vtep, t.far[2].number);
    for (uint32_t i = 0; i < 4; i++) /* some from where it is, which change nothing, and then one that does */
        far_send(&t, i < 3 ? 2 : 1, VNI, frame_of(LAB_BROADCAST, BEHIND(0), LEN, i), LEN);
    poll();
    CHECK_EQ(event(PVS_EV_MOVED).vtep, t.far[1].number);
    tunnel_lab_close(&t);
}

/* Segments that look like one connection's, but are of several networks, or from several VTEPs. */
TEST(tunnel_segments_of_several_networks_and_vteps_stay_apart)
{
    static struct cooked c;
    struct recipe r = { .payload = 900, .flags = ACK };

    for (uint32_t networks = 0; networks < 2; networks++) {
        open_mapped();
        for (uint32_t i = 0; i < 9; i++) {
            struct recipe s = segment_recipe(&r, 100, i, 9);
            cook(&s, FINISHED, &c);
            uint32_t far = networks != 0 ? 0 : i % 3, vni = map.segment[networks != 0 ? i % 3 : 0].vni;
            far_send(&t, far, vni, c.bytes, c.len);
        }
        poll();
        CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_rx_packets], 9);
        tunnel_lab_close(&t);
        open_mapped();
        for (uint32_t i = 0; i < 9; i++) { /* and of one */
            struct recipe s = segment_recipe(&r, 100, i, 9);
            cook(&s, FINISHED, &c);
            far_send(&t, 0, map.segment[0].vni, c.bytes, c.len);
        }
        poll();
        CHECK_EQ(tunnel_lab_counters(&t, 0).value[PVS_C_rx_packets], 1);
        tunnel_lab_close(&t);
    }
}

TEST(tunnel_an_unmapped_one_carries_tags)
{
    uint8_t frame[LEN + 8];

    open_it();
    tunnel_lab_flood(&t, 0, 0, 1);
    for (uint32_t n = 1; n <= 2; n++) {
        uint32_t len = tagged(frame, LAB_BROADCAST, LAB_MAC(0), n, n, 123);
        lab_send(&t.lab, 0, frame, len);
        poll();
        far_expect(&t, 0, VNI, frame, len);
        lab_expect(&t.lab, 1, frame, len);
        len = tagged(frame, LAB_BROADCAST, BEHIND(0), n, n, 123);
        far_send(&t, 0, VNI, frame, len);
        poll();
        lab_expect(&t.lab, 0, frame, len);
        lab_expect(&t.lab, 1, frame, len);
        CHECK_EQ(item(BEHIND(0), 123).vtep, t.far[0].number);
    }
    t.tunnel[0].conf->vlan_mode = PVS_VLAN_ACCESS; /* or one VLAN, without its tag */
    t.tunnel[0].conf->tag = 123;
    lab_publish(&t.lab);
    lab_send(&t.lab, 0, frame, tagged(frame, BEHIND(0), LAB_MAC(0), 3, 1, 123));
    poll();
    far_has(0, VNI, BEHIND(0), LAB_MAC(0), 3);
    nothing_more();
    tunnel_lab_close(&t);
}
