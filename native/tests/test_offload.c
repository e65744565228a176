/* SPDX-License-Identifier: Apache-2.0 */
/* test_offload.c - how frames become pieces (offload.h): each is compared with a frame that was made for the purpose. */
#include "offload_lab.h"

#include "checksum.h"

static const struct recipe TCP4 = { .payload = 4500, .flags = ACK, .id = 65534, .seq = 0xfffffc00 };
static const struct recipe TCP6 = { .v6 = true, .payload = 4500, .flags = ACK, .seq = 7 };
static const struct recipe UDP4 = { .udp = true, .payload = 4500, .id = 3 };
static const struct recipe UDP6 = { .v6 = true, .udp = true, .payload = 4500 };
static const struct recipe *const KINDS[] = { &TCP4, &TCP6, &UDP4, &UDP6 };

static const uint16_t ODD_CUTS[] = { 7, 1, 0, 333, 64, 5 };
static const uint16_t *tail_cut, *room_cut; /* lists of 6; NULL: one segment */

static struct cooked frame, expected;
static struct scattered_frame f;
static struct pvs_pieces pieces;
static uint8_t written[sizeof(struct virtio_net_hdr) + PVS_MAX_FRAME];

/* Write the piece at hand as a ring would, and return where its frame begins. */
static const uint8_t *
write_piece(uint32_t header_len)
{
    struct scatter room = scatter_make(header_len + pieces.len, room_cut, room_cut != NULL ? 6 : 0);
    struct pvs_cursor to = { .seg = room.seg, .n = room.n };

    pieces.header.num_buffers = 0x1234;
    pvs_piece_write(&pieces, &to, header_len);
    CHECK_EQ(to.n, 0);
    scatter_read(&room, written);
    scatter_free(&room);
    CHECK(memcmp(written, &pieces.header, header_len) == 0);
    return written + header_len;
}

static void
check_header(const struct virtio_net_hdr *wanted)
{
    CHECK_EQ(pieces.header.flags, wanted->flags);
    CHECK_EQ(pieces.header.gso_type, wanted->gso_type);
    CHECK_EQ(pieces.header.gso_size, wanted->gso_size);
    CHECK_EQ(pieces.header.hdr_len, wanted->hdr_len);
    CHECK_EQ(pieces.header.csum_start, wanted->csum_start);
    CHECK_EQ(pieces.header.csum_offset, wanted->csum_offset);
}

static void
admit_recipe(const struct recipe *r, uint16_t gso_size, uint8_t ecn)
{
    cook(r, PSEUDO, &frame);
    struct virtio_net_hdr header = header_for(r, &frame, gso_size);
    header.gso_type |= ecn;
    CHECK(admit(&f, &frame, &header, ALL, tail_cut, tail_cut != NULL ? 6 : 0));
}

/* From piece `first` on, each is what was made for the purpose. */
static void
check_segments(const struct recipe *r, uint16_t gso_size, uint8_t taken, uint32_t first)
{
    uint32_t n = (r->payload + gso_size - 1U) / gso_size;
    enum field field = taken & PVS_OFFLOAD_CSUM ? PSEUDO : FINISHED;
    struct virtio_net_hdr wanted = { 0 };

    if (field == PSEUDO)
        wanted = header_for(r, &frame, 0);
    CHECK(pvs_pieces_begin(&pieces, &f.frame, taken, first));
    CHECK_EQ(pieces.n, n);
    for (uint32_t i = first; i < n; i++) {
        struct recipe s = segment_recipe(r, gso_size, i, n);
        cook(&s, field, &expected);
        CHECK_EQ(pieces.next, i);
        CHECK_EQ(pieces.len, expected.len);
        check_header(&wanted);
        CHECK(memcmp(write_piece(i % 2 == 0 ? 12 : 10), expected.bytes, expected.len) == 0);
        CHECK_EQ(pvs_pieces_next(&pieces), i + 1 < n);
    }
    CHECK_EQ(pieces.next, n);
    CHECK(!pvs_pieces_begin(&pieces, &f.frame, taken, n));
}

static void
check_all_segments(const struct recipe *r, uint16_t gso_size, uint8_t taken)
{
    admit_recipe(r, gso_size, 0);
    check_segments(r, gso_size, taken, 0);
    scattered_frame_free(&f);
}

