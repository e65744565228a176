/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_ring.c - libFuzzer target: arbitrary bytes as rings. Three ports on a bridge; the fuzzer writes the transmit ring of A, the
 * receive ring of B and both guests' memory; C is an honest guest that sends to B and receives A's floods.
 *
 * Input: 8 bytes of settings (features; avail indices, as a distance from the used index; which address range the addresses of
 * descriptors are folded into), then a stream that fills descriptors, avail rings and indirect tables of A and B in turn.
 * Addresses are folded so that most of them hit memory, and borders between the two regions; one in eight is left as it is.
 * Whatever comes: no crash, no hang, and the honest guest finds its rings in order.
 */
#include <stdlib.h>
#include <string.h>

#include "driver/pvs_driver.h"
#include "pvs_api.h"
#include "virtio_abi.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { A, B, C, N_PORTS, NUM = 16, TABLE = 24 };

struct input {
    const uint8_t *at;
    size_t left;
};

struct fixture {
    pvs_switch *sw;
    pvs_fdb *fdb;
    pvs_port *port[N_PORTS];
    pvd_guest *guest[N_PORTS];
    pvs_memory *memory[N_PORTS];
    uint64_t now_ns;
};

static struct fixture f;

static void
require(int truth)
{
    if (!truth)
        abort();
}

static uint64_t
take(struct input *in, size_t n)
{
    uint64_t value = 0;
    if (n > in->left)
        n = in->left;
    memcpy(&value, in->at, n);
    in->at += n;
    in->left -= n;
    return value;
}

static void
wait_for(int64_t seq)
{
    require(seq > 0);
    for (int i = 0; i < 10; i++) {
        uint64_t done;
        int64_t result;
        f.now_ns += 100000;
        require(pvs_poll_once(f.sw, 0, f.now_ns) >= 0);
        while (pvs_reap(f.sw, &done, &result, 1) == 1)
            if (done == (uint64_t)seq)
                return;
    }
    abort();
}

static void
map(int p)
{
    pvs_region *region[2];
    pvs_memory *old;
    for (uint32_t i = 0; i < 2; i++) {
        struct pvd_region r;
        require(pvd_region_get(f.guest[p], i, &r) == 0);
        require(pvs_region_map(f.port[p], r.fd, r.gpa, r.size, r.uva, r.mmap_offset, &region[i]) == 0);
    }
    require(pvs_memory_create(region, 2, &f.memory[p]) == 0);
    pvs_region_unref(region[0]);
    pvs_region_unref(region[1]);
    require(pvs_port_set_memory(f.port[p], f.memory[p], &old) == 0);
}

static void
open_once(void)
{
    struct pvs_switch_conf sc = { .n_workers = 1, .cpus = { -1 } };
    struct pvs_port_conf ports[N_PORTS];
    struct pvs_bridge_conf bridge = { .flood_unknown = true, .punt_bpdu = true };
    struct pvd_conf gc;

    if (f.sw != NULL)
        return;
    pvd_conf_default(&gc);
    gc.queue_size = NUM;
    gc.n_regions = 2;
    gc.flags = PVD_CONF_ADJACENT;
    require(pvs_switch_create(&sc, &f.sw) == 0);
    require(pvs_fdb_create(64, 300, 1, &f.fdb) == 0);
    for (int p = 0; p < N_PORTS; p++) {
        require(pvs_port_create(f.sw, 1, &f.port[p]) == 0);
        require(pvd_guest_create(&gc, &f.guest[p]) == 0);
        ports[p] = (struct pvs_port_conf){ .port = f.port[p], .enabled = true, .mtu = p == C ? 1500 : 0 };
        map(p);
    }
    bridge.fdb = f.fdb;
    f.now_ns = 1000000000;
    wait_for(pvs_publish(f.sw, ports, N_PORTS, &bridge, 1));
}

static void
rings_start(int p, uint64_t features)
{
    require(pvd_guest_reset(f.guest[p], features) == 0);
    for (uint32_t ring = 0; ring < 2; ring++) {
        struct pvd_vring v;
        require(pvd_vring_get(f.guest[p], ring, &v) == 0);
        struct pvs_ring_conf conf = { .desc_uva = v.desc_uva,
                                      .avail_uva = v.avail_uva,
                                      .used_uva = v.used_uva,
                                      .features = features,
                                      .num = NUM,
                                      .enabled = true,
                                      .kick_fd = -1,
                                      .call_fd = v.call_fd };
        wait_for(pvs_ring_start(f.port[p], ring, &conf));
    }
}

static void
rings_stop(int p)
{
    for (uint32_t ring = 0; ring < 2; ring++)
        wait_for(pvs_ring_stop(f.port[p], ring));
}

