/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frames.c - one worker and its frames, case by case, under callgrind: for scripts/instruction-counts.
 *
 * How it works: driver guests are connected as in the tests' lab, and everything is one thread. A case is so many rounds
 * of: post a batch of frames, poll until they are through, take them off at the other side. Only the polling is counted,
 * so neither the guests' work nor the life of a switch is in the figures. After each case callgrind is told to write its
 * counts down under the case's name, and a line on stdout says by how many frames (or polls) they are to be divided.
 * Time moves by fixed steps and everything random is seeded: the counts are the same each time.
 */
#include <string.h>
#include <valgrind/callgrind.h>

#include "copy.h"
#include "tests/flow_lab.h"
#include "tests/lab.h"
#include "tests/offload_lab.h"
#include "tools/tunnel_ends.h"

enum {
    LATER = 6,
    KICKS_NS = 50000
}; /* rounds of frames that go through the kernel, which is asked for them as often as that */
enum {
    GUESTS = 64,
    RING = 1024,
    ROUND_NS = 2000,
    WARM_UP = 8,
    BATCHES = 32,
    MANY_MACS = 65536,
    PATIENCE = 1000,
    FIRST_PORT = 10000
};

#define FEATURE(bit) (1ULL << (bit))
#define MRG_RXBUF    FEATURE(PVD_F_MRG_RXBUF)
#define PACKED       FEATURE(PVD_F_RING_PACKED)
#define IN_ORDER     FEATURE(PVD_F_IN_ORDER)
#define CSUM         FEATURE(0)
#define HOST_TSO4    FEATURE(11)
#define GUEST_TSO4   (FEATURE(PVD_F_GUEST_CSUM) | FEATURE(PVD_F_GUEST_TSO4))

struct scenario {
    const char *name;
    uint64_t with, without; /* features beside the driver's own, or not */
    uint32_t guests;        /* connected; guest 0 sends, to guest 1 if nothing else is said */
    uint32_t batch;         /* frames posted at once; 0: nothing is sent, and empty polls are counted */
    uint32_t len;           /* bytes of a frame */
    uint32_t rx_buf_size;
    uint32_t macs;                 /* addresses behind guest 1 */
    uint16_t gso_size;             /* of TCP frames that are not cut yet; 0: plain frames */
    bool flood, in_turn;           /* to all others: each frame, or one after the other */
    uint32_t flows, masks, tuples; /* UDP, and so many rules in as many masks, all of which send it to guest 1 */
    bool tunnel;                   /* guest 1 is on another bridge, behind a VXLAN: both ends of it are counted */
    uint8_t from_mode, to_mode;    /* enum pvs_vlan_mode of guest 0 and of the others; not trunk: with tag 10 */
};

