/* SPDX-License-Identifier: Apache-2.0 */
/* ring_fixture.c - see ring_fixture.h. */
#include "ring_fixture.h"

#include <stdlib.h>
#include <string.h>

#define BIT(n) (1ULL << (n))

static const uint64_t CHOICES = BIT(PVD_F_MRG_RXBUF) | BIT(PVD_F_INDIRECT_DESC) | BIT(PVD_F_EVENT_IDX) |
                                BIT(PVD_F_VERSION_1) | BIT(PVD_F_ANY_LAYOUT) | BIT(PVD_F_IN_ORDER);

static struct {
    pvs_switch *sw;
    pvs_fdb *fdb;
    pvs_port *port[N_PORTS];
    pvd_guest *guest[N_PORTS];
    pvs_memory *memory[N_PORTS];
    uint64_t now_ns;
} f;

void
require(int truth)
{
    if (!truth)
        abort();
}

uint64_t
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

struct fixture_features
fixture_features(struct input *in)
{
    uint64_t raw = take(in, 8), packed = raw >> 62 & 1, in_order = raw >> 63;
    return (struct fixture_features){
        .hostile = raw & CHOICES,
        .honest = (CHOICES & ~BIT(PVD_F_IN_ORDER)) | packed << PVD_F_RING_PACKED | in_order << PVD_F_IN_ORDER,
    };
}

pvd_guest *
fixture_guest(int p)
{
    return f.guest[p];
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
rings_start(int p, uint64_t features, uint32_t num, uint32_t base)
{
    require(pvd_guest_reset(f.guest[p], features) == 0);
    for (uint32_t ring = 0; ring < 2; ring++) {
        struct pvd_vring v;
        require(pvd_vring_get(f.guest[p], ring, &v) == 0);
        struct pvs_ring_conf conf = { .desc_uva = v.desc_uva,
                                      .avail_uva = v.avail_uva,
                                      .used_uva = v.used_uva,
                                      .features = features,
                                      .num = num,
                                      .base = base,
                                      .enabled = true,
                                      .kick_fd = -1,
                                      .call_fd = v.call_fd };
        wait_for(pvs_ring_start(f.port[p], ring, &conf));
    }
}

void
fixture_start(struct fixture_features features, uint32_t num, uint32_t base)
{
    open_once();
    rings_start(A, features.hostile, num, base);
    rings_start(B, features.hostile, num, base);
    rings_start(C, features.honest, NUM, 0x8000); /* where a packed ring begins; a split one knows by itself */
}

uint64_t
fixture_fold(int p, uint64_t raw)
{
    struct pvd_region upper;
    require(pvd_region_get(f.guest[p], 1, &upper) == 0);
    switch (raw >> 61) {
    case 0:
        return raw;
    case 1:
        return upper.gpa - 64 + raw % 128;
    case 2:
        return upper.gpa + upper.size - raw % 512;
    default:
        return pvd_scratch_gpa(f.guest[p]) + raw % 66000;
    }
}

uint32_t
fixture_len(uint64_t raw)
{
    return (uint32_t)((raw >> 29) != 0 ? raw & 0x7ff : raw);
}

void
fixture_litter(const struct input *in)
{
    for (int p = A; p <= B && in->left != 0; p++) {
        uint64_t at = pvd_scratch_gpa(f.guest[p]) + TABLE * sizeof(struct pvd_desc);
        size_t n = in->left < 4096 ? in->left : 4096;
        memcpy(pvd_ptr(f.guest[p], at, n), in->at, n);
    }
}

void
fixture_honest_turn(int turn)
{
    uint8_t frame[200] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5 }, got[PVD_GEN_MIN_LEN];
    int n;

    pvd_rx_fill(f.guest[C], 0, NUM, NULL);
    frame[0] = turn % 2 == 0 ? 2 : 0xff;
    require(pvd_tx(f.guest[C], 0, NULL, frame, sizeof frame, NULL) == 0);
    f.now_ns += 100000;
    require(pvs_poll_once(f.sw, 0, f.now_ns) >= 0);
    require(pvd_tx_reap(f.guest[C], 0) == 1);
    while ((n = pvd_rx(f.guest[C], 0, got, sizeof got, NULL)) >= 0 || n == -90 /* EMSGSIZE: a long frame */)
        ;
    require(n == -11); /* EAGAIN, never EPROTO */
    require(pvs_port_broken(f.port[C]) == 0);
}

void
fixture_stop(void)
{
    static uint8_t punted[PVS_MAX_FRAME];
    struct pvs_event event;
    struct pvs_punt punt;

    for (int p = 0; p < N_PORTS; p++)
        for (uint32_t ring = 0; ring < 2; ring++)
            wait_for(pvs_ring_stop(f.port[p], ring));
    while (pvs_event_next(f.sw, &event) == 1)
        require(event.kind != PVS_EV_BROKEN || event.port_ref != pvs_port_ref(f.port[C]));
    while (pvs_punt_next(f.sw, &punt, punted, sizeof punted) > 0)
        ;
    pvs_fdb_flush(f.fdb, &(struct pvs_fdb_filter){ 0 });
}
