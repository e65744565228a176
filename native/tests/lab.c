/* SPDX-License-Identifier: Apache-2.0 */
/* lab.c - see lab.h. */
#include "lab.h"

#include <poll.h>
#include <string.h>
#include <time.h>

#include "parse.h"
#include "uplink_lab.h"

struct lab_conf
lab_conf_default(uint32_t n_ports)
{
    struct lab_conf conf = {
        .n_ports = n_ports,
        .workers = 1,
        .polling = PVS_POLL_ADAPTIVE,
        .poll_us = 50,
        .fdb_limit = 1024,
        .aging_s = 300,
        .bridge = { .flood_unknown = true },
    };
    pvd_conf_default(&conf.guest);
    conf.guest.features |= lab_ring_features();
    return conf;
}

uint64_t
lab_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

uint32_t
lab_random(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(*state >> 33) % below;
}

void
lab_poll(struct lab *lab, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        lab->now_ns += LAB_STEP_NS;
        for (uint32_t w = 0; w < lab->conf.workers; w++)
            CHECK(pvs_poll_once(lab->sw, w, lab->now_ns) >= 0);
    }
}

int64_t
lab_wait(struct lab *lab, int64_t seq)
{
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;

    CHECK(seq > 0);
    for (;;) {
        uint64_t done;
        int64_t result;
        while (pvs_reap(lab->sw, &done, &result, 1) == 1) {
            lab->done[done % LAB_COMMANDS].seq = done;
            lab->done[done % LAB_COMMANDS].result = result;
        }
        if (lab->done[seq % LAB_COMMANDS].seq == (uint64_t)seq)
            return lab->done[seq % LAB_COMMANDS].result;
        CHECK(lab_clock_ns() < deadline);
        if (!lab->conf.threads) {
            lab_poll(lab, 1);
            continue;
        }
        struct pollfd p = { .fd = pvs_wake_fd(lab->sw), .events = POLLIN };
        CHECK(poll(&p, 1, LAB_DEADLINE_MS) == 1);
        pvs_wake_clear(lab->sw);
    }
}

void
lab_publish(struct lab *lab)
{
    struct pvs_port_conf ports[LAB_PORTS + LAB_UPLINKS + LAB_OTHERS];
    uint32_t n = 0;

    for (uint32_t i = 0; i < lab->conf.n_ports; i++)
        ports[n++] = lab->port[i].conf;
    for (uint32_t i = 0; i < lab->n_uplinks; i++)
        ports[n++] = lab->uplink[i].conf;
    for (uint32_t i = 0; i < lab->n_others; i++)
        ports[n++] = lab->other[i];
    lab->conf.bridge.fdb = lab->fdb;
    CHECK_EQ(lab_wait(lab, pvs_publish(lab->sw, ports, n, &lab->conf.bridge, 1)), 0);
}

pvs_memory *
lab_map(pvs_port *port, const pvd_guest *guest)
{
    pvs_region *region[PVD_MAX_REGIONS];
    uint32_t n = pvd_n_regions(guest);
    pvs_memory *memory;

    for (uint32_t i = 0; i < n; i++) {
        struct pvd_region r;
        CHECK_EQ(pvd_region_get(guest, i, &r), 0);
        CHECK_EQ(pvs_region_map(port, r.fd, r.gpa, r.size, r.uva, r.mmap_offset, &region[i]), 0);
    }
    CHECK_EQ(pvs_memory_create(region, n, &memory), 0);
    for (uint32_t i = 0; i < n; i++)
        pvs_region_unref(region[i]);
    return memory;
}

struct pvs_ring_conf
lab_ring_conf(const struct lab *lab, uint32_t port, uint32_t ring)
{
    struct pvd_vring v;
    CHECK_EQ(pvd_vring_get(lab->port[port].guest, ring, &v), 0);
    return (struct pvs_ring_conf){
        .desc_uva = v.desc_uva,
        .avail_uva = v.avail_uva,
        .used_uva = v.used_uva,
        .features = lab->conf.guest.features,
        .num = v.num,
        .base = lab->port[port].base[ring],
        .enabled = true,
        .kick_fd = lab->conf.no_kick ? -1 : v.kick_fd,
        .call_fd = v.call_fd,
        .worker = lab->port[port].worker,
    };
}