static const struct scenario scenarios[] = {
    { .name = "split 64 B", .without = MRG_RXBUF, .guests = 2, .batch = 64, .len = 64 },
    { .name = "split mrg 64 B", .guests = 2, .batch = 64, .len = 64 },
    { .name = "split mrg in_order 64 B", .with = IN_ORDER, .guests = 2, .batch = 64, .len = 64 },
    { .name = "packed mrg 64 B", .with = PACKED, .guests = 2, .batch = 64, .len = 64 },
    { .name = "packed mrg in_order 64 B", .with = PACKED | IN_ORDER, .guests = 2, .batch = 64, .len = 64 },
    { .name = "split mrg 64 B, bursts of 4", .guests = 2, .batch = 4, .len = 64 },
    { .name = "split mrg 256 B", .guests = 2, .batch = 64, .len = 256 },
    { .name = "split mrg 1518 B", .guests = 2, .batch = 64, .len = 1518 },
    { .name = "packed mrg in_order 1518 B", .with = PACKED | IN_ORDER, .guests = 2, .batch = 64, .len = 1518 },
    { .name = "split mrg 9000 B over 2 KiB", .guests = 2, .batch = 64, .len = 9000 },
    { .name = "packed mrg in_order 9000 B over 2 KiB",
      .with = PACKED | IN_ORDER,
      .guests = 2,
      .batch = 64,
      .len = 9000 },
    { .name = "GSO 64 KiB over 4 KiB, passed through",
      .with = CSUM | HOST_TSO4 | GUEST_TSO4,
      .guests = 2,
      .batch = 32,
      .len = 65000,
      .rx_buf_size = 4096,
      .gso_size = 1448 },
    { .name = "GSO 64 KiB, cut", .with = CSUM | HOST_TSO4, .guests = 2, .batch = 8, .len = 65000, .gso_size = 1448 },
    { .name = "flood 1 to 7, 64 B, per copy", .guests = 8, .batch = 64, .len = 64, .flood = true },
    { .name = "split mrg 64 B, to 7 in turn", .guests = 8, .batch = 64, .len = 64, .in_turn = true },
    { .name = "split mrg 64 B, 65536 MACs", .guests = 2, .batch = 64, .len = 64, .macs = MANY_MACS },
    { .name = "split mrg 64 B, 62 idle ports", .guests = 64, .batch = 64, .len = 64 },
    { .name = "split mrg 64 B, access to access port",
      .guests = 2,
      .batch = 64,
      .len = 64,
      .from_mode = PVS_VLAN_ACCESS,
      .to_mode = PVS_VLAN_ACCESS },
    { .name = "split mrg 64 B, access port to trunk",
      .guests = 2,
      .batch = 64,
      .len = 64,
      .from_mode = PVS_VLAN_ACCESS },
    { .name = "split mrg 64 B, 1 flow", .guests = 2, .batch = 64, .len = 64, .flows = 1, .masks = 1, .tuples = 1 },
    { .name = "split mrg 64 B, 1000 flows in 50 masks, 64 concurrent",
      .guests = 2,
      .batch = 64,
      .len = 64,
      .flows = 1000,
      .masks = 50,
      .tuples = 64 },
    { .name = "VXLAN, out and in, 64 B", .guests = 2, .batch = 64, .len = 64, .tunnel = true },
    { .name = "VXLAN, out and in, 1450 B", .guests = 2, .batch = 64, .len = 1450, .tunnel = true },
    { .name = "VXLAN, out and in, GSO 64 KiB",
      .with = CSUM | HOST_TSO4 | GUEST_TSO4,
      .guests = 2,
      .batch = 4,
      .len = 65000,
      .rx_buf_size = 4096,
      .gso_size = 1386,
      .tunnel = true },
    { .name = "poll of an empty ring, of 64", .guests = 64 },
};

enum test_rings test_rings; /* of the lab: each scenario has its own features */

static struct lab lab; /* without ports of its own */
static struct lab_port guest[GUESTS];
static pvs_fdb *far_fdb; /* of the bridge behind a tunnel */
static struct flow_list flows;
static pvs_flow_table *flow_table;
static pvs_port *flow_ports[1]; /* what slot 0 stands for */
static uint32_t next_frame;
static uint8_t frame[PVS_MAX_FRAME], got[PVS_MAX_FRAME];
static struct virtio_net_hdr header;
static struct pvd_layout layout;

static void
ring_start(const struct lab_port *p, uint64_t features, uint32_t ring)
{
    struct pvd_vring v;
    CHECK_EQ(pvd_vring_get(p->guest, ring, &v), 0);
    struct pvs_ring_conf conf = { .desc_uva = v.desc_uva,
                                  .avail_uva = v.avail_uva,
                                  .used_uva = v.used_uva,
                                  .features = features,
                                  .num = v.num,
                                  .base = pvd_vring_base(p->guest, ring),
                                  .enabled = true,
                                  .kick_fd = v.kick_fd,
                                  .call_fd = v.call_fd,
                                  .worker = -1 };
    CHECK_EQ(lab_wait(&lab, pvs_ring_start(p->port, ring, &conf)), 0);
}

/* Rule k is for tuple k, which its source port tells. Masks differ in how much of the source's MAC they have, the later half has the
 * destination's address, too; each has a priority of its own. */
