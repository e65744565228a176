/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload_tool.c - the offload engine behind a pipe, for tests/property/test_offload.py.
 *
 * How it works: reads records from stdin until it ends, and answers each on stdout, in order. Numbers are little-endian,
 * layouts are the structs below. A record is followed by its cuts (16 bits each: lengths of the segments of the frame's
 * tail, then of each piece's destination; see scatter.h) and by the frame. An answer is followed by its pieces: their
 * length (32 bits), then virtio-net header and frame. Built with sanitizers: a fault ends it with a report on stderr.
 */
#include <stdio.h>

#include "offload.h"
#include "parse.h"
#include "tests/scatter.h"

enum verdict { MALFORMED = 0, ACCEPTED = 1 };

struct record {
    struct virtio_net_hdr header;
    uint8_t allowed, taken;
    uint8_t header_len; /* of the pieces' virtio-net headers */
    uint8_t n_cut_in, n_cut_out;
    uint8_t unused[3];
    uint32_t first; /* the piece to begin with */
    uint32_t len;   /* of the frame */
};
_Static_assert(sizeof(struct record) == 28, "as test_offload.py packs it");

struct answer {
    uint32_t verdict;
    uint32_t n;       /* pieces in all */
    uint32_t written; /* pieces that follow */
};

static uint16_t cuts[2 * UINT8_MAX];
static uint8_t frame_bytes[PVS_MAX_FRAME], piece_bytes[VIRTIO_NET_HDR_LEGACY + 2 + PVS_MAX_FRAME];

static void
fail(const char *what)
{
    fprintf(stderr, "offload_tool: %s\n", what);
    exit(2);
}

static bool
get(void *to, size_t len)
{
    size_t n = fread(to, 1, len, stdin);
    if (n != 0 && n != len)
        fail("the input ends within a record");
    return n == len;
}

static void
put(const void *from, size_t len)
{
    if (fwrite(from, 1, len, stdout) != len)
        fail("can't write");
}

static void
put_piece(struct pvs_pieces *pieces, const struct record *record)
{
    uint32_t len = record->header_len + pieces->len;
    struct scatter room = scatter_make(len, cuts + record->n_cut_in, record->n_cut_out);
    struct pvs_cursor to = { .seg = room.seg, .n = room.n };

    pvs_piece_write(pieces, &to, record->header_len);
    if (to.n != 0 || to.offset != 0)
        fail("a piece isn't as long as it said");
    scatter_read(&room, piece_bytes);
    scatter_free(&room);
    put(&len, sizeof len);
    put(piece_bytes, len);
}

static void
answer(const struct record *record)
{
    struct scattered_frame f;
    struct pvs_pieces pieces;
    struct answer reply = { .verdict = MALFORMED };

    scattered_frame_make(&f, frame_bytes, record->len, cuts, record->n_cut_in);
    if (pvs_parse(&f.frame) && pvs_offload_check(&f.frame, &record->header, record->allowed))
        reply.verdict = ACCEPTED;
    bool more = reply.verdict == ACCEPTED && pvs_pieces_begin(&pieces, &f.frame, record->taken, record->first);
    if (reply.verdict == ACCEPTED)
        reply.n = pieces.n;
    if (more)
        reply.written = pieces.n - pieces.next;
    put(&reply, sizeof reply);
    for (uint32_t i = 0; i < reply.written; i++) {
        put_piece(&pieces, record);
        if (pvs_pieces_next(&pieces) != (i + 1 < reply.written))
            fail("the pieces aren't as many as it said");
    }
    scattered_frame_free(&f);
}

int
main(void)
{
    struct record record;

    while (get(&record, sizeof record)) {
        if (record.len > PVS_MAX_FRAME || (record.header_len != sizeof record.header && record.header_len != 10))
            fail("not a record");
        size_t n_cut = (size_t)record.n_cut_in + record.n_cut_out;
        if ((n_cut != 0 && !get(cuts, n_cut * sizeof *cuts)) || (record.len != 0 && !get(frame_bytes, record.len)))
            fail("the input ends within a record");
        answer(&record);
    }
    return fflush(stdout) == 0 ? 0 : 2;
}
