/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_security.c - libFuzzer target: arbitrary bytes as a frame of a port with port security: the parser of IPv4, ARP, IPv6 and
 * neighbour discovery.
 *
 * Input: two bytes of settings (which lists there are, whether a checksum is left to be filled in; where), then the frame. The
 * frame's memory ends where its head does, so that AddressSanitizer sees each byte read beyond it. What is let through is then read as
 * its receiver would, slowly, with all of its bytes and after the checksum has been written: it must claim nothing that isn't listed.
 */
#include <sanitizer/asan_interface.h>
#include <stddef.h>
#include <stdlib.h>

#include "offload.h"
#include "parse.h"
#include "security.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SETTINGS = 2 };
enum { WITH_MACS = 1, WITH_NETWORKS = 2, WITH_SUM = 4 };

static const uint64_t MAC = 0x020000000001;
static const struct pvs_network NETWORKS[] = {
    { { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1 }, 128 },
    { { 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 }, 128 },
    { { 0x20, 0x01, 0x0d, 0xb8 }, 35 },
};
static uint8_t received[PVS_MAX_FRAME];

static void
require(bool truth)
{
    if (!truth)
        abort();
}

static bool
zero(const uint8_t *p, uint32_t n)
{
    while (n-- != 0)
        if (*p++ != 0)
            return false;
    return true;
}

static uint32_t
be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static bool
v4_listed(const uint8_t *p)
{
    return p[0] == 10 && p[1] == 0 && p[2] == 0 && p[3] == 1;
}

static bool
v6_listed(const uint8_t *p)
{
    return (p[0] == 0xfe && p[1] == 0x80 && zero(p + 2, 13) && p[15] == 1) ||
           (p[0] == 0x20 && p[1] == 0x01 && p[2] == 0x0d && p[3] == 0xb8 && p[4] < 0x20);
}

/* ---- what a receiver reads ---- */

static void
read_ipv4(const uint8_t *ip, uint32_t len)
{
    require(len >= 20);
    if (v4_listed(ip + 12))
        return;
    const uint8_t *udp = ip + 4 * (ip[0] & 15);
    require(zero(ip + 12, 4) && ip[9] == 17 && (be16(ip + 6) & 0x3fff) == 0);
    require(udp >= ip + 20 && udp + 8 <= ip + len && be16(udp) == 68 && be16(udp + 2) == 67);
}

static void
read_arp(const uint8_t *arp, uint32_t len)
{
    require(len >= 28 && be16(arp) == 1 && be16(arp + 2) == 0x0800 && arp[4] == 6 && arp[5] == 4);
    require(memcmp(arp + 8, received + 6, 6) == 0);
    if (be16(arp + 6) == 1 && zero(arp + 14, 4))
        require(v4_listed(arp + 24));
    else
        require(v4_listed(arp + 14));
}

static void
read_options(const uint8_t *at, const uint8_t *end)
{
    for (; at < end; at += 8 * at[1]) {
        require(end - at >= 8 && at[1] != 0 && 8 * at[1] <= end - at);
        if (at[0] == 1 || at[0] == 2)
            require(at[1] == 1 && memcmp(at + 2, received + 6, 6) == 0);
    }
}

static void
read_icmpv6(const uint8_t *at, const uint8_t *end, bool nobody, bool fragment)
{
    require(at < end);
    require(!nobody || at[0] == 131 || at[0] == 132 || at[0] == 143 || at[0] == 133 || at[0] == 135 || at[0] == 136);
    if (at[0] < 133 || at[0] > 137)
        return;
    require(at[0] != 134 && at[0] != 137 && !fragment);
    require(end - at >= (at[0] == 133 ? 8 : 24));
    if (at[0] == 136 || (at[0] == 135 && nobody))
        require(v6_listed(at + 8));
    read_options(at + (at[0] == 133 ? 8 : 24), end);
}

