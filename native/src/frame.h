/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame.h - a frame on its way through the switch.
 *
 * How it works: the head (the first PVS_HEAD bytes, or the whole frame if it is shorter) is a private copy: decisions
 * are made on it and it is what leaves, so a guest can't change a header after it was checked. Where headers need more,
 * pvs_frame_pull extends it, before anything is decided. The tail stays where the
 * sender put it, as segments. A frame is BORROWED (its tail lies in a ring and is valid until the burst ends) or OWNED
 * (its tail lies in a slab block, see hold.h); who delivers it need not know which.
 * After pvs_parse and pvs_offload_check the head is immutable.
 */
#ifndef PVS_FRAME_H
#define PVS_FRAME_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "copy.h"
#include "guest_memory.h"
#include "pvs_api.h"
#include "virtio_abi.h"

enum { PVS_HEAD = 128, PVS_HEAD_MAX = 508, PVS_ETH_HLEN = 14, PVS_VLAN_HLEN = 4, PVS_TAG_OFFSET = 12 };
enum { PVS_HEAD_EDITED = PVS_HEAD_MAX + PVS_VLAN_HLEN }; /* with a tag pushed */

/* What parse found in the head. */
struct pvs_parsed {
    uint64_t dst, src;  /* MAC addresses, first byte in bits 40-47 */
    uint16_t ethertype; /* behind the tags, host order */
    uint16_t l3_offset; /* where the L3 header begins */
    uint16_t vid;       /* of the outermost tag; 0: none, or a priority tag */
    uint16_t inner_vid; /* of the second */
};

/* How many tags there are: 0 to 2; more when flows have pushed some. */
static inline uint32_t
pvs_tags(const struct pvs_parsed *parsed)
{
    return (uint32_t)(parsed->l3_offset - PVS_ETH_HLEN) / PVS_VLAN_HLEN;
}

/* What becomes of the first bytes behind the MAC addresses; all zero: nothing. */
struct pvs_edit {
    uint8_t cut;   /* 4: the outermost tag is taken out */
    bool push;     /* then `tag` is put there */
    uint16_t keep; /* not 0: bytes that are kept of the result, which is longer */
    uint32_t tag;  /* TPID << 16 | TCI */
};

_Static_assert(sizeof(struct pvs_edit) == 8, "compared as a whole");

static inline bool
pvs_edit_is_same(const struct pvs_edit *a, const struct pvs_edit *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static inline bool
pvs_edit_is_nothing(const struct pvs_edit *edit)
{
    return pvs_edit_is_same(edit, &(struct pvs_edit){ 0 });
}

/* What the sender asks to have finished (virtio 1.2, 5.1.6.2). Checked by pvs_offload_check; all zero: nothing. */
struct pvs_request {
    bool checksum; /* from csum_start to the end, into csum_start + csum_offset, which holds the pseudo header's sum */
    uint8_t gso_type;    /* VIRTIO_NET_HDR_GSO_*, with the bit for ECN; NONE: not to be cut */
    uint16_t gso_size;   /* payload bytes of one segment */
    uint16_t csum_start; /* for GSO: where the L4 header begins */
    uint16_t csum_offset;
    uint16_t hdr_len; /* for GSO: all headers, Ethernet to L4, as parsed; all within the head */
};

struct pvs_frame {
    struct pvs_seg *seg; /* the tail */
    uint32_t n_seg;
    uint32_t len;    /* head and tail */
    uint32_t in_ref; /* the port it came from */
    uint16_t head_len;
    uint16_t chain; /* the guest's name for its buffer */
    bool malformed;
    bool injected; /* came from the control plane: not counted as received */
    uint8_t pair;  /* the queue pair it came by */
    struct pvs_parsed parsed;
    struct pvs_request request;
    /* of one that came by a tunnel: the VLAN of its network (PVS_UNMAPPED: as its tag says), and who sent it (vtep.h; 0: nobody known) */
    uint16_t vid, vtep;
    uint32_t tun_id; /* likewise: its network's VNI or key */
    _Alignas(64) uint8_t head[PVS_HEAD_EDITED];
};

/* How many frames it is on a wire. */
static inline uint32_t
pvs_frame_segments(const struct pvs_frame *frame)
{
    const struct pvs_request *r = &frame->request;

    return r->gso_type == VIRTIO_NET_HDR_GSO_NONE ? 1 : (frame->len - r->hdr_len + r->gso_size - 1U) / r->gso_size;
}

static inline uint32_t
pvs_ref_index(uint32_t ref)
{
    return ref & 0xffff;
}

/* Copies `len` bytes from the front of a segment list and returns where it stopped, by index and offset. */
struct pvs_cursor {
    const struct pvs_seg *seg;
    uint32_t n, offset;
};

static inline void
pvs_cursor_read(struct pvs_cursor *c, uint8_t *to, uint32_t len)
{
    while (len != 0) {
        uint32_t room = c->seg->len - c->offset;
        uint32_t part = room < len ? room : len;
        pvs_copy(to, c->seg->base + c->offset, part);
        to += part;
        len -= part;
        c->offset += part;
        if (c->offset == c->seg->len) {
            c->seg++;
            c->n--;
            c->offset = 0;
        }
    }
}

static inline void
pvs_cursor_write(struct pvs_cursor *c, const uint8_t *from, uint32_t len)
{
    while (len != 0) {
        uint32_t room = c->seg->len - c->offset;
        uint32_t part = room < len ? room : len;
        pvs_copy(c->seg->base + c->offset, from, part);
        from += part;
        len -= part;
        c->offset += part;
        if (c->offset == c->seg->len) {
            c->seg++;
            c->n--;
            c->offset = 0;
        }
    }
}

/*
 * Make the head at least `len` bytes long, at most PVS_HEAD_MAX; false when the frame is shorter. Before anything is
 * decided: what pvs_parse has found stays true, but the tail begins elsewhere.
 */
bool pvs_frame_pull(struct pvs_frame *frame, uint32_t len);

/* Write head and tail to `c`, which has room for frame->len bytes. */
void pvs_frame_write(const struct pvs_frame *frame, struct pvs_cursor *c);

/*
 * Make `to` the frame with an edited head, and the same tail. It has been parsed and checked, and is not parsed again. Of one that
 * isn't kept as a whole the tail's segments are copied to `seg`, which has room for all: how many. It asks for nothing any more.
 */
uint32_t pvs_frame_edit(struct pvs_frame *to, const struct pvs_frame *from, const struct pvs_edit *edit,
                        struct pvs_seg *seg);

/*
 * Make `to` a piece of a frame that is on its way, of `len` bytes, with this head and nothing left to be done; its tail is the
 * caller's to name.
 */
void pvs_frame_from_piece(struct pvs_frame *to, const struct pvs_frame *from, const uint8_t *head, uint32_t head_len,
                          uint32_t len);
/* Name parts as segments; how many. */
uint32_t pvs_frame_segs(struct pvs_seg *seg, const struct iovec *part, uint32_t n);

/* Make a frame over plain bytes, which it borrows. */
void pvs_frame_from_bytes(struct pvs_frame *frame, struct pvs_seg *tail, const uint8_t *bytes, uint32_t len);

#endif
