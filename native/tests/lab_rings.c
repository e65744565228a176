/* SPDX-License-Identifier: Apache-2.0 */
/* lab_rings.c - what lab.h has for rings of either format: where they stand, and raw chains in them. */
#include "lab.h"

uint64_t
lab_ring_features(void)
{
    bool packed = test_rings == TEST_PACKED || test_rings == TEST_PACKED_IN_ORDER;
    bool in_order = test_rings == TEST_SPLIT_IN_ORDER || test_rings == TEST_PACKED_IN_ORDER;
    return (uint64_t)packed << PVD_F_RING_PACKED | (uint64_t)in_order << PVD_F_IN_ORDER;
}

bool
lab_packed(const struct lab *lab)
{
    return (lab->conf.guest.features >> PVD_F_RING_PACKED & 1) != 0;
}

uint32_t
lab_base(const struct lab *lab, uint32_t n)
{
    uint32_t num = lab->conf.guest.queue_size;
    uint32_t half = n % num | (n / num % 2 == 0 ? 0x8000U : 0); /* a wrap counter begins as 1 */
    return lab_packed(lab) ? half | half << 16 : n & 0xffff;
}

uint32_t
lab_used(const struct lab *lab, uint32_t port, uint32_t ring)
{
    return pvd_vring_base(lab->port[port].guest, ring);
}

int64_t
lab_kick_event(const struct lab *lab, uint32_t port, uint32_t ring)
{
    struct pvd_event event;

    if (!lab_packed(lab))
        return pvd_avail_event(lab->port[port].guest, ring);
    CHECK_EQ(pvd_event_get(lab->port[port].guest, ring, 1, &event), 0);
    return event.flags != PVD_EVENT_DESC ? -1 : (int64_t)event.off_wrap << 16 | event.off_wrap;
}

void
lab_post(const struct lab *lab, uint32_t port, uint32_t ring, uint16_t id, const struct lab_piece *piece, uint32_t n)
{
    static struct pvd_packed_desc chain[32768];
    pvd_guest *guest = lab->port[port].guest;

    for (uint32_t i = 0; i < n; i++) {
        uint16_t flags = piece[i].flags | (i + 1 < n ? PVD_DESC_NEXT : 0);
        struct pvd_desc split = { piece[i].addr, piece[i].len, flags, (uint16_t)(id + i + 1) };
        chain[i] = (struct pvd_packed_desc){ piece[i].addr, piece[i].len, id, flags };
        if (!lab_packed(lab))
            CHECK_EQ(pvd_desc_set(guest, ring, id + i, &split), 0);
    }
    CHECK_EQ(lab_packed(lab) ? pvd_packed_post(guest, ring, chain, n) : pvd_raw_post(guest, ring, id), 0);
}

void
lab_post_bad(const struct lab *lab, uint32_t port, uint32_t ring)
{
    struct lab_piece nowhere = { .addr = UINT64_MAX - 50, .len = 100 };
    lab_post(lab, port, ring, 0, &nowhere, 1);
}

struct lab_piece
lab_piece(const struct lab *lab, uint32_t port, uint32_t ring, uint16_t i)
{
    pvd_guest *guest = lab->port[port].guest;
    struct pvd_packed_desc packed;
    struct pvd_desc split;

    if (lab_packed(lab)) {
        CHECK_EQ(pvd_packed_get(guest, ring, i, &packed), 0);
        return (struct lab_piece){ packed.addr, packed.len, packed.flags };
    }
    CHECK_EQ(pvd_desc_get(guest, ring, i, &split), 0);
    return (struct lab_piece){ split.addr, split.len, split.flags };
}
