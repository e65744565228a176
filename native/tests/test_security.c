/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_security.c - who a frame may say that it is from (security.h): the pure function alone, MAC addresses, IPv4 and ARP. Each
 * honest frame is followed by what an attacker would make of it.
 */
#include "security_lab.h"

/* ---- MAC addresses ---- */

TEST(security_knows_each_listed_mac)
{
    uint64_t mac[40];
    for (uint32_t i = 0; i < 40; i++)
        mac[i] = OWN + 2 * i;
    for (uint32_t n = 1; n <= 40; n++)
        for (uint32_t i = 0; i < 84; i++) {
            ethernet(0x88b5);
            zeros(46);
            rules = (struct pvs_security){ .n_macs = n, .mac = mac };
            bytes[11] = (uint8_t)i;
            CHECK_EQ(passes(), i % 2 == 1 && i < 2 * n);
        }
    rules.n_macs = 0;
    CHECK(passes());
}

TEST(security_refuses_sources_that_are_none)
{
    ethernet(0x88b5);
    zeros(46);
    rules = (struct pvs_security){ .max_macs = 1 };
    CHECK(passes());
    bytes[6] = 3;
    CHECK(!passes());
    memset(bytes + 6, 0, 6);
    CHECK(!passes());
}

TEST(security_with_networks_knows_three_protocols)
{
    static const uint16_t types[] = { 0x88b5, 0x8035, 0x8847, 0x9100, 0x8864, 0x88cc, 60, 0x05ff, 0x8863 };
    for (uint32_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        ipv4(V4, UDP, 5, 0);
        udp(1, 2);
        CHECK(passes());
        bytes[12] = (uint8_t)(types[i] >> 8);
        bytes[13] = (uint8_t)types[i];
        CHECK(!passes());
    }
}

/* Behind two tags all is looked at; behind a third nothing can be. */
TEST(security_looks_behind_tags)
{
    uint8_t plain[100];
    ipv4(V4, UDP, 5, 0);
    udp(1, 2);
    memcpy(plain, bytes, len);
    uint32_t plain_len = len;
    for (uint32_t tags = 0; tags <= 3; tags++) {
        len = 12;
        for (uint32_t i = 0; i < tags; i++) {
            put16(i == 0 ? 0x88a8 : 0x8100);
            put16(5);
        }
        put(plain + 12, plain_len - 12);
        CHECK_EQ(passes(), tags < 3);
        bytes[len - 8 - 5] ^= 1; /* the source's last byte, before the destination and UDP */
        CHECK(!passes());
    }
}

/* ---- networks ---- */

TEST(security_compares_as_many_bits_as_said)
{
    static const uint8_t in[][4] = { { 192, 168, 16, 0 }, { 192, 168, 31, 255 } };
    static const uint8_t out[][4] = {
        { 192, 168, 32, 0 }, { 192, 168, 15, 255 }, { 192, 168, 144, 0 }, { 192, 169, 16, 1 }, { 10, 0, 0, 0 }
    };
    for (uint32_t i = 0; i < 2; i++) {
        ipv4(in[i], TCP, 5, 0);
        CHECK(passes());
    }
    for (uint32_t i = 0; i < 5; i++) {
        ipv4(out[i], TCP, 5, 0);
        CHECK(!passes());
    }
    ipv6((const uint8_t[16]){ 0xfd, 0, 0xbf, 0xff }, UDP);
    CHECK(passes());
    ipv6((const uint8_t[16]){ 0xfd, 0, 0xc0 }, UDP);
    CHECK(!passes());
    ipv6((const uint8_t[16]){ 0xfd, 0, 0x9f, 0xff }, UDP);
    CHECK(!passes());
}

/* Neither has all of IPv6 the whole of IPv4 in it, nor is an IPv4 address one of IPv6. */
TEST(security_keeps_families_apart)
{
    static const struct pvs_network all6 = { { 0 }, 0 }, all4 = { { [10] = 0xff, 0xff }, 96 };
    static const struct pvs_network half = { { [10] = 0xff, 0xff }, 95 }, low6 = { { 0 }, 96 };
    static const uint8_t mapped[16] = { [10] = 0xff, 0xff, 10, 0, 0, 1 };

    ipv6(mapped, UDP);
    CHECK(!passes());
    for (uint32_t i = 0; i < 4; i++) {
        const struct pvs_network *network = i == 0 ? &all6 : i == 1 ? &all4 : i == 2 ? &half : &low6;
        ipv4(VICTIM4, TCP, 5, 0);
        rules = (struct pvs_security){ .n_networks = 1, .network = network };
        CHECK_EQ(passes(), i == 1);
        arp(REPLY, OWN_MAC, VICTIM4, V4);
        rules = (struct pvs_security){ .n_networks = 1, .network = network };
        CHECK_EQ(passes(), i == 1);
        ipv6(VICTIM6, UDP);
        rules = (struct pvs_security){ .n_networks = 1, .network = network };
        CHECK_EQ(passes(), i == 0);
    }
}