void
lab_ring_start(struct lab *lab, uint32_t port, uint32_t ring)
{
    struct pvs_ring_conf conf = lab_ring_conf(lab, port, ring);
    CHECK_EQ(lab_wait(lab, pvs_ring_start(lab->port[port].port, ring, &conf)), 0);
    lab->port[port].running[ring] = true;
}

int64_t
lab_ring_stop(struct lab *lab, uint32_t port, uint32_t ring)
{
    int64_t base = lab_wait(lab, pvs_ring_stop(lab->port[port].port, ring));
    lab_ring_stopped(lab, port, ring, base);
    return base;
}

void
lab_ring_stopped(struct lab *lab, uint32_t port, uint32_t ring, int64_t base)
{
    lab->port[port].running[ring] = false;
    lab->port[port].base[ring] = (uint32_t)base;
}

void
lab_reset(struct lab *lab, uint32_t port)
{
    struct lab_port *p = &lab->port[port];

    CHECK_EQ(pvd_guest_reset(p->guest, lab->conf.guest.features), 0);
    for (uint32_t ring = 0; ring < pvd_n_rings(p->guest); ring++)
        p->base[ring] = lab_base(lab, 0);
}

void
lab_attach(struct lab *lab, uint32_t port)
{
    struct lab_port *p = &lab->port[port];
    pvs_memory *old;

    p->memory = lab_map(p->port, p->guest);
    CHECK_EQ(pvs_port_set_memory(p->port, p->memory, &old), 0);
    pvs_memory_destroy(old);
    for (uint32_t ring = 0; ring < pvd_n_rings(p->guest); ring++)
        lab_ring_start(lab, port, ring);
}

void
lab_detach(struct lab *lab, uint32_t port)
{
    struct lab_port *p = &lab->port[port];
    pvs_memory *old;

    for (uint32_t ring = 0; ring < pvd_n_rings(p->guest); ring++)
        if (p->running[ring])
            CHECK(lab_ring_stop(lab, port, ring) >= 0);
    CHECK_EQ(pvs_port_set_memory(p->port, NULL, &old), 0);
    pvs_memory_destroy(old);
    p->memory = NULL;
}

void
lab_open(struct lab *lab, const struct lab_conf *conf)
{
    *lab = (struct lab){ .conf = *conf, .now_ns = 1000000000000ULL };
    struct pvs_switch_conf sc = { .n_workers = conf->workers, .polling = conf->polling, .poll_us = conf->poll_us };
    for (uint32_t i = 0; i < conf->workers; i++)
        sc.cpus[i] = -1;
    CHECK(conf->n_ports <= LAB_PORTS);
    CHECK_EQ(pvs_switch_create(&sc, &lab->sw), 0);
    CHECK_EQ(pvs_fdb_create(conf->fdb_limit, conf->aging_s, 1, &lab->fdb), 0);
    if (conf->threads)
        CHECK_EQ(pvs_switch_start(lab->sw), 0);
    for (uint32_t i = 0; i < conf->n_ports; i++) {
        struct lab_port *p = &lab->port[i];
        struct pvd_conf guest = conf->guest;
        if (conf->pairs[i] != 0)
            guest.queue_pairs = conf->pairs[i];
        p->worker = -1;
        CHECK_EQ(pvs_port_create(lab->sw, guest.queue_pairs, &p->port), 0);
        CHECK_EQ(pvd_guest_create(&guest, &p->guest), 0);
        for (uint32_t ring = 0; ring < pvd_n_rings(p->guest); ring++)
            p->base[ring] = lab_base(lab, 0);
        p->conf = (struct pvs_port_conf){ .port = p->port, .enabled = true };
    }
    lab_publish(lab);
    for (uint32_t i = 0; i < conf->n_ports; i++)
        lab_attach(lab, i);
}

