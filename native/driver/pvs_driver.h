/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio-net guest without a VM.
 *
 * What for: the tests, fuzzers, demo and benchmarks need the other side of a vhost-user port. This is it:
 * memory in memfds that a back end can map, split or packed virtqueues in it (virtio 1.2, sections 2.7 and 2.8), a network
 * driver on them (section 5.1.6) that can lay a frame out in every legal way, and raw access to write every
 * illegal ring. It shares no code with the switch, so that a misreading of the specification on one side
 * shows on the other.
 *
 * How it works: guest RAM is 1 to 8 regions, each a mapping of a memfd with a guest physical address (GPA)
 * that has nothing to do with where it is mapped. Ring 2*i is the receive ring of pair i, ring 2*i+1 its
 * transmit ring. Every id (split: descriptor number; packed: buffer id) owns a slot of buffer memory; the chain with
 * id h uses slot h. What is in flight is recorded privately, never read back from shared memory, so what the
 * device returns is checked.
 *
 * Who may call it: any thread, but one at a time per guest (pvd_stop apart). Nothing here blocks, except
 * pvd_generate and pvd_pingpong, which run until their frames, their time or their patience end.
 *
 * Errors are negative errno values. -EPROTO always means "the device broke the protocol": pvd_counters tells
 * how. -EFAULT means that memory was truncated on request, so that the guest no longer touches it.
 */
#ifndef PVS_DRIVER_H
#define PVS_DRIVER_H

#include <stdint.h>

/* cdef begin */
typedef struct pvd_guest pvd_guest;

#define PVD_MAX_REGIONS 8
#define PVD_MAX_PAIRS   16
#define PVD_MAX_CUTS    64

/* Feature bit numbers that matter to this driver (virtio 1.2, sections 5.1.3 and 6). */
#define PVD_F_GUEST_CSUM    1
#define PVD_F_GUEST_TSO4    7
#define PVD_F_GUEST_TSO6    8
#define PVD_F_GUEST_ECN     9
#define PVD_F_GUEST_UFO     10
#define PVD_F_MRG_RXBUF     15
#define PVD_F_ANY_LAYOUT    27
#define PVD_F_INDIRECT_DESC 28
#define PVD_F_EVENT_IDX     29
#define PVD_F_VERSION_1     32
#define PVD_F_RING_PACKED   34
#define PVD_F_IN_ORDER      35
#define PVD_F_GUEST_USO4    54
#define PVD_F_GUEST_USO6    55

/* pvd_conf.flags */
#define PVD_CONF_ADJACENT    1 /* regions follow each other in GPA without a hole, so that a buffer can straddle two */
#define PVD_CONF_ONE_FILE    2 /* all regions in one file, at different offsets, instead of a file each */
#define PVD_CONF_AUTO_REFILL 4 /* pvd_rx posts the buffers that it has emptied again */
#define PVD_CONF_SHUFFLE     8 /* buffers lie in memory in another order than in the rings */
/* num_buffers is 1 in receive buffers before they are posted: a device that leaves it unwritten without MRG_RXBUF, as
 * DPDK's does (virtio 1.2, 5.1.6.4.1 demands 1), is not found out. */
#define PVD_CONF_PRESET 16

struct pvd_conf {
    uint32_t queue_size;  /* descriptors of each ring: split a power of two, 2 to 32768; packed 1 to 32768 */
    uint32_t queue_pairs; /* 1 to PVD_MAX_PAIRS */
    uint32_t rx_buf_size; /* bytes of one receive buffer, net header included */
    uint32_t tx_buf_size; /* bytes of the largest frame to send, net header included */
    uint32_t n_regions;   /* 1 to PVD_MAX_REGIONS */
    uint32_t flags;       /* PVD_CONF_* */
    uint64_t features;    /* as acknowledged: 1 << PVD_F_* and whatever else; unknown bits change nothing */
    uint64_t mem_size;    /* bytes of guest RAM, 0 for just enough */
    uint64_t seed;        /* of the shuffles */
};

struct pvd_region {
    uint64_t gpa;         /* guest physical address */
    uint64_t size;        /* bytes, a multiple of the page size */
    uint64_t uva;         /* where this process has it mapped: the "user address" of vhost-user */
    uint64_t mmap_offset; /* where the region begins in its file */
    int32_t fd;           /* the memfd; stays the guest's */
};

