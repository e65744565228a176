/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_flow.c - libFuzzer target: flows, and a frame of a guest that they are applied to, on its way to four others: one takes no offloads, one takes
 * all, one is in a VLAN, one is a mirror's output.
 *
 * Input: a record of settings (how many flows; what the sender asks to have finished), a record for each flow and one for each of its
 * actions, then the frame. A flow's key is taken from the frame, as far as its mask looks, so most flows match; one bit may be turned over.
 *
 * Checks: the flow that a search through all of them finds is the one that counts the frame, once; trace and traffic agree, copy by
 * copy; a frame whose checksums are right, or will be when they have been filled in, arrives with right ones, whatever was edited; a
 * frame that hides something goes nowhere.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "counters.h"
#include "driver/pvs_driver.h"
#include "flow_key.h"
#include "offload.h"
#include "parse.h"
#include "tests/flow_lab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SENDER, PLAIN, TAKES_ALL, ACCESS, WATCHER, PORTS, NUM = 256, LONGEST = 4000, FLOWS = 4, ACTIONS = 16 };
enum {
    ASKS = 1,
    HONEST = 2,
    RIGHT = 4
}; /* of settings.flags: for a checksum, where it belongs; finished ones are written */

struct settings {
    uint8_t flows, flags, gso_type, slow; /* slow: the meter lets nothing of this length through */
    uint8_t gso_size[2], csum_start, csum_offset;
};
struct flow_record {
    uint8_t words[2], byte, turned, priority, actions; /* words that count, and which bytes of them; a bit of the key */
};
struct action_record {
    uint8_t kind, value[3];
};

static struct {
    pvs_switch *sw;
    pvs_fdb *fdb;
    pvs_port *port[PORTS];
    pvd_guest *guest[PORTS];
    struct pvs_port_conf conf[PORTS];
    pvs_flow_table *table;
    pvs_flow_meter *meter;
    uint32_t counter[FLOWS];
    uint64_t now_ns;
} s;

static struct flow_list list;
static struct pvs_trace trace;
static uint8_t frame[LONGEST];
static uint32_t len;

static void
require(bool truth)
{
    if (!truth)
        abort();
}

static void
wait_for(int64_t seq)
{
    require(seq > 0);
    for (int i = 0; i < 10; i++) {
        uint64_t done;
        int64_t result;
        require(pvs_poll_once(s.sw, 0, s.now_ns) >= 0);
        while (pvs_reap(s.sw, &done, &result, 1) == 1) {
            require(result >= 0);
            if (done == (uint64_t)seq)
                return;
        }
    }
    abort();
}

/* ---- the switch ---- */

static uint64_t
features_of(int g)
{
    uint64_t features = 1ULL << PVD_F_MRG_RXBUF | 1ULL << PVD_F_VERSION_1;

    if (g == SENDER)
        features |= 1ULL << VIRTIO_NET_F_CSUM | 1ULL << VIRTIO_NET_F_HOST_TSO4 | 1ULL << VIRTIO_NET_F_HOST_TSO6 |
                    1ULL << VIRTIO_NET_F_HOST_ECN | 1ULL << VIRTIO_NET_F_HOST_USO;
    if (g == TAKES_ALL)
        features |= 1ULL << PVD_F_GUEST_CSUM | 1ULL << PVD_F_GUEST_TSO4 | 1ULL << PVD_F_GUEST_TSO6 |
                    1ULL << PVD_F_GUEST_ECN | 1ULL << PVD_F_GUEST_USO4 | 1ULL << PVD_F_GUEST_USO6;
    return features;
}