/* One piece, with the field as given. */
static void
check_one(const struct recipe *r, uint8_t taken, enum field field, const struct virtio_net_hdr *wanted)
{
    cook(r, field, &expected);
    CHECK(pvs_pieces_begin(&pieces, &f.frame, taken, 0));
    CHECK_EQ(pieces.n, 1);
    CHECK_EQ(pieces.len, expected.len);
    check_header(wanted);
    CHECK(memcmp(write_piece(12), expected.bytes, expected.len) == 0);
    CHECK(!pvs_pieces_next(&pieces));
    CHECK(!pvs_pieces_begin(&pieces, &f.frame, taken, 1));
}

TEST(offload_plain_frame_is_one_piece_without_a_copy_of_its_head)
{
    static const uint32_t payloads[] = { 0, 1, 73, 74, 75, 1446, 9000, 60000 };
    struct virtio_net_hdr none = { 0 };
    room_cut = tail_cut = ODD_CUTS;
    for (int i = 0; i < 8; i++) {
        struct recipe r = TCP4;
        r.payload = payloads[i];
        cook(&r, FINISHED, &frame);
        CHECK(admit(&f, &frame, &none, 0, tail_cut, 6));
        check_one(&r, ALL, FINISHED, &none);
        check_one(&r, 0, FINISHED, &none);
        CHECK(pvs_pieces_begin(&pieces, &f.frame, 0, 0));
        CHECK(pieces.head == f.frame.head);
        scattered_frame_free(&f);
    }
}

TEST(offload_checksum_is_passed_to_who_takes_it)
{
    for (int k = 0; k < 4; k++) {
        admit_recipe(KINDS[k], 0, 0);
        struct virtio_net_hdr wanted = header_for(KINDS[k], &frame, 0);
        check_one(KINDS[k], PVS_OFFLOAD_CSUM, PSEUDO, &wanted);
        CHECK(pieces.head == f.frame.head);
        scattered_frame_free(&f);
    }
}

TEST(offload_checksum_is_filled_in_for_who_does_not)
{
    struct virtio_net_hdr none = { 0 };
    room_cut = tail_cut = ODD_CUTS;
    for (int k = 0; k < 4; k++) {
        for (uint32_t payload = 0; payload < 300; payload += 1 + payload / 100) {
            struct recipe r = *KINDS[k];
            r.payload = payload;
            r.tags = (uint8_t)(payload % 3);
            admit_recipe(&r, 0, 0);
            check_one(&r, 0, FINISHED, &none);
            check_one(&r, ALL & ~PVS_OFFLOAD_CSUM, FINISHED, &none);
            scattered_frame_free(&f);
        }
    }
}

TEST(offload_checksum_zero_is_written_as_ones_for_udp_alone)
{
    for (int k = 0; k < 4; k++) {
        struct recipe r = *KINDS[k];
        r.payload = 200;
        cook(&r, FINISHED, &frame);
        uint8_t *field = frame.bytes + frame.l4 + frame.csum_offset;
        uint32_t checksum = (uint32_t)field[0] << 8 | field[1];
        /* two bytes of payload take what is missing: now all sums up to ones */
        cook(&r, PSEUDO, &frame);
        uint8_t *word = frame.bytes + frame.len - 2;
        put16(word, simple_sum(checksum, word, 2));
        struct virtio_net_hdr header = header_for(&r, &frame, 0);
        CHECK(admit(&f, &frame, &header, ALL, NULL, 0));
        CHECK(pvs_pieces_begin(&pieces, &f.frame, 0, 0));
        const uint8_t *piece = write_piece(12) + frame.l4 + frame.csum_offset;
        CHECK_EQ(piece[0] << 8 | piece[1], r.udp ? 0xffff : 0);
        scattered_frame_free(&f);
    }
}