static void
make_flows(const struct scenario *s)
{
    uint32_t counter;

    flows.n_flows = flows.n_actions = 0;
    for (uint32_t k = 0; k < s->flows; k++) {
        uint32_t mask = k % s->masks, bits = mask % 25;
        CHECK_EQ(pvs_flow_counter_add(lab.sw, &counter), 0);
        flow_begin(&flows, mask, counter);
        flow_match(&flows, 1, 0, 16, 0x0800);
        flow_match(&flows, 3, 56, 8, 17);
        flow_match(&flows, 3, 16, 16, FIRST_PORT + k);
        flow_match(&flows, 2, 16, bits, LAB_MAC(0) & ((UINT64_C(1) << bits) - 1));
        if (mask >= 25)
            flow_match(&flows, 7, 0, 32, 0x0a000000 | (LAB_MAC(1) & 0xff));
        flow_act(&flows, PVS_ACT_OUTPUT, 0, 0);
    }
    if (s->flows != 0)
        CHECK_EQ(
            pvs_flow_table_create(lab.sw, flows.flow, flows.n_flows, flows.action, flows.n_actions, 1, &flow_table), 0);
}

/* That each frame matched a rule. */
static void
check_flows(const struct scenario *s, uint32_t frames)
{
    uint64_t sum = 0, packets, bytes, used;

    for (uint32_t k = 0; k < flows.n_flows; k++) {
        pvs_flow_counters_read(lab.sw, &flows.flow[k].counter, 1, &packets, &bytes, &used);
        CHECK(s->tuples != s->flows || packets > 0);
        sum += packets;
        pvs_flow_counter_remove(lab.sw, flows.flow[k].counter);
    }
    CHECK_EQ(sum, flows.n_flows == 0 ? 0 : frames);
}

/* Tuples are spread over the rules. */
static void
next_tuple(const struct scenario *s)
{
    uint32_t tuple = next_frame++ % s->tuples * (s->flows / s->tuples);
    lab_udp(frame, LAB_MAC(1), LAB_MAC(0), (uint16_t)tuple, s->len);
}

static void
connect_guests(const struct scenario *s, const struct pvd_conf *conf)
{
    struct pvs_port_conf ports[GUESTS + TUNNEL_ENDS];
    struct pvs_bridge_conf bridges[TUNNEL_ENDS];
    uint32_t n_bridges = s->tunnel ? TUNNEL_ENDS : 1;
    pvs_memory *old;

    for (uint32_t i = 0; i < s->guests; i++) {
        CHECK_EQ(pvs_port_create(lab.sw, 1, &guest[i].port), 0);
        CHECK_EQ(pvd_guest_create(conf, &guest[i].guest), 0);
        uint8_t mode = i == 0 ? s->from_mode : s->to_mode;
        ports[i] = (struct pvs_port_conf){
            .port = guest[i].port, .enabled = true, .vlan_mode = mode, .tag = mode == PVS_VLAN_TRUNK ? 0 : 10
        };
    }
    lab.conf.bridge.fdb = lab.fdb;
    if (s->flows != 0) {
        flow_ports[0] = guest[1].port;
        lab.conf.bridge.flows = flow_table;
        lab.conf.bridge.flow_ports = flow_ports;
        lab.conf.bridge.n_flow_ports = 1;
    }
    bridges[0] = bridges[1] = lab.conf.bridge;
    if (s->tunnel) {
        CHECK_EQ(pvs_fdb_create(lab.conf.fdb_limit, lab.conf.aging_s, 1, &far_fdb), 0);
        bridges[1].fdb = far_fdb;
        ports[1].bridge = 1;
        tunnel_ends_open(&lab, ports + s->guests);
    }
    uint32_t n_ports = s->guests + (s->tunnel ? TUNNEL_ENDS : 0);
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, ports, n_ports, bridges, n_bridges)), 0);
    for (uint32_t i = 0; i < s->guests; i++) {
        guest[i].memory = lab_map(guest[i].port, guest[i].guest);
        CHECK_EQ(pvs_port_set_memory(guest[i].port, guest[i].memory, &old), 0);
        ring_start(&guest[i], conf->features, 0);
        ring_start(&guest[i], conf->features, 1);
    }
}

