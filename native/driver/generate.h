/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load generator's own structures. Private to native/driver.
 *
 * generate.c          the loop over all flows, its accounting, the calls of pvs_driver.h
 * generate_open.c     how flows come to be, and which path each ring takes
 * generate_frame.c    what a frame holds, and whether a received one holds it; generate_head.c its IP, TCP and UDP headers
 * generate_lane.c     rings that take the lean path; received frames that need a closer look there
 * generate_split.c    the lean path on split rings, generate_packed.c on packed ones
 * generate_general.c  the path of all other layouts
 * latency.c           one frame at a time; histogram.c the counting of latencies
 *
 * The lean path is there because the switch shall be the limit. A ring takes it when every chain of it is one descriptor
 * and net headers have 12 bytes. Then an id belongs to each place in the ring, for good unless the device completes out
 * of order; what the device must answer is known beforehand and merely compared; and what differs is looked at by slower
 * code. Three functions each (send, reap, receive), chosen once per run, know of the format; the loop doesn't.
 */
#ifndef PVD_GENERATE_H
#define PVD_GENERATE_H

#include "internal.h"

#include <string.h>

#define NS_PER_S      1000000000ull
#define PVD_MAX_FRAME 1048576u
#define PVD_GEN_BURST 64u /* frames at once at most */

#define pvd_inline    static inline __attribute__((always_inline))
#define pvd_likely(x) __builtin_expect(!!(x), 1)

/*
 * A frame: Ethernet header (with GSO: IPv4 and TCP headers, too, with tuples IPv4 and UDP), padding, and then the body: the run's
 * number, the sequence number, and a pattern of 64-bit words made from the sequence number. With a rate the first word of
 * the pattern is the time when the frame was due, in ns. Header, padding and the body's first 48 bytes are the block: what
 * level 1 writes and checks. Without these headers it is a frame's first 64 bytes.
 */
#define PVD_ETHERTYPE_AT 12u
#define PVD_PLAIN_BODY   16u
#define PVD_UDP_BODY     48u /* a frame of 64 bytes ends behind the sequence number */
#define PVD_GSO_BODY     56u
#define PVD_BODY_BLOCK   48u /* bytes of the body in the block */
#define PVD_BLOCK_MAX    (PVD_GSO_BODY + PVD_BODY_BLOCK)
#define PVD_PATTERN_AT   16u /* in the body */

/* 32 bytes wherever they lie; a register where there are such, else two. Never an argument or result: how these are handed
 * over depends on the processor that is compiled for. */
typedef uint64_t pvd_v4 __attribute__((vector_size(32), aligned(1), may_alias));

#define PVD_V4(p) ((pvd_v4 *)(uintptr_t)(p))

#define PVD_SEQ_FACTOR  0x9e3779b97f4a7c15ull
#define PVD_WORD_FACTOR 0xbf58476d1ce4e5b9ull

/* The pattern's first word; the k-th one is that + k * PVD_WORD_FACTOR. */
pvd_inline uint64_t
pvd_pattern(uint64_t seq)
{
    return (seq + 1) * PVD_SEQ_FACTOR;
}

/* How a flow's frames are written and checked on the lean path: by short forms, where no more changes from one to the next
 * than sequence number, pattern and what the bits say, at the levels that there are forms for; or by one for all. */
#define PVD_FORM_ROTATED 1u /* several MACs */
#define PVD_FORM_PACED   2u
#define PVD_FORM_ANY     4u
#define PVD_FORM_UDP     8u /* with tuples, and 64 bytes */

/* What the frames of a flow hold. */
struct pvd_spec {
    uint32_t len;
    uint32_t level;
    uint32_t body;    /* offset of the body */
    uint32_t streams; /* sequences that frames are dealt to in turn, one for each receiver; 1 with FLOOD */
    bool gso;
    bool udp;
    bool paced;    /* frames carry the time when they were due */
    uint32_t form; /* PVD_FORM_* */
    uint64_t run;  /* the run's number */
    uint32_t n_dst;
    uint32_t n_src;
    uint32_t n_tuples;
    uint64_t dst_high; /* the MACs: the first two bytes, as they lie, and the other four as a number */
    uint64_t src_high;
    uint32_t dst_low;
    uint32_t src_low;
    uint8_t header[PVD_MAX_HDR_LEN]; /* net header as sent; num_buffers apart, as it comes back */
    uint8_t head[PVD_GSO_BODY];      /* the bytes before the body, with the first MACs */
    pvd_v4
        mask; /* which bits of the pattern's first four words are compared; the block ends earlier in a short frame */
    /* Fill and check a pattern: `n` bytes, of which the first eight are `word`. */
    void (*fill)(uint8_t *to, uint32_t n, uint64_t word);
    bool (*intact)(const uint8_t *from, uint32_t n, uint64_t word);
};