TEST(offload_checksum_at_any_place)
{
    cook(&UDP4, FINISHED, &frame);
    for (uint32_t start = 14; start < 150; start += 7) {
        for (uint32_t offset = 0; offset < 160; offset += 9) {
            struct virtio_net_hdr header = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                             .csum_start = (uint16_t)start,
                                             .csum_offset = (uint16_t)offset };
            uint32_t sum = 0xffff & ~simple_sum(0, frame.bytes + start, frame.len - start);
            CHECK(admit(&f, &frame, &header, ALL, ODD_CUTS, 6));
            CHECK(pvs_pieces_begin(&pieces, &f.frame, 0, 0));
            expected = frame;
            put16(expected.bytes + start + offset, sum);
            CHECK(memcmp(write_piece(12), expected.bytes, frame.len) == 0);
            scattered_frame_free(&f);
        }
    }
}

TEST(offload_gso_is_passed_to_who_takes_it)
{
    static const uint8_t bits[] = { PVS_OFFLOAD_TSO4, PVS_OFFLOAD_TSO6, PVS_OFFLOAD_USO4, PVS_OFFLOAD_USO6 };
    for (int k = 0; k < 4; k++) {
        uint8_t ecn = k < 2 ? VIRTIO_NET_HDR_GSO_ECN : 0, taken = PVS_OFFLOAD_CSUM | bits[k];
        admit_recipe(KINDS[k], 1000, 0);
        struct virtio_net_hdr wanted = header_for(KINDS[k], &frame, 1000);
        wanted.hdr_len = (uint16_t)frame.hdr_len;
        check_one(KINDS[k], taken, PSEUDO, &wanted);
        CHECK(pieces.head == f.frame.head);
        scattered_frame_free(&f);
        if (ecn == 0)
            continue;
        admit_recipe(KINDS[k], 1000, ecn);
        wanted.gso_type |= ecn;
        check_one(KINDS[k], taken | PVS_OFFLOAD_ECN, PSEUDO, &wanted);
        check_segments(KINDS[k], 1000, taken, 0); /* takes the type, but not with ECN */
        scattered_frame_free(&f);
    }
}

TEST(offload_gso_is_cut_for_who_does_not_take_it)
{
    static const uint8_t takers[] = { 0, PVS_OFFLOAD_CSUM, ALL & ~PVS_OFFLOAD_CSUM };
    for (int k = 0; k < 4; k++) {
        for (int t = 0; t < 3; t++) {
            for (int cut = 0; cut < 4; cut++) {
                tail_cut = cut & 1 ? ODD_CUTS : NULL;
                room_cut = cut & 2 ? ODD_CUTS : NULL;
                check_all_segments(KINDS[k], 1448, takers[t]);
                check_all_segments(KINDS[k], 500, takers[t]);
            }
        }
        /* another type is no help */
        check_all_segments(KINDS[k], 1448, (uint8_t)(PVS_OFFLOAD_CSUM | PVS_OFFLOAD_ECN | (k == 0 ? 4 + 16 + 32 : 0)));
    }
}

TEST(offload_gso_sizes_around_every_edge)
{
    /* the head ends after 74 bytes of payload; cuts of the tail are odd */
    static const uint16_t sizes[] = { 1, 2, 3, 36, 37, 38, 73, 74, 75, 147, 148, 149, 299 };
    room_cut = tail_cut = ODD_CUTS;
    for (int i = 0; i < 13; i++) {
        for (uint32_t payload = 295; payload <= 303; payload++) {
            struct recipe r = TCP4;
            r.payload = payload;
            check_all_segments(&r, sizes[i], 0);
            check_all_segments(&r, sizes[i], PVS_OFFLOAD_CSUM);
        }
    }
}

TEST(offload_gso_under_tags_options_and_extension_headers)
{
    room_cut = tail_cut = ODD_CUTS;
    for (uint8_t tags = 0; tags <= 2; tags++) {
        for (uint8_t options = 0; options <= 40; options += 4) {
            struct recipe r = TCP4;
            r.tags = tags;
            r.ip_options = options;
            r.tcp_options = 40 - options;
            check_all_segments(&r, 1000, 0);
            r = UDP4;
            r.tags = tags;
            r.ip_options = options;
            check_all_segments(&r, 1001, 0);
            r = TCP6;
            r.tags = tags;
            r.tcp_options = options;
            r.n_extension = 3;
            r.extension[0] = HOP_BY_HOP;
            r.extension[1] = ROUTING;
            r.extension[2] = DESTINATION;
            r.extension_len[0] = 8;
            r.extension_len[1] = 24;
            r.extension_len[2] = (uint16_t)(8 + options * 6);
            check_all_segments(&r, 999, 0);
            check_all_segments(&r, 999, PVS_OFFLOAD_CSUM);
        }
    }
}