static void
disconnect_guests(const struct scenario *s)
{
    pvs_memory *old;

    for (uint32_t i = 0; i < s->guests; i++) {
        CHECK(lab_wait(&lab, pvs_ring_stop(guest[i].port, 0)) >= 0);
        CHECK(lab_wait(&lab, pvs_ring_stop(guest[i].port, 1)) >= 0);
        CHECK_EQ(pvs_port_set_memory(guest[i].port, NULL, &old), 0);
        pvs_memory_destroy(old);
    }
    CHECK_EQ(lab_wait(&lab, pvs_publish(lab.sw, NULL, 0, NULL, 0)), 0);
    if (s->flows != 0)
        pvs_flow_table_destroy(flow_table);
    for (uint32_t i = 0; i < s->guests; i++) {
        CHECK_EQ(pvs_port_destroy(guest[i].port), 0);
        pvd_guest_destroy(guest[i].guest);
    }
    if (s->tunnel) {
        tunnel_ends_close(&lab);
        pvs_fdb_destroy(far_fdb);
    }
}

/* A frame of the case, and how it lies in its sender's memory: a frame that is not cut yet comes in pages, as from Linux. */
static void
make_frame(const struct scenario *s)
{
    static struct cooked c;
    uint64_t to = s->flood ? LAB_BROADCAST : LAB_MAC(1);

    header = (struct virtio_net_hdr){ 0 };
    layout = (struct pvd_layout){ 0 };
    if (s->gso_size == 0) {
        lab_frame(frame, to, LAB_MAC(0), s->len, 1);
        return;
    }
    struct recipe recipe = { .flags = ACK, .payload = s->len - 54 };
    cook(&recipe, PSEUDO, &c);
    CHECK_EQ(c.len, s->len);
    header = header_for(&recipe, &c, s->gso_size);
    header.hdr_len = (uint16_t)c.hdr_len;
    memcpy(frame, c.bytes, c.len);
    pvs_mac_store(frame, to);
    pvs_mac_store(frame + 6, LAB_MAC(0));
    layout.flags = PVD_LAYOUT_INDIRECT;
    layout.cuts[layout.n_cuts++] = VIRTIO_NET_HDR_LEGACY + 2;
    for (uint32_t at = 4096; at < s->len; at += 4096)
        layout.cuts[layout.n_cuts++] = at;
}

/* What a busy guest does: it takes back what was sent, posts, and wants no calls. */
static void
post(const struct scenario *s)
{
    for (uint32_t i = 0; i < s->batch; i++) {
        if (s->in_turn)
            pvs_mac_store(frame, LAB_MAC(1) + next_frame++ % (s->guests - 1));
        if (s->tuples != 0)
            next_tuple(s);
        if (s->macs != 0)
            pvs_mac_store(frame, LAB_MAC(1) + next_frame++ * 40503 % s->macs);
        CHECK_EQ(pvd_tx(guest[0].guest, 0, &header, frame, s->len, &layout), 0);
    }
    for (uint32_t i = 1; i < s->guests; i++) {
        if (i > 1 && !s->flood && !s->in_turn)
            break;
        CHECK(pvd_rx_fill(guest[i].guest, 0, RING, NULL) >= 0);
        CHECK_EQ(pvd_call_disarm(guest[i].guest, 0), 0);
    }
    CHECK_EQ(pvd_call_disarm(guest[0].guest, 1), 0);
    CHECK(pvd_kick(guest[0].guest, 1) >= 0);
}

/* This is what is counted. */
static void
poll_counted(const struct scenario *s)
{
    lab.now_ns += s->tunnel ? KICKS_NS : ROUND_NS;
    CALLGRIND_TOGGLE_COLLECT;
    int work = pvs_poll_once(lab.sw, 0, lab.now_ns);
    CALLGRIND_TOGGLE_COLLECT;
    CHECK(work >= 0);
}