static void
open_guest(int g)
{
    struct pvd_region r;
    pvs_region *region;
    pvs_memory *memory, *old;
    struct pvd_conf gc;

    pvd_conf_default(&gc);
    gc.queue_size = NUM;
    gc.tx_buf_size = LONGEST + 64;
    gc.features = features_of(g);
    require(pvs_port_create(s.sw, 1, &s.port[g]) == 0);
    require(pvd_guest_create(&gc, &s.guest[g]) == 0);
    require(pvd_region_get(s.guest[g], 0, &r) == 0);
    require(pvs_region_map(s.port[g], r.fd, r.gpa, r.size, r.uva, r.mmap_offset, &region) == 0);
    require(pvs_memory_create(&region, 1, &memory) == 0);
    pvs_region_unref(region);
    require(pvs_port_set_memory(s.port[g], memory, &old) == 0);
    for (uint32_t ring = 0; ring < 2; ring++) {
        struct pvd_vring v;
        require(pvd_vring_get(s.guest[g], ring, &v) == 0);
        struct pvs_ring_conf conf = { .desc_uva = v.desc_uva,
                                      .avail_uva = v.avail_uva,
                                      .used_uva = v.used_uva,
                                      .features = gc.features,
                                      .num = NUM,
                                      .enabled = true,
                                      .kick_fd = -1,
                                      .call_fd = v.call_fd };
        wait_for(pvs_ring_start(s.port[g], ring, &conf));
    }
    s.conf[g] = (struct pvs_port_conf){ .port = s.port[g], .enabled = true };
}

static void
publish(bool slow)
{
    struct pvs_meter_conf meter = { .meter = s.meter, .limit = { .per_second = 1000, .depth = slow ? 1 : 70000 } };
    struct pvs_mirror_conf mirror = { .port = s.port[WATCHER], .drops = true };
    uint32_t number = 0;
    struct pvs_bridge_conf bridge = { .fdb = s.fdb,
                                      .flood_unknown = true,
                                      .n_mirrors = 1,
                                      .mirrors = &mirror,
                                      .flows = s.table,
                                      .n_flow_ports = PORTS,
                                      .flow_ports = s.port,
                                      .n_flow_meters = 1,
                                      .flow_meters = &meter,
                                      .n_flow_mirrors = 1,
                                      .flow_mirrors = &number };
    if (s.table == NULL)
        bridge.n_flow_ports = bridge.n_flow_meters = bridge.n_flow_mirrors = 0;
    wait_for(pvs_publish(s.sw, s.conf, PORTS, &bridge, 1));
}

static void
open_switch(void)
{
    struct pvs_switch_conf sc = { .n_workers = 1, .cpus = { -1 } };

    s.now_ns = 1000000000;
    require(pvs_switch_create(&sc, &s.sw) == 0);
    require(pvs_fdb_create(64, 300, 1, &s.fdb) == 0);
    require(pvs_flow_meter_create(s.sw, &s.meter) == 0);
    for (uint32_t i = 0; i < FLOWS; i++)
        require(pvs_flow_counter_add(s.sw, &s.counter[i]) == 0);
    for (int g = 0; g < PORTS; g++)
        open_guest(g);
    s.conf[ACCESS].vlan_mode = PVS_VLAN_ACCESS;
    s.conf[ACCESS].tag = 1;
    s.conf[PLAIN].mirror_out = 1;
    for (uint16_t vid = 0; vid < 3; vid++)
        for (uint8_t g = PLAIN; g <= ACCESS; g++) {
            uint8_t mac[6] = { 2, 0, 0, 0, 0, g };
            require(pvs_fdb_set_static(s.fdb, mac, vid, pvs_port_ref(s.port[g]), 0) == 0);
        }
    publish(false);
}

/* ---- the flows of an input ---- */