struct pvd_vring {
    uint32_t num;
    uint64_t desc_uva;  /* descriptor area */
    uint64_t avail_uva; /* driver area: avail ring, or packed the driver's event suppression */
    uint64_t used_uva;  /* device area: used ring, or packed the device's event suppression */
    int32_t kick_fd;    /* eventfd, driver to device; stays the guest's */
    int32_t call_fd;    /* eventfd, device to driver; stays the guest's */
};

/* pvd_layout.flags */
#define PVD_LAYOUT_INDIRECT 1 /* the segments after the first `direct` ones go into a table; packed: all or none */
#define PVD_LAYOUT_SHUFFLE  2 /* ids in random order, split in the table too; not in a split ring with IN_ORDER */
#define PVD_LAYOUT_STRADDLE 4 /* put the middle of the bytes on a border of two regions, if one is free */

/*
 * How net header and frame (or the bytes of a receive buffer) are spread over descriptors: one byte string,
 * cut at the given ascending offsets. No cut: one descriptor (ANY_LAYOUT). A cut at the header's length: the
 * header on its own. A cut before that: the header itself is split. Cuts at 0, at or after the end, or twice
 * are ignored.
 */
struct pvd_layout {
    uint32_t n_cuts;
    uint32_t flags;
    uint32_t direct;
    uint32_t cuts[PVD_MAX_CUTS];
};

/* What a device did wrong: pvd_counters.last_error, pvd_rx_info.error. */
#define PVD_ERR_NONE        0
#define PVD_ERR_USED_JUMP   1 /* the used index is ahead of what was made available */
#define PVD_ERR_ID_RANGE    2 /* used id >= ring size */
#define PVD_ERR_ID_IDLE     3 /* used id that isn't the head of a chain in flight: unknown or a duplicate */
#define PVD_ERR_LEN_LONG    4 /* more bytes used than the chain can take (for transmit: any) */
#define PVD_ERR_LEN_SHORT   5 /* fewer bytes used than a net header has */
#define PVD_ERR_NUM_BUFFERS 6 /* num_buffers is 0, not 1 without MRG_RXBUF, or more than were used */
#define PVD_ERR_HEADER      7 /* flags or GSO type that were not negotiated, or sizes that don't fit the frame */
#define PVD_ERR_GUARD       8 /* bytes next to a buffer were overwritten */
#define PVD_ERR_ORDER       9 /* with IN_ORDER: chains used in another order than posted, or a batch that can't be */

struct pvd_counters {
    uint64_t posted;       /* chains made available */
    uint64_t used;         /* chains taken back */
    uint64_t frames;       /* frames sent (taken back) or received */
    uint64_t bytes;        /* of those frames, without net header */
    uint64_t kicks;        /* notifications sent */
    uint64_t suppressed;   /* notifications that the device didn't want */
    uint64_t out_of_order; /* chains taken back in another order than posted: legal, but QEMU's reconnect
                              needs order */
    uint64_t errors;       /* protocol violations of the device */
    uint32_t last_error;   /* PVD_ERR_* */
    uint32_t in_flight;    /* chains posted and not yet taken back */
};

/* The net header of a received frame (virtio 1.2, section 5.1.6.1), in host order. */
struct pvd_rx_info {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers; /* 1 where the header has no such field */
    uint32_t error;       /* PVD_ERR_* when -EPROTO was returned */
};

/* ---- Life ---- */

/* Fill in a modern guest: 256 descriptors, one pair, 2 KiB buffers, one region; a split ring with
 * all its features but IN_ORDER. */
void pvd_conf_default(struct pvd_conf *conf);
/* 0, -EINVAL for a bad conf, -ENOMEM when mem_size is too small, or what the kernel said. */
int pvd_guest_create(const struct pvd_conf *conf, pvd_guest **out);
void pvd_guest_destroy(pvd_guest *guest);
/* The driver starts anew: everything in flight is forgotten, rings are zeroed, features replaced. Memory
 * stays. */
int pvd_guest_reset(pvd_guest *guest, uint64_t features);

/* ---- What a front end tells the back end ---- */

uint32_t pvd_n_regions(const pvd_guest *guest);
int pvd_region_get(const pvd_guest *guest, uint32_t i, struct pvd_region *out);
uint32_t pvd_n_rings(const pvd_guest *guest);
int pvd_vring_get(const pvd_guest *guest, uint32_t ring, struct pvd_vring *out);
/* What SET_VRING_BASE says of a ring that goes on as it is: the first chain that the device has not used. Split: the used
 * index, 0 at first; packed: index and wrap counter (bit 15), in both halves, 0x80008000 at first. */
