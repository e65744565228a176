/* SPDX-License-Identifier: Apache-2.0 */
/* steer.c - see steer.h. */
#include "steer.h"

enum { IPPROTO_TCP_ = 6, IPPROTO_UDP_ = 17 };

static uint32_t
load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint16_t
load16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Ports of TCP or UDP at `at`, both directions alike; 0 when they aren't in the head. */
static uint32_t
ports(const struct pvs_frame *frame, uint32_t at, uint8_t protocol)
{
    if ((protocol != IPPROTO_TCP_ && protocol != IPPROTO_UDP_) || at + 4 > frame->head_len)
        return 0;
    return (uint32_t)(load16(frame->head + at) ^ load16(frame->head + at + 2));
}

static uint32_t
mix(uint64_t h)
{
    h *= 0x9e3779b97f4a7c15ULL;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93ULL;
    return (uint32_t)(h >> 32);
}

uint32_t
pvs_flow_hash(const struct pvs_frame *frame)
{
    const struct pvs_parsed *p = &frame->parsed;
    const uint8_t *l3 = frame->head + p->l3_offset;
    uint32_t room = (uint32_t)(frame->head_len - p->l3_offset);

    if (p->ethertype == ETHERTYPE_IPV4 && room >= 20) {
        bool fragment = (load16(l3 + 6) & 0xff3f) != 0; /* MF or an offset, as it lies in memory */
        uint32_t l4 = fragment ? 0 : ports(frame, p->l3_offset + (l3[0] & 0x0fU) * 4, l3[9]);
        return mix((uint64_t)(load32(l3 + 12) ^ load32(l3 + 16)) << 24 ^ l4 << 8 ^ l3[9]);
    }
    if (p->ethertype == ETHERTYPE_IPV6 && room >= 40) {
        uint64_t addresses = 0;
        for (int i = 8; i < 40; i += 4)
            addresses ^= (uint64_t)load32(l3 + i) << ((i - 8) % 16 * 2); /* a word and its partner 16 bytes on, alike */
        return mix(addresses ^ (uint64_t)ports(frame, p->l3_offset + 40U, l3[6]) << 8 ^ l3[6]);
    }
    return mix(p->dst ^ p->src);
}

void
pvs_steer_note(struct pvs_steering *steering, const struct pvs_frame *frame)
{
    _Atomic uint8_t *place = &steering->pair[pvs_flow_hash(frame) % PVS_STEER_PLACES];
    uint8_t pair = (uint8_t)(frame->pair + 1);

    if (atomic_load_explicit(place, memory_order_relaxed) != pair) /* most flows stay: keep the line shared */
        atomic_store_explicit(place, pair, memory_order_relaxed);
}

uint32_t
pvs_steer_choose(const struct pvs_steering *steering, const struct pvs_frame *frame, uint32_t up)
{
    if ((up & (up - 1)) == 0)
        return (uint32_t)__builtin_ctz(up);
    uint32_t hash = pvs_flow_hash(frame);
    uint32_t noted = atomic_load_explicit(&steering->pair[hash % PVS_STEER_PLACES], memory_order_relaxed);
    if (noted != 0 && (up >> (noted - 1) & 1) != 0)
        return noted - 1;
    for (uint32_t skip = (hash >> 8) % (uint32_t)__builtin_popcount(up); skip > 0; skip--)
        up &= up - 1;
    return (uint32_t)__builtin_ctz(up);
}