static void
read_action(const struct action_record *r)
{
    static const uint64_t limit[PVS_ACT_KINDS] = {
        [PVS_ACT_SET_VLAN_VID] = 4,     [PVS_ACT_SET_VLAN_PCP] = 8,     [PVS_ACT_SET_NW_SRC] = 1 << 24,
        [PVS_ACT_SET_NW_DST] = 1 << 24, [PVS_ACT_SET_TP_SRC] = 1 << 16, [PVS_ACT_SET_TP_DST] = 1 << 16,
        [PVS_ACT_SET_TUNNEL] = 1 << 24,
    };
    uint32_t kind = r->kind % PVS_ACT_KINDS;
    uint64_t value = (uint64_t)r->value[0] << 16 | (uint64_t)r->value[1] << 8 | r->value[2], slot = 0;

    if (kind == PVS_ACT_OUTPUT)
        slot = value % (PORTS + 1);
    else if (kind == PVS_ACT_PUSH_VLAN)
        value = value % 2 == 0 ? ETHERTYPE_8021Q : ETHERTYPE_8021AD;
    else if (kind == PVS_ACT_SET_NW_TOS)
        value &= 0xfc;
    else if (kind == PVS_ACT_SET_DL_SRC || kind == PVS_ACT_SET_DL_DST)
        value = value % 4 == 3 ? PVS_MAC_BROADCAST : 0x020000000000 | value % 4;
    else if (limit[kind] != 0)
        value %= limit[kind];
    flow_act(&list, kind, (uint32_t)slot, value);
}

static void
read_flow(const struct flow_record *r, uint32_t number, const uint64_t *key)
{
    struct pvs_flow_conf *f = flow_begin(&list, r->priority % 3, s.counter[number]);
    uint32_t words = (uint32_t)r->words[0] << 8 | r->words[1];

    for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
        for (uint32_t byte = 0; byte < 8; byte++)
            if ((words >> w & 1) != 0 && (r->byte >> byte & 1) != 0)
                f->mask[w] |= UINT64_C(0xff) << 8 * byte;
    for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
        f->key[w] = key[w] & f->mask[w];
    if ((r->turned & 1) != 0)
        f->key[(r->turned >> 1) % PVS_FLOW_WORDS] ^=
            f->mask[(r->turned >> 1) % PVS_FLOW_WORDS] & (UINT64_C(1) << r->priority % 64);
}

/* The counter of the best flow that matches; PVS_NO_FLOW: none does. */
static uint32_t
best_flow(const uint64_t *key)
{
    const struct pvs_flow_conf *best = NULL;

    for (uint32_t i = 0; i < list.n_flows; i++) {
        bool matches = best == NULL || list.flow[i].priority > best->priority;
        for (uint32_t w = 0; w < PVS_FLOW_WORDS; w++)
            matches &= (key[w] & list.flow[i].mask[w]) == list.flow[i].key[w];
        if (matches)
            best = &list.flow[i];
    }
    return best == NULL ? PVS_NO_FLOW : best->counter;
}

static bool
table_is_deep(void)
{
    for (uint32_t i = 0; i < list.n_flows; i++)
        for (uint32_t w = PVS_WORD_L4; w < PVS_FLOW_WORDS; w++)
            if (list.flow[i].mask[w] != 0)
                return true;
    for (uint32_t i = 0; i < list.n_actions; i++)
        if (list.action[i].kind >= PVS_ACT_SET_NW_SRC && list.action[i].kind <= PVS_ACT_DEC_TTL)
            return true;
    return false;
}

/* ---- the frame ---- */

/* What the virtio-net header says; with HONEST the frame's checksum field is made what it must be then. */
static struct virtio_net_hdr
make_request(const struct settings *set, bool *honest)
{
    struct virtio_net_hdr h = { 0 };
    struct flow_layout o = flow_layout_of(frame, len);

    *honest = false;
    if ((set->flags & ASKS) == 0)
        return h;
    h = (struct virtio_net_hdr){ .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                 .gso_type = set->gso_type,
                                 .gso_size = (uint16_t)flow_get16(set->gso_size),
                                 .csum_start = set->csum_start,
                                 .csum_offset = set->csum_offset };
    uint32_t room = o.l4 == 0 ? 0 : o.end - o.l4;
    bool tcp = o.proto == 6 && room >= 20, udp = o.proto == 17 && room >= 8;
    if ((set->flags & HONEST) == 0 || o.end != len || o.fragment || (!tcp && !udp))
        return h;
    flow_sums_write(frame, len);
    h.csum_start = (uint16_t)o.l4;
    h.csum_offset = tcp ? 16 : 6;
    flow_put16(frame + o.l4 + h.csum_offset, flow_pseudo(frame, &o));
    *honest = true;
    return h;
}