/* Everything arrives; how many frames that was. */
static uint32_t
take(const struct scenario *s)
{
    uint32_t n = 0;

    for (uint32_t i = 1; i < s->guests; i++) {
        int len;
        while ((len = pvd_rx(guest[i].guest, 0, got, sizeof got, NULL)) >= 0)
            n++;
        CHECK_EQ(len, -11 /* EAGAIN */);
    }
    return n;
}

/* How many frames, or polls of a ring, the counted instructions were for. */
static uint32_t
run_batches(const struct scenario *s, uint32_t n)
{
    uint32_t done = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (s->batch == 0) {
            poll_counted(s);
            done += s->guests;
            continue;
        }
        post(s);
        /* what goes through the kernel comes with a later round */
        for (uint32_t taken = 0, rounds = 0; taken < s->batch || (s->tunnel && rounds < LATER); rounds++) {
            CHECK(rounds < PATIENCE);
            poll_counted(s);
            int reaped = pvd_tx_reap(guest[0].guest, 0);
            CHECK(reaped >= 0);
            taken += (uint32_t)reaped;
        }
        uint32_t arrived = take(s);
        CHECK(s->flood ? arrived == s->batch * (s->guests - 1)
                       : arrived >= s->batch && arrived % s->batch == 0); /* cut frames arrive as several */
        done += s->flood ? arrived : s->batch;
    }
    return done;
}

static void
know_addresses(const struct scenario *s)
{
    uint8_t mac[6];

    for (uint32_t i = 0; i < s->macs; i++) {
        pvs_mac_store(mac, LAB_MAC(1) + i);
        CHECK_EQ(pvs_fdb_set_static(lab.fdb, mac, 0, pvs_port_ref(guest[1].port), 0), 0);
    }
    if (s->macs != 0 || s->batch == 0)
        return;
    for (uint32_t i = 0; i < s->guests; i++) { /* everybody is learned from what he sends */
        uint8_t hello[60];
        lab_frame(hello, LAB_BROADCAST, LAB_MAC(i), sizeof hello, 0);
        CHECK_EQ(pvd_tx(guest[i].guest, 0, NULL, hello, sizeof hello, NULL), 0);
        CHECK(pvd_kick_force(guest[i].guest, 1) >= 0);
        lab_poll(&lab, 3);
        CHECK_EQ(pvd_tx_reap(guest[i].guest, 0), 1);
    }
}

static void
run(const struct scenario *s)
{
    struct lab_conf conf = lab_conf_default(0);
    conf.fdb_limit = 2 * MANY_MACS;
    conf.polling = s->batch == 0 ? PVS_POLL_BUSY : PVS_POLL_ADAPTIVE;
    conf.guest.features = (conf.guest.features | s->with) & ~s->without;
    conf.guest.queue_size = RING;
    conf.guest.tx_buf_size = s->len + 64;
    conf.guest.rx_buf_size = s->rx_buf_size != 0 ? s->rx_buf_size : conf.guest.rx_buf_size;

    lab_open(&lab, &conf);
    make_flows(s);
    connect_guests(s, &conf.guest);
    know_addresses(s);
    if (s->batch != 0)
        make_frame(s);
    lab_poll(&lab, 10);
    run_batches(s, WARM_UP);
    CALLGRIND_ZERO_STATS;
    uint32_t done = run_batches(s, BATCHES);
    CALLGRIND_DUMP_STATS_AT(s->name);
    printf("%u\t%s\n", done, s->name);
    fflush(stdout);
    check_flows(s, (WARM_UP + BATCHES) * s->batch);
    disconnect_guests(s);
    lab_close(&lab);
}

int
main(void)
{
    /* the widest kernel that valgrind knows */
    CHECK(pvs_copy_choose(PVS_COPY_AVX2));
    for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++)
        run(&scenarios[i]);
    return 0;
}