void
lab_check_records(const struct lab *lab, const pvs_port *port)
{
    static struct pvs_record record[PVS_RECORDS];
    static uint64_t rx[PVS_DROP_COUNT], tx[PVS_DROP_COUNT];
    struct lab_counters c = lab_counters_of(port);

    memset(rx, 0, sizeof rx);
    memset(tx, 0, sizeof tx);
    for (uint32_t w = 0; w < lab->conf.workers; w++) {
        uint32_t n = pvs_records_read(lab->sw, w, PVS_RECORD_DROPS, 0, record, PVS_RECORDS);
        if (n != 0 && record[0].number != 0)
            return;
        for (uint32_t i = 0; i < n; i++) {
            CHECK(record[i].kind == PVS_RECORD_RX_DROP || record[i].kind == PVS_RECORD_TX_DROP);
            CHECK(record[i].drop > PVS_DROP_none && record[i].drop < PVS_DROP_COUNT && record[i].count != 0);
            if (record[i].port_ref == pvs_port_ref(port))
                (record[i].kind == PVS_RECORD_RX_DROP ? rx : tx)[record[i].drop] += record[i].count;
        }
    }
    CHECK(memcmp(rx, c.rx_drop, sizeof rx) == 0);
    CHECK(memcmp(tx, c.tx_drop, sizeof tx) == 0);
}

void
lab_close(struct lab *lab)
{
    uint32_t n = lab->conf.n_ports;

    for (uint32_t i = 0; i < n; i++)
        lab_detach(lab, i);
    for (uint32_t i = 0; i < lab->n_uplinks; i++)
        lab_uplink_stop_all(lab, i);
    CHECK_EQ(lab_wait(lab, pvs_publish(lab->sw, NULL, 0, NULL, 0)), 0);
    for (uint32_t i = 0; i < lab->n_uplinks; i++)
        lab_uplink_destroy(lab, i);
    for (uint32_t i = 0; i < n; i++) {
        lab_check_records(lab, lab->port[i].port);
        CHECK_EQ(pvs_port_destroy(lab->port[i].port), 0);
        pvd_guest_destroy(lab->port[i].guest);
    }
    pvs_switch_destroy(lab->sw);
    pvs_fdb_destroy(lab->fdb);
}

void
lab_frame(uint8_t *frame, uint64_t dst, uint64_t src, uint32_t len, uint32_t salt)
{
    CHECK(len >= 14);
    pvs_mac_store(frame, dst);
    pvs_mac_store(frame + 6, src);
    frame[12] = 0x88; /* IEEE 802, local experimental EtherType 1 */
    frame[13] = 0xb5;
    for (uint32_t i = 14; i < len; i++)
        frame[i] = (uint8_t)((i + salt) * 0x9e3779b1u >> 24);
}

void
lab_udp(uint8_t *frame, uint64_t dst, uint64_t src, uint16_t flow, uint32_t len)
{
    CHECK(len >= 42);
    bool client = src < dst;
    uint16_t port = (uint16_t)(10000 + flow), ip_len = (uint16_t)(len - 14), udp_len = (uint16_t)(len - 34);
    uint16_t from = client ? port : 80, to = client ? 80 : port;
    const uint8_t headers[] = {
        0x08,
        0, /* EtherType: IPv4 */
        0x45,
        0,
        (uint8_t)(ip_len >> 8),
        (uint8_t)ip_len,
        0,
        0,
        0,
        0,
        64,
        17,
        0,
        0,
        10,
        0,
        0,
        (uint8_t)src,
        10,
        0,
        0,
        (uint8_t)dst,
        (uint8_t)(from >> 8),
        (uint8_t)from,
        (uint8_t)(to >> 8),
        (uint8_t)to,
        (uint8_t)(udp_len >> 8),
        (uint8_t)udp_len,
        0,
        0, /* no checksum */
    };
    _Static_assert(sizeof headers == 30, "what follows the addresses");
    pvs_mac_store(frame, dst);
    pvs_mac_store(frame + 6, src);
    memcpy(frame + 12, headers, sizeof headers);
}

void
lab_send(struct lab *lab, uint32_t port, const uint8_t *frame, uint32_t len)
{
    pvd_guest *guest = lab->port[port].guest;
    CHECK(pvd_tx_reap(guest, 0) >= 0);
    CHECK_EQ(pvd_tx(guest, 0, NULL, frame, len, NULL), 0);
    CHECK(pvd_kick(guest, 1) >= 0);
}

void
lab_expect(struct lab *lab, uint32_t port, const uint8_t *frame, uint32_t len)
{
    static uint8_t got[PVS_MAX_FRAME];
    struct pvd_rx_info info;
    int n = pvd_rx(lab->port[port].guest, 0, got, sizeof got, &info);
    CHECK_EQ(n, len);
    CHECK(memcmp(got, frame, len) == 0);
    CHECK_EQ(info.flags, 0);
    CHECK_EQ(info.gso_type, 0);
}