uint32_t pvd_vring_base(const pvd_guest *guest, uint32_t ring);
/* Bytes of the net header: 12 with MRG_RXBUF or VERSION_1, else 10. */
uint32_t pvd_hdr_len(const pvd_guest *guest);
int pvd_counters_get(const pvd_guest *guest, uint32_t ring, struct pvd_counters *out);

/* ---- Legal traffic ---- */

/*
 * Make one frame available for transmission. `hdr` has pvd_hdr_len bytes, NULL for zeros; layout NULL for the
 * plainest legal one. Does not kick. 0; -ENOSPC when the ring is full, -EMSGSIZE when the frame exceeds
 * tx_buf_size, -EINVAL for a layout that the features don't allow.
 */
int pvd_tx(pvd_guest *guest, uint32_t pair, const void *hdr, const void *frame, uint32_t len,
           const struct pvd_layout *layout);
/* Take sent frames back: how many, or -EPROTO (what was wrong is skipped, so that calling again makes
 * progress). */
int pvd_tx_reap(pvd_guest *guest, uint32_t pair);
/* Post up to `max` receive buffers. How many were posted (0: ring full), or -EINVAL. Does not kick. */
int pvd_rx_fill(pvd_guest *guest, uint32_t pair, uint32_t max, const struct pvd_layout *layout);
/*
 * Receive one frame. Its length without net header; -EAGAIN when there is none; -EMSGSIZE when it is longer
 * than `cap` (it is dropped); -EPROTO. Does not kick, even with AUTO_REFILL.
 */
int pvd_rx(pvd_guest *guest, uint32_t pair, void *buf, uint32_t cap, struct pvd_rx_info *info);
/* Notify the device of what was made available, unless it asked not to be. 1 sent, 0 suppressed. */
int pvd_kick(pvd_guest *guest, uint32_t ring);
/* Notify the device whatever it asked. 0. */
int pvd_kick_force(pvd_guest *guest, uint32_t ring);
/* Ask to be called for the next used chain. 1 if there is one already (no call may come for it), else 0. */
int pvd_call_arm(pvd_guest *guest, uint32_t ring);
/* Ask not to be called; with EVENT_IDX that holds for about 65,000 chains. 0. */
int pvd_call_disarm(pvd_guest *guest, uint32_t ring);

/* ---- Illegal rings: the shared memory as it is. Index arguments are taken modulo the ring's size. Calls for the other
 * format answer -EINVAL. ---- */

struct pvd_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

#define PVD_DESC_NEXT     1
#define PVD_DESC_WRITE    2
#define PVD_DESC_INDIRECT 4

int pvd_desc_get(pvd_guest *guest, uint32_t ring, uint32_t i, struct pvd_desc *out);
int pvd_desc_set(pvd_guest *guest, uint32_t ring, uint32_t i, const struct pvd_desc *desc);
/* The shared index only: the next legal post goes on from the driver's own one and so repairs it. */
int pvd_avail_idx_set(pvd_guest *guest, uint32_t ring, uint16_t idx);
int pvd_avail_idx(pvd_guest *guest, uint32_t ring);
int pvd_avail_entry_set(pvd_guest *guest, uint32_t ring, uint32_t i, uint16_t id);
int pvd_avail_flags_set(pvd_guest *guest, uint32_t ring, uint16_t flags);
int pvd_used_event_set(pvd_guest *guest, uint32_t ring, uint16_t idx);
int pvd_used_idx(pvd_guest *guest, uint32_t ring);
int pvd_used_flags(pvd_guest *guest, uint32_t ring);
int pvd_avail_event(pvd_guest *guest, uint32_t ring);
int pvd_used_entry(pvd_guest *guest, uint32_t ring, uint32_t i, uint32_t *id, uint32_t *len);
/* Split: put `head` into the avail ring and publish it; what hangs on it is the caller's. -ENOSPC when the ring is
 * full. */
int pvd_raw_post(pvd_guest *guest, uint32_t ring, uint16_t head);

/* A packed descriptor, and an event suppression area (virtio 1.2, sections 2.8.13 and 2.8.14). */
struct pvd_packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
};

struct pvd_event {
    uint16_t off_wrap;
    uint16_t flags;
};