/* The frame's first 16 bytes: the k-th MACs, counted in their last four bytes, EtherType and what follows it. */
pvd_inline void
pvd_addresses(const struct pvd_spec *s, uint32_t dst, uint32_t src, uint64_t words[2])
{
    uint32_t type;
    memcpy(&type, s->head + 12, sizeof(type));
    words[0] = s->dst_high | (uint64_t)__builtin_bswap32(s->dst_low + dst) << 16 | s->src_high << 48;
    words[1] = __builtin_bswap32(s->src_low + src) | (uint64_t)type << 32;
}

/* The eight bytes with a tuple's ports: there are PVD_PORTS destinations, and with each round of them another source. */
#define PVD_UDP_WORD_AT 32u
#define PVD_PORTS       1000u
#define PVD_FIRST_PORT  1000u

pvd_inline uint64_t
pvd_udp_word(const struct pvd_spec *s, uint32_t tuple)
{
    uint64_t word;
    uint16_t from = __builtin_bswap16((uint16_t)(PVD_FIRST_PORT + tuple / PVD_PORTS));
    uint16_t to = __builtin_bswap16((uint16_t)(PVD_FIRST_PORT + tuple % PVD_PORTS));
    memcpy(&word, s->head + PVD_UDP_WORD_AT, sizeof(word));
    return word | (uint64_t)from << 16 | (uint64_t)to << 32;
}

/* Which frame of a flow, and which of the MACs and tuples it has. */
struct pvd_cursor {
    uint64_t seq;
    uint32_t stream;
    uint32_t dst;
    uint32_t src;
    uint32_t tuple;
};

/* A ring on the lean path. The lists are by place in the ring: the id that belongs there (packed: where a descriptor's
 * second word has it, from bit 32 on), and its buffer. What is in flight lies from where used ones are taken to where is
 * posted, all else is free. */
struct pvd_lane {
    struct pvd_queue *q;
    uint64_t *id;
    uint64_t *gpa;
    uint8_t **ptr;
    uint16_t *place; /* IN_ORDER: where an id is */
    bool open;
};

struct pvd_flow;

struct pvd_receiver {
    struct pvd_flow *flow;
    struct pvd_queue *q;
    struct pvd_lane lane;
    bool (*receive)(struct pvd_receiver *r);
    uint32_t index;         /* among the flow's receivers */
    struct pvd_cursor next; /* the frame that comes next */
    uint64_t received;
    uint64_t given_up; /* less one for each that came after all */
};

struct pvd_flow {
    struct pvd_gen *gen;
    struct pvd_spec spec;
    struct pvd_queue *tx;
    struct pvd_lane lane;
    struct pvd_layout layout; /* of frames on the general path */
    uint8_t *frame;           /* scratch there: one frame */
    /* Make up to `n` frames available and kick: how many. Take back what was sent, up to a burst, or receive as much:
     * whether there was any. */
    uint32_t (*send)(struct pvd_flow *f, uint32_t n);
    bool (*reap)(struct pvd_flow *f);
    uint32_t n_rx;
    struct pvd_receiver *rx;
    struct pvd_cursor next; /* the frame that is sent next */
    uint64_t sent;
    uint64_t forgiven; /* in flight at a stall: no longer waited for */
    uint64_t moved;    /* frames sent and received at the last look */
    uint64_t last_progress;
    uint32_t stalls; /* in a row */
    bool blocked;    /* the ring had no room at the last try */
    uint64_t first_due;
};

struct pvd_gen {
    struct pvd_gen_conf conf;
    struct pvd_gen_result *result;
    uint32_t n_flows;
    struct pvd_flow *flows;
    struct pvd_receiver *receivers; /* of all flows */
    uint64_t start;
    uint64_t now;           /* as of the last look at the clock */
    uint64_t warm;          /* when the warm-up ended; before that, never */
    uint64_t warm_received; /* frames received until then */
    double interval_ns;     /* between two frames of a flow, with a rate */
    uint8_t *scratch;       /* a frame received in pieces */
};

/* Who sends to whom: what a flow is made from. */
struct pvd_way {
    pvd_guest *tx;
    pvd_guest **rx;
    uint32_t n_rx;
    const uint8_t *dst;
    const uint8_t *src;
};