/* Fold an arbitrary address into scratch memory (which ends where memory does), or about the border of the regions. */
static uint64_t
fold(int p, uint64_t raw)
{
    struct pvd_region upper;
    require(pvd_region_get(f.guest[p], 1, &upper) == 0);
    switch (raw >> 61) {
    case 0:
        return raw;
    case 1:
        return upper.gpa - 64 + raw % 128;
    default:
        return pvd_scratch_gpa(f.guest[p]) + raw % 66000;
    }
}

static struct pvd_desc
descriptor(struct input *in, int p)
{
    struct pvd_desc d;
    d.addr = fold(p, take(in, 8));
    d.len = (uint32_t)take(in, 4);
    if ((d.len >> 29) != 0)
        d.len &= 0x7ff;
    d.flags = (uint16_t)(take(in, 1) & 7);
    d.next = (uint16_t)take(in, 1);
    if ((d.next & 0xe0) != 0)
        d.next &= NUM - 1;
    return d;
}

/* The whole of a ring, from the input: table, avail entries and index, event, and an indirect table in scratch. */
static void
ring_fill(struct input *in, int p, uint32_t ring)
{
    pvd_guest *guest = f.guest[p];
    uint16_t ahead = (uint16_t)take(in, 1);

    struct pvd_desc *table = pvd_ptr(guest, pvd_scratch_gpa(guest), TABLE * sizeof *table);
    for (uint32_t i = 0; i < TABLE; i++)
        table[i] = descriptor(in, p);
    for (uint32_t i = 0; i < NUM; i++) {
        struct pvd_desc d = descriptor(in, p);
        if ((d.flags & PVD_DESC_INDIRECT) && (d.len & 1)) /* an odd length makes a good one */
            d = (struct pvd_desc){ .addr = pvd_scratch_gpa(guest), .len = 16 * (1 + d.len % TABLE), .flags = d.flags };
        pvd_desc_set(guest, ring, i, &d);
        pvd_avail_entry_set(guest, ring, i, (uint16_t)(take(in, 1) % (NUM + 1)));
    }
    pvd_avail_flags_set(guest, ring, (uint16_t)take(in, 1));
    pvd_used_event_set(guest, ring, (uint16_t)take(in, 1));
    pvd_avail_idx_set(guest, ring, ahead <= NUM + 1 ? ahead : ahead % NUM);
}

static void
honest_guest(void)
{
    uint8_t frame[200] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5 }, got[PVD_GEN_MIN_LEN];
    for (int i = 0; i < 4; i++) {
        pvd_rx_fill(f.guest[C], 0, NUM, NULL);
        frame[0] = i % 2 == 0 ? 2 : 0xff;
        require(pvd_tx(f.guest[C], 0, NULL, frame, sizeof frame, NULL) == 0);
        f.now_ns += 100000;
        require(pvs_poll_once(f.sw, 0, f.now_ns) >= 0);
        require(pvd_tx_reap(f.guest[C], 0) == 1);
        int n;
        while ((n = pvd_rx(f.guest[C], 0, got, sizeof got, NULL)) >= 0 || n == -90 /* EMSGSIZE: a long frame */)
            ;
        require(n == -11); /* EAGAIN, never EPROTO */
    }
    require(pvs_port_broken(f.port[C]) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t CHOICES = 1ULL << PVD_F_MRG_RXBUF | 1ULL << PVD_F_INDIRECT_DESC | 1ULL << PVD_F_EVENT_IDX |
                                    1ULL << PVD_F_VERSION_1 | 1ULL << PVD_F_ANY_LAYOUT;
    struct input in = { data, size };
    struct pvs_event event;
    struct pvs_punt punt;
    static uint8_t punted[PVS_MAX_FRAME];

    if (size < 16)
        return 0;
    open_once();
    uint64_t features = take(&in, 8) & CHOICES;
    rings_start(A, features);
    rings_start(B, features);
    rings_start(C, CHOICES);
    ring_fill(&in, A, 1);
    ring_fill(&in, B, 0);
    for (int p = A; p <= B && in.left != 0; p++) { /* the rest lies about in memory: headers and frames */
        uint64_t at = pvd_scratch_gpa(f.guest[p]) + TABLE * sizeof(struct pvd_desc);
        size_t n = in.left < 4096 ? in.left : 4096;
        memcpy(pvd_ptr(f.guest[p], at, n), in.at, n);
    }
    honest_guest();
    rings_stop(A);
    rings_stop(B);
    rings_stop(C);
    while (pvs_event_next(f.sw, &event) == 1)
        require(event.kind != PVS_EV_BROKEN || event.port_ref != pvs_port_ref(f.port[C]));
    while (pvs_punt_next(f.sw, &punt, punted, sizeof punted) > 0)
        ;
    pvs_fdb_flush(f.fdb, &(struct pvs_fdb_filter){ 0 });
    return 0;
}