/* Header by header, each within the payload as the first header tells its length. */
static void
read_ipv6(const uint8_t *ip, uint32_t len)
{
    require(len >= 40);
    const uint8_t *at = ip + 40, *end = at + be16(ip + 4);
    bool nobody = zero(ip + 8, 16), fragment = false;
    uint8_t next = ip[6];

    require(nobody || v6_listed(ip + 8));
    if (end > ip + len)
        return; /* nobody takes it */
    for (;;) {
        uint32_t header = 0;
        if (next == 0 || next == 43 || next == 60 || next == 135 || next == 139 || next == 140)
            header = 8 + 8 * (end - at >= 8 ? at[1] : 0U);
        else if (next == 51)
            header = 8 + 4 * (end - at >= 8 ? at[1] : 0U);
        else if (next == 44)
            header = 8;
        else
            break;
        require(end - at >= (ptrdiff_t)header);
        if (next == 44 && (be16(at + 2) & 0xfff8) != 0) {
            require(!nobody);
            return; /* not the first fragment */
        }
        fragment |= next == 44;
        next = at[0];
        at += header;
    }
    require(next != 253 && next != 254);
    if (next == 58)
        read_icmpv6(at, end, nobody, fragment);
    else
        require(!nobody);
}

/* What a frame says that was let through. */
static void
read_all(uint32_t len)
{
    uint32_t at = 12;

    for (int tags = 0; tags < 2 && (be16(received + at) == 0x8100 || be16(received + at) == 0x88a8); tags++)
        at += 4;
    const uint8_t *l3 = received + at + 2;
    switch (be16(received + at)) {
    case 0x0800:
        read_ipv4(l3, len - at - 2);
        break;
    case 0x0806:
        read_arp(l3, len - at - 2);
        break;
    case 0x86dd:
        read_ipv6(l3, len - at - 2);
        break;
    default:
        abort();
    }
}

/* ---- the frame ---- */

static bool
allowed(const struct pvs_security *rules, const struct pvs_frame *whole)
{
    static struct pvs_frame frame;
    size_t used = offsetof(struct pvs_frame, head) + whole->head_len;

    memcpy((uint8_t *)&frame, whole, used);
    ASAN_POISON_MEMORY_REGION((uint8_t *)&frame + used, sizeof frame - used);
    bool passes = pvs_security_allows(rules, &frame);
    ASAN_UNPOISON_MEMORY_REGION(&frame, sizeof frame);
    return passes;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pvs_frame whole;
    struct pvs_seg tail;

    if (size < SETTINGS + PVS_ETH_HLEN || size - SETTINGS > PVS_MAX_FRAME)
        return 0;
    uint32_t len = (uint32_t)size - SETTINGS;
    struct pvs_security rules = { .n_macs = (data[0] & WITH_MACS) != 0,
                                  .mac = &MAC,
                                  .n_networks = data[0] & WITH_NETWORKS ? sizeof NETWORKS / sizeof NETWORKS[0] : 0,
                                  .network = NETWORKS };
    pvs_frame_from_bytes(&whole, &tail, data + SETTINGS, len);
    if (!pvs_parse(&whole))
        return 0;
    struct virtio_net_hdr header = { .flags = data[0] & WITH_SUM ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0,
                                     .csum_start = (uint16_t)(PVS_ETH_HLEN + data[1] / 2),
                                     .csum_offset = (uint16_t)(data[1] - data[1] / 2) };
    if (!pvs_offload_check(&whole, &header, PVS_OFFLOAD_CSUM) || !allowed(&rules, &whole))
        return 0;
    require(whole.parsed.src != 0 && !pvs_mac_is_group(whole.parsed.src));
    require(rules.n_macs == 0 || whole.parsed.src == MAC);
    memcpy(received, data + SETTINGS, len);
    for (int value = 0; rules.n_networks != 0 && value < 2; value++) {
        if (whole.request.checksum) /* whatever the sum comes to */
            memset(received + whole.request.csum_start + whole.request.csum_offset, value == 0 ? 0xff : 0x2d, 2);
        read_all(len);
    }
    return 0;
}
