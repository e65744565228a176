/* SPDX-License-Identifier: Apache-2.0 */
/* test_security_ipv6.c - as test_security.c: IPv6, its extension headers and fragments, ICMPv6 and neighbour discovery. */
#include "security_lab.h"

/* ---- IPv6 ---- */

TEST(security_of_ipv6)
{
    ipv6(V6, UDP);
    udp(1, 2);
    CHECK(passes());
    for (uint32_t at = 8; at < 24; at++)
        CHECK(matters(at));
    for (uint32_t at = 0; at < 48; at++)
        CHECK_EQ(passes_summed(at), at >= 40);
    bytes[14] = 0x45;
    CHECK(!passes());
    bytes[14] = 0x60;
    len = 14 + 39;
    CHECK(!passes());
    ipv6(NO6, UDP);
    udp(546, 547);
    CHECK(!passes());
    ipv6(NO6, NONE);
    CHECK(!passes());
}

/* Each kind of header is stepped over, so that what lies behind is seen. */
TEST(security_steps_over_extension_headers)
{
    static const uint8_t kinds[] = { 0, 43, 60, 135, 139, 140 };
    for (uint32_t i = 0; i < sizeof kinds; i++)
        for (uint8_t more = 0; more <= 2; more++)
            for (uint32_t forged = 0; forged < 2; forged++) {
                ipv6(V6, kinds[i]);
                header(ICMP6, more);
                icmp6(NA, forged ? VICTIM6 : V6);
                CHECK_EQ(passes(), !forged);
            }
    for (uint8_t words = 1; words <= 5; words += 2) /* RFC 4302, 2.2: in words, less two */
        for (uint32_t forged = 0; forged < 2; forged++) {
            ipv6(V6, 51);
            put((uint8_t[]){ ICMP6, words }, 2);
            zeros(4U * (words + 2U) - 2);
            icmp6(NA, forged ? VICTIM6 : V6);
            CHECK_EQ(passes(), !forged);
        }
    for (uint32_t kind = 253; kind <= 254; kind++) {
        ipv6(V6, (uint8_t)kind);
        header(UDP, 0);
        CHECK(!passes());
    }
    ipv6(V6, 50); /* ESP: it ends what can be seen */
    zeros(20);
    CHECK(passes());
}

TEST(security_follows_headers_no_further_than_they_are_there)
{
    for (uint32_t n = 1; n <= 9; n++) {
        ipv6(V6, 60);
        for (uint32_t i = 0; i < n; i++)
            header(i + 1 < n ? 60 : UDP, 0);
        CHECK_EQ(passes(), n < 8);
    }
    static const uint8_t kinds[] = { 0, 43, 44, 51, 60, 135 };
    for (uint32_t i = 0; i < sizeof kinds; i++) {
        ipv6(V6, kinds[i]);
        header(UDP, 0);
        CHECK(passes());
        len--;
        CHECK(!passes());
    }
    ipv6(V6, 60);
    header(UDP, 12); /* it ends beyond the head, not beyond the frame */
    zeros(100);
    CHECK(!passes());
    ipv6(V6, 60);
    header(UDP, 1);
    len -= 8;
    CHECK(!passes());
}

/* The rest of the chain comes in the next fragment; behind this one's end stands another, for who looks at the frame. */
TEST(security_does_not_believe_what_lies_behind_the_payload)
{
    ipv6(V6, 44);
    fragment(60, 1);
    header(60, 1);
    len -= 8;
    bytes[14 + 5] = (uint8_t)(len - 54);
    ip6 = 0;
    zeros(8);
    header(UDP, 0);
    CHECK(!passes());
    bytes[14 + 5] = (uint8_t)(len - 54);
    CHECK(passes());

    ipv6(V6, 0); /* a payload of no length, as a jumbogram's */
    header(ICMP6, 0);
    icmp6(NA, V6);
    CHECK(passes());
    bytes[14 + 4] = bytes[14 + 5] = 0;
    CHECK(!passes());
    bytes[14 + 5] = 200; /* more than there is */
    CHECK(!passes());
}

TEST(security_of_fragments)
{
    for (uint32_t more = 0; more < 2; more++) {
        ipv6(V6, 44);
        fragment(ICMP6, more);
        icmp6(128, NULL);
        CHECK(passes());
        ipv6(V6, 44);
        fragment(ICMP6, more);
        icmp6(NA, V6); /* RFC 6980, 5: not even by itself */
        CHECK(!passes());
        ipv6(V6, 44);
        fragment(60, more);
        header(ICMP6, 0);
        icmp6(NS, VICTIM6);
        CHECK(!passes());
    }
    ipv6(V6, 44);
    fragment(ICMP6, 8);
    zeros(64);
    CHECK(passes());
    ipv6(VICTIM6, 44);
    fragment(ICMP6, 8);
    CHECK(!passes());
    ipv6(NO6, 44);
    fragment(ICMP6, 8);
    CHECK(!passes());
}

/* ---- ICMPv6 ---- */