/* generate.c */
uint64_t pvd_gen_now(void);
void pvd_gen_relax(uint32_t idle);
/* Polling needs no calls; asked again from time to time, because with EVENT_IDX the wish wears off. */
void pvd_gen_silence(struct pvd_gen *g);
/* Whether pvd_stop was asked for. */
bool pvd_gen_stopped(const struct pvd_gen *g);

/* generate_open.c */
/* A generator with its rings quiet and filled; 0 or an error, and then nothing is left to close. */
int pvd_gen_open(struct pvd_gen *g, const struct pvd_way *ways, uint32_t n, const struct pvd_gen_conf *conf,
                 struct pvd_gen_result *result);
void pvd_gen_close(struct pvd_gen *g);

pvd_inline uint64_t
pvd_due(const struct pvd_flow *f, uint64_t i)
{
    return f->first_due + (uint64_t)(int64_t)((double)(int64_t)i * f->gen->interval_ns);
}

/* generate_frame.c */
int pvd_spec_init(struct pvd_spec *s, const struct pvd_gen_conf *conf, const struct pvd_way *way, uint64_t run);
/* The frame number `seq` of a stream, and the next frame of all or of its stream. */
void pvd_cursor_set(const struct pvd_spec *s, struct pvd_cursor *c, uint32_t stream, uint64_t seq);
void pvd_cursor_next(const struct pvd_spec *s, struct pvd_cursor *c);
void pvd_cursor_next_in_stream(const struct pvd_spec *s, struct pvd_cursor *c);
/* All bytes of a frame before any is sent. */
void pvd_frame_template(const struct pvd_spec *s, uint8_t *frame);
/* Write what the level asks for at `frame`, behind which there is room for a whole block. */
void pvd_frame_write(const struct pvd_spec *s, const struct pvd_cursor *c, uint64_t stamp, uint8_t *frame);
/* Count the latency of a frame that was due at `stamp`. */
void pvd_frame_latency(const struct pvd_receiver *r, uint64_t stamp);
/* Whether a frame in one piece is the one expected next; then it is counted. */
bool pvd_frame_accept(struct pvd_receiver *r, const uint8_t *frame);
/* Judge a frame received in pieces, and count it. */
void pvd_frame_judge(struct pvd_receiver *r, const struct pvd_piece_ref *pieces, uint32_t n_pieces, uint32_t len);

/* generate_head.c */
/* One long TCP segment that is cut later, if at all: its checksum is that of the pseudo header (virtio 1.2, 5.1.6.2). */
void pvd_head_tcp(struct pvd_spec *s, uint32_t gso_size);
/* Are the headers behind the addresses those that were sent? Checksums apart, which a switch may complete. */
bool pvd_tcp_intact(const struct pvd_spec *s, const uint8_t *frame);
void pvd_head_udp(struct pvd_spec *s);
void pvd_udp_write(const struct pvd_spec *s, uint32_t tuple, uint8_t *frame);
bool pvd_udp_intact(const struct pvd_spec *s, uint32_t tuple, const uint8_t *frame);

/* histogram.c */
void pvd_latency_add(struct pvd_gen_result *result, uint64_t ns);

/* generate_lane.c */
bool pvd_lane_open(struct pvd_lane *lane, uint32_t len);
/* Hand the ring back as it would be without; guards that were overwritten are counted as errors. */
void pvd_lane_close(struct pvd_lane *lane);
/* Make sense of a used element that isn't the one expected at `place`: put its id there. False for a violation. */
bool pvd_lane_settle(struct pvd_lane *lane, uint32_t place, uint32_t in_flight, uint32_t id);
/* Look closer at what was received from `place` on, where `ready` buffers are (split alone), of `in_flight`: how many of
 * them were dealt with. */
uint32_t pvd_lane_look(struct pvd_receiver *r, uint32_t place, uint32_t ready, uint32_t in_flight);

/* How many of `n` places from `place` on lie one behind the other. */
pvd_inline uint32_t
pvd_lane_run(const struct pvd_lane *lane, uint32_t place, uint32_t n)
{
    uint32_t run = lane->q->num - place;
    return run < n ? run : n;
}

/* generate_split.c, generate_packed.c, generate_general.c: choose a flow's functions. */
void pvd_split_choose(struct pvd_flow *f);
void pvd_split_choose_receive(struct pvd_receiver *r);
void pvd_packed_choose(struct pvd_flow *f);
void pvd_packed_choose_receive(struct pvd_receiver *r);
uint32_t pvd_general_send(struct pvd_flow *f, uint32_t n);
bool pvd_general_reap(struct pvd_flow *f);
bool pvd_general_receive(struct pvd_receiver *r);

#endif