TEST(offload_gso_head_of_full_length)
{
    struct recipe r = TCP6;
    r.n_extension = 1;
    r.extension[0] = DESTINATION;
    r.extension_len[0] = 400;
    r.tcp_options = 32; /* 14 + 40 + 400 + 52 = 506 */
    tail_cut = room_cut = ODD_CUTS;
    check_all_segments(&r, 1400, 0);
    check_all_segments(&r, 3, PVS_OFFLOAD_CSUM);
}

TEST(offload_gso_flags_go_to_the_segments_they_belong_to)
{
    for (uint32_t flags = 0; flags < 256; flags++) {
        struct recipe r = TCP4;
        r.flags = (uint8_t)flags;
        check_all_segments(&r, 2000, 0);
    }
}

TEST(offload_gso_resumes_at_any_piece)
{
    room_cut = tail_cut = ODD_CUTS;
    for (int k = 0; k < 4; k++) {
        admit_recipe(KINDS[k], 37, 0);
        for (uint32_t first = 0; first < (4500 + 36) / 37; first += 1 + first / 5)
            check_segments(KINDS[k], 37, first % 2 != 0 ? PVS_OFFLOAD_CSUM : 0, first);
        CHECK(!pvs_pieces_begin(&pieces, &f.frame, 0, UINT32_MAX));
        scattered_frame_free(&f);
    }
}

TEST(offload_gso_of_the_longest_frames)
{
    struct recipe r = TCP4;
    r.payload = 65535 - 40;
    check_all_segments(&r, 1448, 0);
    check_all_segments(&r, 8960, 0);
    check_all_segments(&r, 65494, 0); /* one byte is left for the second */
    r = UDP6;
    r.payload = PVS_MAX_FRAME - 62;
    check_all_segments(&r, 9000, 0);
    check_all_segments(&r, 65505, PVS_OFFLOAD_CSUM);
}

TEST(offload_gso_of_one_byte_costs_a_piece_for_each)
{
    struct recipe r = UDP4;
    r.payload = PVS_MAX_PIECES;
    admit_recipe(&r, 1, 0);
    CHECK(pvs_pieces_begin(&pieces, &f.frame, 0, 0));
    CHECK_EQ(pieces.n, PVS_MAX_PIECES);
    check_segments(&r, 1, 0, 0);
    check_segments(&r, 1, PVS_OFFLOAD_CSUM, PVS_MAX_PIECES - 1);
    scattered_frame_free(&f);
}

TEST(offload_gso_trusts_no_length_in_a_header)
{
    cook(&UDP4, PSEUDO, &frame);
    struct virtio_net_hdr header = header_for(&UDP4, &frame, 1000);
    put16(frame.bytes + frame.l3 + 2, 5);
    put16(frame.bytes + frame.l4 + 4, 60000);
    CHECK(admit(&f, &frame, &header, ALL, NULL, 0));
    check_segments(&UDP4, 1000, 0, 0);
    scattered_frame_free(&f);
}

TEST(offload_gso_keeps_addresses_that_only_the_sender_knows)
{
    /* RFC 8200, 8.1: the pseudo header has the final destination, which with a routing header isn't the one in front */
    static const uint8_t difference = 5;
    cook(&TCP6, PSEUDO, &frame);
    struct virtio_net_hdr header = header_for(&TCP6, &frame, 1000);
    put16(frame.bytes + frame.l4 + 16, simple_sum(difference, frame.bytes + frame.l4 + 16, 2));
    CHECK(admit(&f, &frame, &header, ALL, NULL, 0));
    CHECK(pvs_pieces_begin(&pieces, &f.frame, 0, 0));
    struct recipe s = segment_recipe(&TCP6, 1000, 0, 5);
    cook(&s, FINISHED, &expected);
    uint8_t *field = expected.bytes + expected.l4 + 16;
    put16(field, 0xffff & ~simple_sum(simple_sum(0, (const uint8_t[]){ 0, difference }, 2),
                                      (const uint8_t[]){ (uint8_t)~field[0], (uint8_t)~field[1] }, 2));
    CHECK(memcmp(write_piece(12), expected.bytes, expected.len) == 0);
    scattered_frame_free(&f);
}