/* As the switch takes it. False: malformed. */
static bool
take(struct pvs_frame *whole, struct pvs_seg *tail, const struct virtio_net_hdr *h)
{
    pvs_frame_from_bytes(whole, tail, frame, len);
    return pvs_parse(whole) && pvs_offload_check(whole, h, pvs_offloads_sent(features_of(SENDER)));
}

/* What a receiver that takes offloads would finish by itself. */
static void
finish(uint8_t *got, uint32_t n, const struct pvd_rx_info *info)
{
    if ((info->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0)
        return;
    uint32_t at = (uint32_t)info->csum_start + info->csum_offset;
    require(at + 2 <= n);
    if (info->gso_type != VIRTIO_NET_HDR_GSO_NONE)
        return;
    uint32_t sum = 0xffff & ~flow_sum(0, got + info->csum_start, n - info->csum_start);
    flow_put16(got + at, sum == 0 && info->csum_offset == 6 ? 0xffff : sum);
}

/* What came to a guest: as trace said, and with right checksums, if these can be expected. */
static void
check_guest(int g, bool traced, bool right)
{
    static uint8_t got[PVS_MAX_FRAME];
    struct pvd_rx_info info;
    uint32_t next = 0;
    int n;

    while ((n = pvd_rx(s.guest[g], 0, got, sizeof got, &info)) >= 0) {
        finish(got, (uint32_t)n, &info);
        if (right && info.gso_type == VIRTIO_NET_HDR_GSO_NONE)
            require(flow_sums_right(got, (uint32_t)n));
        if (!traced)
            continue;
        while (next < trace.n_copies &&
               (trace.copy[next].drop != PVS_DROP_none || trace.copy[next].port_ref != pvs_port_ref(s.port[g])))
            next++;
        require(next < trace.n_copies && trace.copy[next].len == (uint32_t)n);
        require(memcmp(trace.copy[next].head, got, trace.copy[next].head_len) == 0);
        next++;
    }
    require(n == -EAGAIN);
    for (; traced && next < trace.n_copies; next++)
        require(trace.copy[next].drop != PVS_DROP_none || trace.copy[next].port_ref != pvs_port_ref(s.port[g]));
    struct pvd_counters c;
    require(pvd_counters_get(s.guest[g], 0, &c) == 0 && c.errors == 0 && pvs_port_broken(s.port[g]) == 0);
}

struct seen {
    uint64_t value[PVS_COUNTER_COUNT], rx_drop[PVS_DROP_COUNT], tx_drop[PVS_DROP_COUNT];
    uint64_t packets[FLOWS], bytes[FLOWS], used[FLOWS];
};

static struct seen
look(void)
{
    struct seen c;

    memset(&c, 0, sizeof c);

    pvs_port_counters(s.port[SENDER], c.value, c.rx_drop, c.tx_drop);
    pvs_flow_counters_read(s.sw, s.counter, FLOWS, c.packets, c.bytes, c.used);
    return c;
}

static void
deliver(const struct virtio_net_hdr *h, bool hides, uint32_t counter, bool traced, bool right)
{
    struct seen before = look();
    uint64_t dropped = 0;

    if (traced) {
        struct pvs_trace_conf conf = { .frame = frame, .len = len, .vid = PVS_UNMAPPED };
        wait_for(pvs_trace_frame(s.port[SENDER], &conf, &trace));
        struct seen now = look();
        require(memcmp(&before, &now, sizeof now) == 0);
        require(trace.counter == counter);
    }
    for (int g = 0; g < PORTS; g++)
        require(pvd_rx_fill(s.guest[g], 0, NUM, NULL) >= 0);
    require(pvd_tx_reap(s.guest[SENDER], 0) >= 0);
    uint8_t header[12] = { 0 };
    memcpy(header, h, sizeof *h < sizeof header ? sizeof *h : sizeof header);
    require(pvd_tx(s.guest[SENDER], 0, header, frame, len, NULL) == 0);
    while (pvs_poll_once(s.sw, 0, s.now_ns) > 0)
        ;
    struct seen after = look();
    for (int d = 0; d < PVS_DROP_COUNT; d++)
        dropped += after.rx_drop[d] - before.rx_drop[d];
    require(dropped <= 1 && !(hides && after.rx_drop[PVS_DROP_malformed] == before.rx_drop[PVS_DROP_malformed]));
    require(hides || after.value[PVS_C_rx_packets] - before.value[PVS_C_rx_packets] == 1);
    require(!traced || dropped == (trace.drop != PVS_DROP_none));
    require(!traced || trace.drop == PVS_DROP_none || after.rx_drop[trace.drop] - before.rx_drop[trace.drop] == 1);
    for (uint32_t i = 0; i < FLOWS; i++) {
        uint64_t is_it = !hides && counter == s.counter[i];
        require(after.packets[i] - before.packets[i] == is_it && after.bytes[i] - before.bytes[i] == is_it * len);
    }
    for (int g = 0; g < PORTS; g++)
        check_guest(g, traced, right && !hides);
}

/* What is left of the input, in pieces. False: not so much. */
static bool
next_record(const uint8_t **data, size_t *size, void *out, size_t n)
{
    if (*size < n)
        return false;
    memcpy(out, *data, n);
    *data += n;
    *size -= n;
    return true;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pvs_frame whole;
    struct flow_record flow[FLOWS];
    struct action_record action[FLOWS][ACTIONS];
    struct settings set;
    struct pvs_seg tail;
    uint64_t key[PVS_FLOW_WORDS] = { 0 };
    pvs_flow_table *old = s.table;
    bool honest;

    if (s.sw == NULL)
        open_switch();
    if (!next_record(&data, &size, &set, sizeof set))
        return 0;
    uint32_t n = set.flows % (FLOWS + 1);
    for (uint32_t i = 0; i < n; i++)
        if (!next_record(&data, &size, &flow[i], sizeof flow[i]) ||
            !next_record(&data, &size, action[i], flow[i].actions % (ACTIONS + 1) * sizeof action[i][0]))
            return 0;
    if (size < PVS_ETH_HLEN || size > LONGEST)
        return 0;
    memcpy(frame, data, len = (uint32_t)size);
    if ((set.flags & RIGHT) != 0)
        flow_sums_write(frame, len);
    struct virtio_net_hdr h = make_request(&set, &honest);
    bool taken = take(&whole, &tail, &h), hides = !taken;
    if (taken) {
        pvs_flow_pull(&whole);
        /* the slots of ports are their numbers here */
        pvs_flow_key(&whole, SENDER, 0, PVS_DEPTH_L3, key);
    }
    list.n_flows = list.n_actions = 0;
    for (uint32_t i = 0; i < n; i++) {
        read_flow(&flow[i], i, key);
        for (uint32_t k = 0; k < flow[i].actions % (ACTIONS + 1U); k++)
            read_action(&action[i][k]);
    }
    pvs_flow_table *table = NULL;
    int rc = pvs_flow_table_create(s.sw, list.flow, list.n_flows, list.action, list.n_actions, 1, &table);
    require(rc == 0 || rc == -EINVAL);
    if (rc != 0)
        return 0;
    s.table = table;
    s.now_ns += 100000000000;
    wait_for(pvs_sync(s.sw));
    require(pvs_fdb_flush(s.fdb, &(struct pvs_fdb_filter){ 0 }) >= 0);
    publish((set.slow & 1) != 0);
    if (old != NULL)
        pvs_flow_table_destroy(old);
    hides |= whole.malformed && (table_is_deep() || whole.request.checksum);
    bool seen = flow_layout_of(frame, len).l3 != 0; /* and not behind a third tag, which may come off */
    bool right = honest || ((set.flags & ASKS) == 0 && seen && flow_sums_right(frame, len));
    deliver(&h, hides, hides ? PVS_NO_FLOW : best_flow(key), taken && (set.flags & ASKS) == 0, right);
    return 0;
}
