/* SPDX-License-Identifier: Apache-2.0 */
/* security_lab.h - frames of a port with port security, put together byte by byte (security.h). */
#ifndef PVS_SECURITY_LAB_H
#define PVS_SECURITY_LAB_H

#include <string.h>

#include "parse.h"
#include "security.h"
#include "test.h"

enum { ARP = 0x0806, REQUEST = 1, REPLY = 2, UDP = 17, TCP = 6, ICMP6 = 58, NONE = 59 };
enum { RS = 133, RA, NS, NA, REDIRECT };

static const uint64_t OWN = 0x020000000001;
static const uint8_t OWN_MAC[6] = { 2, 0, 0, 0, 0, 1 }, OTHER_MAC[6] = { 2, 0, 0, 0, 0, 2 };
static const uint8_t V4[4] = { 10, 0, 0, 1 }, VICTIM4[4] = { 10, 0, 0, 2 }, NO4[4] = { 0 };
static const uint8_t V6[16] = { 0x20, 1, 0xd, 0xb8, [15] = 1 }, VICTIM6[16] = { 0x20, 1, 0xd, 0xb8, [15] = 2 };
static const uint8_t LINK[16] = { 0xfe, 0x80, [15] = 1 }, NO6[16] = { 0 };
static const struct pvs_network NETWORKS[] = {
    { { [10] = 0xff, 0xff, 10, 0, 0, 1 }, 128 },
    { { [10] = 0xff, 0xff, 192, 168, 16, 0 }, 96 + 20 },
    { { 0x20, 1, 0xd, 0xb8, [15] = 1 }, 128 },
    { { 0xfe, 0x80, [15] = 1 }, 128 },
    { { 0xfd, 0, 0xa0 }, 19 },
};
static struct pvs_security rules;
static uint8_t bytes[600];
static uint32_t len, ip6; /* where the IPv6 header is, whose length is still to be written */
static struct pvs_request request;

/* ---- frames ---- */

static inline void
put(const void *what, uint32_t n)
{
    memcpy(bytes + len, what, n);
    len += n;
}

static inline void
put16(uint32_t value)
{
    put((uint8_t[]){ (uint8_t)(value >> 8), (uint8_t)value }, 2);
}

static inline void
zeros(uint32_t n)
{
    memset(bytes + len, 0, n);
    len += n;
}

static inline void
ethernet(uint32_t type)
{
    rules = (struct pvs_security){ .n_networks = sizeof NETWORKS / sizeof NETWORKS[0], .network = NETWORKS };
    request = (struct pvs_request){ 0 };
    len = ip6 = 0;
    put("\xff\xff\xff\xff\xff\xff", 6);
    put(OWN_MAC, 6);
    put16(type);
}

static inline void
arp(uint8_t operation, const uint8_t *mac, const uint8_t *sender, const uint8_t *target)
{
    ethernet(ARP);
    put((uint8_t[]){ 0, 1, 8, 0, 6, 4, 0, operation }, 8);
    put(mac, 6);
    put(sender, 4);
    zeros(6);
    put(target, 4);
}

/* `words` of a header, without payload. */
static inline void
ipv4(const uint8_t *source, uint8_t protocol, uint8_t words, uint16_t fragment)
{
    ethernet(ETHERTYPE_IPV4);
    put((uint8_t[]){ (uint8_t)(0x40 | words), 0 }, 2);
    put16(words * 4U + 8);
    put16(7);
    put16(fragment);
    put((uint8_t[]){ 64, protocol, 0, 0 }, 4);
    put(source, 4);
    put("\xff\xff\xff\xff", 4);
    zeros(words > 5 ? words * 4U - 20 : 0);
}

static inline void
udp(uint16_t from, uint16_t to)
{
    put16(from);
    put16(to);
    put16(8);
    put16(0);
}

static inline void
ipv6(const uint8_t *source, uint8_t next)
{
    ethernet(ETHERTYPE_IPV6);
    ip6 = len;
    put((uint8_t[]){ 0x60, 0, 0, 0, 0, 0, next, 255 }, 8);
    put(source, 16);
    put("\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16);
}

static inline void
header(uint8_t next, uint8_t more)
{
    put((uint8_t[]){ next, more }, 2);
    zeros(6 + 8U * more);
}

static inline void
fragment(uint8_t next, uint32_t offset_and_more)
{
    put((uint8_t[]){ next, 0, (uint8_t)(offset_and_more >> 8), (uint8_t)offset_and_more, 0, 0, 0, 7 }, 8);
}

static inline void
icmp6(uint8_t type, const uint8_t *target)
{
    put((uint8_t[]){ type, 0, 0, 0, 0, 0, 0, 0 }, 8);
    if (target != NULL)
        put(target, 16);
}

static inline void
option(uint8_t type, const uint8_t *mac)
{
    put((uint8_t[]){ type, 1 }, 2);
    put(mac, 6);
}

static inline bool
passes(void)
{
    static struct pvs_frame frame;
    struct pvs_seg tail;
    static uint8_t exact[600];

    if (ip6 != 0) {
        bytes[ip6 + 4] = (uint8_t)((len - ip6 - 40) >> 8);
        bytes[ip6 + 5] = (uint8_t)(len - ip6 - 40);
        ip6 = 0;
    }
    memcpy(exact, bytes, len);
    memset(frame.head, 0xa5, sizeof frame.head);
    pvs_frame_from_bytes(&frame, &tail, exact, len);
    CHECK(pvs_parse(&frame));
    frame.request = request;
    return pvs_security_allows(&rules, &frame);
}

/* The same frame, whose sender left a checksum to be written `at` bytes behind the Ethernet header. */
static inline bool
passes_summed(uint32_t at)
{
    request = (struct pvs_request){ .checksum = true, .csum_start = 14, .csum_offset = (uint16_t)at };
    bool passed = passes();
    request = (struct pvs_request){ 0 };
    return passed;
}

/* Does it stop passing when byte `at` (behind the Ethernet header) is another? */
static inline bool
matters(uint32_t at)
{
    bytes[14 + at] ^= 1;
    bool passed = passes();
    bytes[14 + at] ^= 1;
    return !passed && passes();
}

#endif