TEST(offload_sum_is_the_same_however_it_is_cut)
{
    static uint8_t bytes[2100], copy[2100];
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 2654435761U >> 11);
    for (uint32_t from = 0; from < 9; from++) {
        for (uint32_t len = 0; len < 2000; len += 1 + len / 40) {
            struct pvs_sum whole = { 0 }, parts = { 0 };
            uint32_t wanted = simple_sum(0, bytes + from, len), at = 0;
            memset(copy, 0xee, sizeof copy);
            pvs_sum_add(&whole, bytes + from, len);
            for (uint32_t part = 1 + from; at < len; part = part * 5 % 97 + from) {
                part = part < len - at ? part : len - at;
                pvs_sum_copy(&parts, copy + 3 + at, bytes + from + at, part);
                at += part;
            }
            CHECK_EQ(__builtin_bswap16(pvs_sum_fold(&whole)), wanted);
            CHECK_EQ(pvs_sum_fold(&parts), pvs_sum_fold(&whole));
            CHECK(memcmp(copy + 3, bytes + from, len) == 0);
            CHECK(copy[2] == 0xee && copy[3 + len] == 0xee);
        }
    }
}

TEST(offload_sum_of_ones_does_not_overflow)
{
    static uint8_t ones[PVS_MAX_FRAME], to[PVS_MAX_FRAME];
    struct pvs_sum sum = { 0 };
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 1000; i++)
        pvs_sum_copy(&sum, to, ones, sizeof ones);
    CHECK_EQ(pvs_sum_fold(&sum), 0xffff);
    CHECK_EQ(pvs_sum_fold(&(struct pvs_sum){ 0 }), 0);
}

/* Each piece is within the room, whatever the sender asked for, and its payload behind that of the one before. */
TEST(tcp_is_cut_as_small_as_there_is_room)
{
    static const struct recipe *const tcp[] = { &TCP4, &TCP6 };

    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint32_t odd = 0; odd < 2; odd++) {
            tail_cut = odd != 0 ? ODD_CUTS : NULL;
            for (uint32_t payload = 100; payload <= 1500; payload += 133) {
                admit_recipe(tcp[kind], 1448, 0);
                uint32_t room = frame.hdr_len + payload, cut = payload < 1448 ? payload : 1448;
                uint32_t n = (tcp[kind]->payload + cut - 1) / cut;
                CHECK(pvs_pieces_fit(&f.frame, 0, room));
                pvs_pieces_begin_within(&pieces, &f.frame, room);
                CHECK_EQ(pieces.n, n);
                for (uint32_t i = 0; i < n; i++) {
                    struct recipe s = segment_recipe(tcp[kind], cut, i, n);
                    cook(&s, FINISHED, &expected);
                    CHECK_EQ(pieces.len, expected.len);
                    CHECK(memcmp(write_piece(0), expected.bytes, expected.len) == 0);
                    CHECK_EQ(pvs_pieces_next(&pieces), i + 1 < n);
                }
                scattered_frame_free(&f);
            }
        }
}

TEST(what_fits_is_told_before_it_is_cut)
{
    tail_cut = NULL;
    admit_recipe(&TCP4, 1000, 0); /* 4500 bytes behind 54 */
    for (int32_t longer = -4; longer <= 4; longer += 4) {
        CHECK(pvs_pieces_fit(&f.frame, longer, (uint32_t)(1054 + longer)));
        CHECK(pvs_pieces_fit(&f.frame, longer, (uint32_t)(1053 + longer))); /* it is cut smaller */
        CHECK(pvs_pieces_fit(&f.frame, longer, (uint32_t)(64 + longer)));
        CHECK_EQ(pvs_pieces_fit(&f.frame, longer, (uint32_t)(54 + 2 + longer)), 2250 <= PVS_MAX_PIECES);
        CHECK(!pvs_pieces_fit(&f.frame, longer, (uint32_t)(54 + longer)));
        CHECK(!pvs_pieces_fit(&f.frame, longer, 20));
    }
    scattered_frame_free(&f);
    admit_recipe(&UDP4, 1000, 0); /* its sender's datagrams are not ours to cut */
    CHECK(pvs_pieces_fit(&f.frame, 0, 1042));
    CHECK(!pvs_pieces_fit(&f.frame, 0, 1041));
    CHECK(!pvs_pieces_fit(&f.frame, 4, 1042));
    scattered_frame_free(&f);
    admit_recipe(&TCP4, 0, 0); /* nor is what isn't to be cut at all */
    CHECK(pvs_pieces_fit(&f.frame, 0, frame.len));
    CHECK(!pvs_pieces_fit(&f.frame, 0, frame.len - 1));
    scattered_frame_free(&f);
}