/* ---- IPv4 ---- */

TEST(security_of_ipv4)
{
    ipv4(V4, TCP, 5, 0);
    CHECK(passes());
    for (uint32_t at = 12; at < 16; at++)
        CHECK(matters(at));
    CHECK(matters(0) == false); /* the low bit of the header's length */
    bytes[14] = 0x65;
    CHECK(!passes());
    bytes[14] = 0x45;
    len = 14 + 19;
    CHECK(!passes());
    ipv4(V4, UDP, 15, 0); /* options */
    CHECK(passes());
    ipv4(V4, UDP, 5, 0x2000);
    CHECK(passes());
    ipv4(V4, UDP, 5, 100);
    CHECK(passes());
    ipv4(VICTIM4, UDP, 5, 100);
    CHECK(!passes());
    ipv4((const uint8_t *)"\xff\xff\xff\xff", UDP, 5, 0);
    CHECK(!passes());
}

/* From 0.0.0.0 nothing but a whole request to a DHCP server. */
TEST(security_of_dhcp)
{
    for (uint8_t words = 5; words <= 15; words += 5) {
        ipv4(NO4, UDP, words, 0);
        uint32_t at = len - 14;
        udp(68, 67);
        CHECK(passes());
        for (uint32_t i = 0; i < 4; i++)
            CHECK(matters(at + i));
        CHECK(matters(9));
        bytes[14 + 6] = 0x20; /* more fragments */
        CHECK(!passes());
        bytes[14 + 6] = 0x40; /* don't fragment */
        CHECK(passes());
        bytes[14 + 7] = 1; /* a later fragment */
        CHECK(!passes());
        bytes[14 + 7] = 0;
        CHECK(passes_summed(at + 6));
        CHECK(!passes_summed(at + 2));
        CHECK(!passes_summed(at));
        len--;
        CHECK(!passes());
    }
    ipv4(NO4, UDP, 5, 0);
    udp(67, 68);
    CHECK(!passes());
    ipv4(NO4, UDP, 4, 0); /* a header that is too short for one: what are ports there are addresses here */
    len = 14 + 16;
    udp(68, 67);
    zeros(20);
    memset(bytes + 14 + 12, 0, 4);
    CHECK(!passes());
}

TEST(security_of_ipv4_that_is_summed_later)
{
    ipv4(V4, UDP, 5, 0);
    udp(1, 2);
    for (uint32_t at = 0; at < 28; at++)
        CHECK_EQ(passes_summed(at), at >= 20);
}

/* ---- ARP ---- */

TEST(security_of_arp)
{
    for (uint8_t operation = 0; operation < 5; operation++) {
        arp(operation, OWN_MAC, V4, VICTIM4);
        CHECK_EQ(passes(), operation == REQUEST || operation == REPLY);
    }
    arp(REPLY, OWN_MAC, V4, VICTIM4);
    for (uint32_t at = 0; at < 18; at++)
        CHECK(at == 7 || matters(at));
    for (uint32_t at = 18; at < 28; at++)
        CHECK(!matters(at));
    for (uint32_t at = 0; at < 30; at++)
        CHECK_EQ(passes_summed(at), at >= 28);
    zeros(18); /* padding */
    CHECK(passes());
    len = 14 + 27;
    CHECK(!passes());
    arp(REQUEST, OTHER_MAC, V4, VICTIM4);
    CHECK(!passes());
    arp(REQUEST, OWN_MAC, VICTIM4, V4);
    CHECK(!passes());
}

TEST(security_of_arp_probes)
{
    arp(REQUEST, OWN_MAC, NO4, V4);
    CHECK(passes());
    for (uint32_t at = 24; at < 28; at++)
        CHECK(matters(at));
    arp(REQUEST, OWN_MAC, NO4, VICTIM4); /* it would keep the victim from taking its address: RFC 5227, 2.1.1 */
    CHECK(!passes());
    arp(REPLY, OWN_MAC, NO4, V4);
    CHECK(!passes());
}
