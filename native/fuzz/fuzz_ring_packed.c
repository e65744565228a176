/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_ring_packed.c - libFuzzer target: arbitrary bytes as packed rings (ring_fixture.h). The fuzzer writes the transmit
 * ring of A, the receive ring of B and both guests' memory, and writes again between two rounds of the switch.
 *
 * Input: 8 bytes of settings (features), the rings' size less one, where they go on (the wrap counter in the highest bit);
 * then a stream that fills descriptors, the guests' event areas and indirect tables of A and B in turn, and in each turn
 * changes a few descriptors of both. AVAIL and USED are as the place needs them, for as many descriptors as the input says,
 * but for bits that it flips.
 */
#include <stdbool.h>

#include "ring_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { WRAP = 0x8000 };

static uint32_t num;

static struct pvd_packed_desc
descriptor(struct input *in, int p)
{
    struct pvd_packed_desc d;
    d.addr = fixture_fold(p, take(in, 8));
    d.len = fixture_len(take(in, 4));
    d.flags = (uint16_t)take(in, 1);
    d.id = (uint16_t)take(in, 1);
    if (d.id < 0xf8)
        d.id = (uint16_t)(d.id % num);
    return d;
}

/* Write a descriptor at a place; its bits 3 and 4 flip AVAIL and USED. */
static void
put(int p, uint32_t ring, uint32_t at, bool available, struct pvd_packed_desc d)
{
    bool avail = (at & WRAP) != 0, used = available ? !avail : avail;
    uint16_t flags = d.flags & (PVD_DESC_NEXT | PVD_DESC_WRITE | PVD_DESC_INDIRECT);

    if ((flags & PVD_DESC_INDIRECT) != 0 && (d.len & 1) != 0) { /* an odd length makes a good one */
        d.addr = pvd_scratch_gpa(fixture_guest(p));
        d.len = 16 * (1 + d.len % TABLE);
    }
    avail ^= (d.flags & 8) != 0;
    used ^= (d.flags & 16) != 0;
    d.flags = (uint16_t)(flags | (avail ? PVD_DESC_AVAIL : 0) | (used ? PVD_DESC_USED : 0));
    require(pvd_packed_set(fixture_guest(p), ring, at & (WRAP - 1), &d) == 0);
}

static uint32_t
advance(uint32_t at)
{
    return (at & (WRAP - 1)) + 1 < num ? at + 1 : (at & WRAP) ^ WRAP;
}

/* The whole of a ring, from the input, and an indirect table in scratch. */
static void
ring_fill(struct input *in, int p, uint32_t ring, uint32_t at)
{
    pvd_guest *guest = fixture_guest(p);
    uint32_t ahead = (uint32_t)take(in, 1);
    struct pvd_event event = { .off_wrap = (uint16_t)take(in, 2), .flags = (uint16_t)take(in, 1) };

    struct pvd_packed_desc *table = pvd_ptr(guest, pvd_scratch_gpa(guest), TABLE * sizeof *table);
    for (uint32_t i = 0; i < TABLE; i++)
        table[i] = descriptor(in, p);
    for (uint32_t i = 0; i < num; i++, at = advance(at))
        put(p, ring, at, i < ahead, descriptor(in, p));
    require(pvd_event_set(guest, ring, 0, &event) == 0);
}

/* A guest that goes on writing, also where it must not. */
static void
ring_change(struct input *in, int p, uint32_t ring)
{
    for (uint32_t n = take(in, 1) % 8; n > 0; n--) {
        uint32_t at = (uint32_t)take(in, 1);
        put(p, ring, at % num | (at & 0x80) << 8, true, descriptor(in, p));
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };

    if (size < 16)
        return 0;
    struct fixture_features features = fixture_features(&in);
    features.hostile |= 1ULL << PVD_F_RING_PACKED;
    num = 1 + (uint32_t)take(&in, 1) % NUM;
    uint32_t where = (uint32_t)take(&in, 1), base = where % num | (where & 0x80) << 8;
    fixture_start(features, num, base);
    ring_fill(&in, A, 1, base);
    ring_fill(&in, B, 0, base);
    fixture_litter(&in);
    for (int turn = 0; turn < TURNS; turn++) {
        fixture_honest_turn(turn);
        ring_change(&in, A, 1);
        ring_change(&in, B, 0);
    }
    fixture_stop();
    return 0;
}