#define PVD_DESC_AVAIL 128
#define PVD_DESC_USED  32768

#define PVD_EVENT_ENABLE  0
#define PVD_EVENT_DISABLE 1
#define PVD_EVENT_DESC    2

int pvd_packed_get(pvd_guest *guest, uint32_t ring, uint32_t i, struct pvd_packed_desc *out);
int pvd_packed_set(pvd_guest *guest, uint32_t ring, uint32_t i, const struct pvd_packed_desc *desc);
/* Publish `n` descriptors at the next places with the flags given, but for AVAIL and USED: these are as the places need
 * them (pvd_packed_set writes all). The chain's id is the last one's. -ENOSPC when the ring hasn't as much room. */
int pvd_packed_post(pvd_guest *guest, uint32_t ring, const struct pvd_packed_desc *descs, uint32_t n);
/* Where the driver writes next or, with `used`, looks next: index, and its wrap counter in bit 15. */
int pvd_packed_next(pvd_guest *guest, uint32_t ring, int used);
int pvd_event_get(pvd_guest *guest, uint32_t ring, int device_area, struct pvd_event *out);
int pvd_event_set(pvd_guest *guest, uint32_t ring, int device_area, const struct pvd_event *event);

/* Either format: take the next used element without any check but its presence. 0 or -EAGAIN. */
int pvd_raw_take(pvd_guest *guest, uint32_t ring, uint32_t *id, uint32_t *len);
/* 64 KiB of guest memory that the driver never uses (in the last region), to build things in. */
uint64_t pvd_scratch_gpa(const pvd_guest *guest);
/* Translate. NULL when the range isn't inside one region; 0 when the pointer isn't guest memory. */
void *pvd_ptr(const pvd_guest *guest, uint64_t gpa, uint64_t len);
uint64_t pvd_gpa(const pvd_guest *guest, const void *ptr);
/* Cut a region's file to `size` bytes of the region: the back end meets SIGBUS. Afterwards the guest is mute.
 */
int pvd_truncate_memory(pvd_guest *guest, uint32_t region, uint64_t size);

/* ---- Load ---- */

#define PVD_GEN_MIN_LEN 34
#define PVD_GEN_BUCKETS 1088

/* pvd_gen_conf.flags */
#define PVD_GEN_FLOOD        1 /* every receiver gets every frame; without it frame i is for receiver i % n_rx */
#define PVD_GEN_SPLIT_HEADER 2 /* the net header in a descriptor of its own */
#define PVD_GEN_INDIRECT     4 /* chains in indirect tables */
#define PVD_GEN_GSO          8 /* TCP/IPv4 frames to be cut, which all receivers take uncut (GUEST_TSO4) */

/*
 * The generator's work for a frame. Level 0: it writes descriptor and net header, and reads of a received frame only the
 * line with the run's number (frames are prepared in all buffers beforehand; rotating MACs and UDP headers are written). Level 1: it also
 * writes the first 64 bytes (MACs, EtherType, run and sequence number, a pattern made from that) and checks those of the
 * frame received; with GSO the headers and the first 48 bytes behind them. Level 2: it writes and checks every byte. Always
 * checked: what the rings and the net header say, and at the end that no byte beside a buffer was touched.
 */
struct pvd_gen_conf {
    uint32_t len;    /* bytes of a frame without FCS, at least PVD_GEN_MIN_LEN */
    uint32_t window; /* frames in flight at most (of each flow), from 1 on; what the rings hold limits it, too */
    uint32_t burst;  /* frames made available at once at most, up to 64; 0 for 32 */
    uint32_t level;  /* 0 to 2 */
    uint32_t flags;  /* PVD_GEN_* */
    uint32_t n_dst;  /* destination MACs: dst, dst + 1, ... in turn; 0 and 1 mean one */
    uint32_t n_src;  /* source MACs likewise */
    uint32_t
        n_tuples; /* frames are UDP, with so many pairs of ports in turn, up to 1,000,000 and at least 64 bytes: the k-th (from
                          0) is from 1000 + k / 1000 to 1000 + k % 1000, 10.0.0.1 to 10.0.0.2; 0: another protocol */
    uint32_t gso_size; /* with GSO: payload of a segment; 0 for 1448 */
    uint8_t dst[6];
    uint8_t src[6];
    uint64_t rate_pps; /* frames per second of all flows together, sent when due; 0: closed loop, as fast as it goes */
    uint64_t rx_pps;   /* frames per second that all receivers together take, in bursts; 0: all that there are */
    uint64_t frames;   /* end after so many sent (by each flow); 0 for no such limit */
    uint64_t duration_ns; /* end so long after the warm-up; 0 for no such limit (one of both is needed) */
    uint64_t warmup_ns;   /* what comes in the first so many ns counts for no rate and no latency, but for all else */
    uint64_t stall_ns;    /* no progress of a flow for so long: what it has in flight is lost; 0 for 100 ms */
};