/* A frame may have waited while its tunnel's room became less than its headers. */
TEST(what_fits_no_more_is_cut_as_it_was_to_be)
{
    tail_cut = NULL;
    admit_recipe(&TCP4, 1000, 0);
    for (uint32_t room = 0; room <= frame.hdr_len; room++) {
        pvs_pieces_begin_within(&pieces, &f.frame, room);
        CHECK_EQ(pieces.n, 5);
        CHECK_EQ(pieces.len, frame.hdr_len + 1000);
    }
    scattered_frame_free(&f);
}

/* Gathered in parts, with the sum that writing would have made; or not at all, when they are too many. */
TEST(a_piece_in_parts_is_summed)
{
    static uint8_t gathered[PVS_MAX_FRAME];
    static struct iovec part[4096];

    for (uint32_t kind = 0; kind < 4; kind++)
        for (uint32_t payload = 1; payload < 2000; payload += 111)
            for (uint16_t gso = 0; gso <= 700; gso = (uint16_t)(gso + 233)) {
                struct recipe r = *KINDS[kind];
                r.payload = payload;
                if (gso != 0 && payload <= gso)
                    continue;
                tail_cut = ODD_CUTS;
                admit_recipe(&r, gso, 0);
                uint32_t n = gso == 0 ? 1 : (payload + gso - 1U) / gso;
                CHECK(pvs_pieces_begin(&pieces, &f.frame, 0, 0));
                for (uint32_t i = 0; i < n; i++) {
                    struct recipe s = gso == 0 ? r : segment_recipe(&r, gso, i, n);
                    cook(&s, FINISHED, &expected);
                    if (pieces.len > pieces.head_len)
                        CHECK_EQ(pvs_piece_parts(&pieces, part, 0), 1); /* nothing was done */
                    uint32_t parts = pvs_piece_parts(&pieces, part, 4096), at = pieces.head_len;
                    memcpy(gathered, pieces.head, at);
                    for (uint32_t k = 0; k < parts; at += (uint32_t)part[k++].iov_len)
                        memcpy(gathered + at, part[k].iov_base, part[k].iov_len);
                    CHECK_EQ(at, expected.len);
                    CHECK(memcmp(gathered, expected.bytes, at) == 0);
                    CHECK_EQ(pvs_pieces_next(&pieces), i + 1 < n);
                }
                scattered_frame_free(&f);
            }
}

/* A sum may begin anywhere: then what isn't in the head begins in the middle of one of its words. */
TEST(a_piece_in_parts_is_summed_from_an_odd_place)
{
    static struct iovec part[4096];

    for (uint16_t start = 34; start < 60; start++) {
        struct recipe r = UDP4;
        struct virtio_net_hdr header = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = start, .csum_offset = 6 };
        r.payload = 1001;
        cook(&r, FINISHED, &frame);
        put16(frame.bytes + start + 6, 0x1234);
        tail_cut = ODD_CUTS;
        CHECK(admit(&f, &frame, &header, ALL, tail_cut, 6));
        uint32_t sum = 0xffff & ~simple_sum(0, frame.bytes + start, frame.len - start);
        CHECK(pvs_pieces_begin(&pieces, &f.frame, 0, 0));
        CHECK(pvs_piece_parts(&pieces, part, 4096) <= 4096);
        CHECK_EQ(pieces.head[start + 6] << 8 | pieces.head[start + 7], sum == 0 ? 0xffff : sum);
        scattered_frame_free(&f);
    }
}