void
lab_expect_nothing(struct lab *lab, uint32_t port)
{
    static uint8_t got[PVS_MAX_FRAME];
    CHECK_EQ(pvd_rx(lab->port[port].guest, 0, got, sizeof got, NULL), -11 /* EAGAIN */);
}

void
lab_fill(struct lab *lab, uint32_t port, uint32_t n)
{
    CHECK(pvd_rx_fill(lab->port[port].guest, 0, n, NULL) >= 0);
}

void
lab_learn_all(struct lab *lab)
{
    uint8_t frame[60], discarded[60];

    for (uint32_t i = 0; i < lab->conf.n_ports; i++) {
        lab_frame(frame, LAB_BROADCAST, LAB_MAC(i), sizeof frame, 0);
        lab_send(lab, i, frame, sizeof frame);
        lab_poll(lab, 2);
    }
    for (uint32_t i = 0; i < lab->conf.n_ports; i++)
        while (pvd_rx(lab->port[i].guest, 0, discarded, sizeof discarded, NULL) >= 0)
            ;
}

struct lab_counters
lab_counters_of(const pvs_port *port)
{
    struct lab_counters c;
    CHECK_EQ(pvs_counter_count(), PVS_COUNTER_COUNT);
    CHECK_EQ(pvs_drop_reason_count(), PVS_DROP_COUNT);
    pvs_port_counters(port, c.value, c.rx_drop, c.tx_drop);
    return c;
}

struct lab_counters
lab_counters(const struct lab *lab, uint32_t port)
{
    return lab_counters_of(lab->port[port].port);
}

struct pvd_counters
lab_driver(const struct lab *lab, uint32_t port, uint32_t ring)
{
    struct pvd_counters c;
    CHECK_EQ(pvd_counters_get(lab->port[port].guest, ring, &c), 0);
    return c;
}

uint64_t
lab_sum(const uint64_t *drops)
{
    uint64_t sum = 0;
    for (int i = 0; i < PVS_DROP_COUNT; i++)
        sum += drops[i];
    return sum;
}

/* The rings of a port carried what its counters say, and its guest has nothing to complain about. */
static void
check_rings(const struct lab *lab, uint32_t port, const struct lab_counters *c)
{
    struct pvs_ring_status sum[2] = { 0 };

    for (uint32_t ring = 0; ring < pvd_n_rings(lab->port[port].guest); ring++) {
        struct pvs_ring_status status;
        CHECK_EQ(pvs_ring_status(lab->port[port].port, ring, &status), 0);
        sum[ring % 2].packets += status.packets;
        sum[ring % 2].bytes += status.bytes;
        CHECK_EQ(lab_driver(lab, port, ring).errors, 0);
        CHECK_EQ(lab_driver(lab, port, ring).out_of_order, 0);
    }
    CHECK_EQ(sum[1].packets, c->value[PVS_C_rx_packets]);
    CHECK_EQ(sum[1].bytes, c->value[PVS_C_rx_bytes]);
    CHECK_EQ(sum[0].packets, c->value[PVS_C_tx_packets]);
    CHECK_EQ(sum[0].bytes, c->value[PVS_C_tx_bytes]);
}

void
lab_check_sizes(const struct lab_counters *c)
{
    uint64_t sizes = 0;

    for (int b = PVS_C_rx_1_to_64_packets; b <= PVS_C_rx_1523_to_max_packets; b++)
        sizes += c->value[b];
    CHECK_EQ(sizes, c->value[PVS_C_rx_packets]);
}

void
lab_check_port(const struct lab *lab, uint32_t port)
{
    struct lab_counters c = lab_counters(lab, port);

    lab_check_sizes(&c);
    check_rings(lab, port, &c);
}

void
lab_check_sums(const struct lab *lab)
{
    uint64_t in = 0, out = 0;
    for (uint32_t i = 0; i < lab->conf.n_ports; i++) {
        struct lab_counters c = lab_counters(lab, i);
        lab_check_port(lab, i);
        in += c.value[PVS_C_rx_packets] - (lab_sum(c.rx_drop) - c.rx_drop[PVS_DROP_malformed]);
        out += c.value[PVS_C_tx_packets] + lab_sum(c.tx_drop);
    }
    CHECK(lab->conf.n_ports != 2 || lab->n_uplinks != 0 ||
          in == out); /* with two ports there is one copy of each frame */
}