TEST(security_of_advertisements)
{
    ipv6(LINK, ICMP6);
    icmp6(NA, V6);
    CHECK(passes());
    for (uint32_t at = 48; at < 64; at++)
        CHECK(matters(at));
    option(2, OWN_MAC);
    CHECK(bytes[14 + 5] != 0);
    ipv6(LINK, ICMP6);
    icmp6(NA, V6);
    option(2, OWN_MAC);
    CHECK(passes());
    for (uint32_t at = 66; at < 72; at++)
        CHECK(matters(at));
    for (uint32_t at = 0; at < 80; at++)
        CHECK_EQ(passes_summed(at), at == 42 || at >= 72);
    ipv6(NO6, ICMP6);
    icmp6(NA, VICTIM6);
    CHECK(!passes());
    ipv6(LINK, ICMP6);
    icmp6(NA, V6);
    len--;
    CHECK(!passes());
}

TEST(security_of_solicitations)
{
    ipv6(LINK, ICMP6);
    icmp6(NS, VICTIM6);
    option(1, OWN_MAC);
    CHECK(passes());
    for (uint32_t at = 66; at < 72; at++)
        CHECK(matters(at));
    ipv6(NO6, ICMP6);
    icmp6(NS, V6);
    CHECK(passes());
    for (uint32_t at = 48; at < 64; at++)
        CHECK(matters(at));
    ipv6(NO6, ICMP6);
    icmp6(NS, V6);
    option(14, OTHER_MAC); /* a nonce: RFC 7527 */
    CHECK(passes());
    ipv6(LINK, ICMP6);
    icmp6(NS, V6);
    len--;
    CHECK(!passes());
    for (uint32_t nobody = 0; nobody < 2; nobody++) {
        ipv6(nobody ? NO6 : LINK, ICMP6);
        icmp6(RS, NULL);
        CHECK(passes());
        ipv6(nobody ? NO6 : LINK, ICMP6);
        icmp6(RS, NULL);
        option(1, OTHER_MAC);
        CHECK(!passes());
    }
    ipv6(LINK, ICMP6);
    icmp6(RS, NULL);
    len--;
    CHECK(!passes());
}

TEST(security_of_options)
{
    for (uint32_t which = 0; which < 256; which++) {
        ipv6(LINK, ICMP6);
        icmp6(NA, V6);
        option((uint8_t)which, OTHER_MAC);
        CHECK_EQ(passes(), which != 1 && which != 2);
        ipv6(LINK, ICMP6);
        icmp6(NA, V6);
        put((uint8_t[]){ (uint8_t)which, 2 }, 2); /* twice as long, its address the frame's own */
        put(OWN_MAC, 6);
        zeros(8);
        CHECK_EQ(passes(), which != 1 && which != 2);
        ipv6(LINK, ICMP6);
        icmp6(NA, V6);
        put((uint8_t[]){ (uint8_t)which, 2 }, 2);
        zeros(14);
        option(2, OTHER_MAC); /* it isn't the last */
        CHECK(!passes());
    }
    for (uint32_t cut = 0; cut < 8; cut++) { /* it ends beyond the message */
        ipv6(LINK, ICMP6);
        icmp6(NA, V6);
        option(14, OWN_MAC);
        len -= cut;
        CHECK_EQ(passes(), cut == 0);
    }
    ipv6(LINK, ICMP6);
    icmp6(NA, V6);
    put((uint8_t[]){ 14, 0, 0, 0, 0, 0, 0, 0 }, 8);
    CHECK(!passes());
    ipv6(LINK, ICMP6);
    icmp6(NA, V6);
    put((uint8_t[]){ 14, 2, 0, 0, 0, 0, 0, 0 }, 8);
    CHECK(!passes());
    zeros(8);                            /* what completes it is padding of the frame */
    bytes[14 + 5] = (uint8_t)(len - 62); /* its length is as before */
    CHECK(!passes());
    ipv6(LINK, ICMP6); /* as far as the head goes, and further */
    icmp6(NA, V6);
    while (len + 8 <= 128)
        option(14, OWN_MAC);
    CHECK(passes());
    ipv6(LINK, ICMP6);
    icmp6(NA, V6);
    while (len + 8 <= 136)
        option(14, OWN_MAC);
    CHECK(!passes());
}

TEST(security_of_other_icmpv6)
{
    for (uint32_t type = 0; type < 256; type++) {
        if (type >= RS && type <= REDIRECT)
            continue;
        bool report = type == 131 || type == 132 || type == 143;
        for (uint32_t nobody = 0; nobody < 2; nobody++) {
            ipv6(nobody ? NO6 : V6, 0);
            header(ICMP6, 0);
            icmp6((uint8_t)type, NULL);
            CHECK_EQ(passes(), !nobody || report);
            CHECK_EQ(passes_summed(40 + 8 + 2), !nobody || report);
            CHECK(!passes_summed(40 + 8)); /* it would become another type */
        }
    }
    for (uint8_t type = RA; type <= REDIRECT; type += REDIRECT - RA) {
        ipv6(LINK, ICMP6);
        icmp6(type, V6);
        CHECK(!passes());
    }
    ipv6(V6, ICMP6);
    zeros(4);
    CHECK(!passes());
    zeros(1);
    bytes[14 + 5] = 5;
    CHECK(passes());
    ipv6(V6, 60); /* an echo whose end lies beyond the head, and one whose beginning does */
    header(ICMP6, 6);
    icmp6(128, NULL);
    zeros(100);
    CHECK(passes());
    ipv6(V6, 60);
    header(ICMP6, 8);
    icmp6(128, NULL);
    zeros(100);
    CHECK(!passes());
}