struct pvd_gen_result {
    uint64_t sent;
    uint64_t received;    /* sum over all receivers */
    uint64_t lost;        /* never came (with FLOOD: summed over receivers) */
    uint64_t reordered;   /* came after a later one (level 1 and 2) */
    uint64_t corrupted;   /* bytes or length differ from what was sent */
    uint64_t foreign;     /* frames that are not of this run */
    uint64_t errors;      /* protocol violations of the device, all rings */
    uint64_t ns;          /* from the first frame sent to the last one received */
    uint64_t measured;    /* frames received after the warm-up */
    uint64_t measured_ns; /* from the warm-up's end to the last frame received */
    /* With a rate: how many latencies are counted, the longest, and how many fell into each bucket. The middle of a bucket
     * (pvd_gen_bucket_ns) is within 1/64 of all that is in it. A latency counts from when the frame was due to when it was
     * looked at. */
    uint64_t latencies;
    uint64_t latency_max;
    uint64_t latency[PVD_GEN_BUCKETS];
};

/*
 * From tx's transmit ring to the receive rings of rx[0..n_rx-1] (pair 0, buffers are posted as needed, single descriptors
 * where none are posted yet). Spins, and yields the CPU when nothing moves. A flow ends early after ten stalls in a row. 0,
 * -EINVAL, -EMSGSIZE, -EFAULT, or -EBUSY when the device leaves earlier frames in the transmit ring. A rate needs level 1
 * or 2; GSO needs tx to have CSUM and HOST_TSO4, rx the same for guests, and 104 bytes.
 */
int pvd_generate(pvd_guest *tx, pvd_guest **rx, uint32_t n_rx, const struct pvd_gen_conf *conf,
                 struct pvd_gen_result *result);

struct pvd_gen_flow {
    pvd_guest *tx;
    pvd_guest *rx;
    uint8_t dst[6];
    uint8_t src[6];
};

/* Several flows, served in turn by the calling thread: with MACs of their own instead of conf's, and without FLOOD. No guest
 * sends in two of them, or receives in two. The result is of all together. */
int pvd_generate_many(struct pvd_gen_flow *flows, uint32_t n, const struct pvd_gen_conf *conf,
                      struct pvd_gen_result *result);
/* The middle of a bucket, and the latency (to that accuracy) which a `share` (0 to 1) of frames didn't exceed; 0 when none
 * is counted. */
uint64_t pvd_gen_bucket_ns(uint32_t bucket);
uint64_t pvd_gen_latency(const struct pvd_gen_result *result, double share);
/*
 * `count` times: a frame (conf: len, src = a's, dst = b's address) from a to b, one back from b, then sleep
 * `interval_ns`. out[i] is the time of both ways in ns, UINT64_MAX for a loss (conf.stall_ns is the
 * patience). How many came back, or an error as of pvd_generate.
 */
int pvd_pingpong(pvd_guest *a, pvd_guest *b, const struct pvd_gen_conf *conf, uint32_t count, uint64_t interval_ns,
                 uint64_t *out);
/*
 * From any thread: the run that sends from `guest` (pingpong: from a) ends soon. Lasts until taken back with
 * `stop` 0, so that a run about to begin ends as well.
 */
void pvd_stop(pvd_guest *guest, int stop);
/* How fast two processors are at the moment, in ns: a loop of twelve additions on each, and the round trip of a cache line. */
struct pvd_pace {
    double a_ns;
    double b_ns;
    double line_ns;
};

/* By two threads, a millisecond when nothing else runs; the shortest of many tries counts. 0; -EINVAL for a processor that isn't
 * there, -ETIME when the two threads didn't run at the same time. */
int pvd_pace_measure(uint32_t cpu_a, uint32_t cpu_b, uint64_t patience_ns, struct pvd_pace *pace);
/* cdef end */

#endif
