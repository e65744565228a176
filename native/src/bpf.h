/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bpf.h - classic BPF: which frames are wanted, as libpcap compiles it.
 *
 * How it works: a program is checked once, when it is made. It jumps forwards only, and its last instruction returns, so it ends;
 * what it names (instructions, scratch memory) exists; what only the kernel could answer (loads at negative offsets) is
 * refused. So little is left to look at while it runs: a load beyond the frame, or a division by 0, rejects the frame. Loads
 * come from the frame's private head, or from its tail, where its sender put it.
 *
 * Who may call: any thread; a filter never changes.
 */
#ifndef PVS_BPF_H
#define PVS_BPF_H

#include "frame.h"

struct pvs_filter {
    uint32_t n;
    struct pvs_bpf code[];
};

/* May it be run? */
bool pvs_bpf_valid(const struct pvs_bpf *code, uint32_t n);
/* How many bytes of a frame a valid program wants; 0: it doesn't want the frame. */
uint32_t pvs_bpf_run(const struct pvs_bpf *code, const struct pvs_frame *frame);

/* A filter, to be freed by free(); of no instructions NULL, which every frame passes. -EINVAL, -ENOMEM */
int pvs_filter_create(const struct pvs_bpf *code, uint32_t n, struct pvs_filter **out);

static inline bool
pvs_filter_passes(const struct pvs_filter *filter, const struct pvs_frame *frame)
{
    return filter == NULL || pvs_bpf_run(filter->code, frame) != 0;
}

#endif
