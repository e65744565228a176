/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_bpf.c - libFuzzer target: arbitrary bytes as a filter, and others as a frame, whose tail lies in pieces. What may be run must end
 * and read nothing beyond the frame, and its result is compared with that of a slow model, which looks at each instruction as the BPF
 * paper lists them.
 *
 * Input: two bytes with the number of instructions, one with the length of the tail's pieces (0: one piece), the instructions of 8 bytes
 * each, then the frame.
 */
#include <stdlib.h>

#include "bpf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 3, MOST = 4096 };

static struct pvs_bpf program[PVS_MAX_FILTER];
static struct pvs_frame frame;
static struct pvs_seg seg[MOST];

static void
require(bool truth)
{
    if (!truth)
        abort();
}

/* ---- the model ---- */

struct machine {
    const uint8_t *bytes;
    uint64_t len;
    uint32_t a, x, memory[16];
    uint32_t pc;
    bool done;
    uint32_t result;
};

static void
stop(struct machine *m, uint32_t result)
{
    m->done = true;
    m->result = result;
}

static uint32_t
packet(struct machine *m, uint64_t at, uint32_t size)
{
    uint32_t value = 0;

    if (at + size > m->len) {
        stop(m, 0);
        return 0;
    }
    for (uint32_t i = 0; i < size; i++)
        value = value * 256 + m->bytes[at + i];
    return value;
}

static void
divide(struct machine *m, uint32_t by, bool rest)
{
    if (by == 0)
        stop(m, 0);
    else
        m->a = rest ? m->a % by : m->a / by;
}

static void
jump(struct machine *m, const struct pvs_bpf *i, bool holds)
{
    m->pc += holds ? i->jt : i->jf;
}

/* What none of these is must have been refused. */
static void
step(struct machine *m, const struct pvs_bpf *i)
{
    uint32_t k = i->k;

    m->pc++;
    /* clang-format off */
    switch (i->code) {
    case 0x20: m->a = packet(m, k, 4); break;
    case 0x28: m->a = packet(m, k, 2); break;
    case 0x30: m->a = packet(m, k, 1); break;
    case 0x40: m->a = packet(m, (uint64_t)m->x + k, 4); break;
    case 0x48: m->a = packet(m, (uint64_t)m->x + k, 2); break;
    case 0x50: m->a = packet(m, (uint64_t)m->x + k, 1); break;
    case 0xb1: m->x = packet(m, k, 1) % 16 * 4; break;
    case 0x80: m->a = (uint32_t)m->len; break;
    case 0x81: m->x = (uint32_t)m->len; break;
    case 0x00: m->a = k; break;
    case 0x01: m->x = k; break;
    case 0x60: m->a = m->memory[k]; break;
    case 0x61: m->x = m->memory[k]; break;
    case 0x02: m->memory[k] = m->a; break;
    case 0x03: m->memory[k] = m->x; break;
    case 0x04: m->a += k; break;
    case 0x0c: m->a += m->x; break;
    case 0x14: m->a -= k; break;
    case 0x1c: m->a -= m->x; break;
    case 0x24: m->a *= k; break;
    case 0x2c: m->a *= m->x; break;
    case 0x34: divide(m, k, false); break;
    case 0x3c: divide(m, m->x, false); break;
    case 0x94: divide(m, k, true); break;
    case 0x9c: divide(m, m->x, true); break;
    case 0x44: m->a |= k; break;
    case 0x4c: m->a |= m->x; break;
    case 0x54: m->a &= k; break;
    case 0x5c: m->a &= m->x; break;
    case 0xa4: m->a ^= k; break;
    case 0xac: m->a ^= m->x; break;
    case 0x64: m->a = k > 31 ? 0 : m->a << k; break;
    case 0x6c: m->a = m->x > 31 ? 0 : m->a << m->x; break;
    case 0x74: m->a = k > 31 ? 0 : m->a >> k; break;
    case 0x7c: m->a = m->x > 31 ? 0 : m->a >> m->x; break;
    case 0x84: m->a = ~m->a + 1; break;
    case 0x05: m->pc += k; break;
    case 0x15: jump(m, i, m->a == k); break;
    case 0x1d: jump(m, i, m->a == m->x); break;
    case 0x25: jump(m, i, m->a > k); break;
    case 0x2d: jump(m, i, m->a > m->x); break;
    case 0x35: jump(m, i, m->a >= k); break;
    case 0x3d: jump(m, i, m->a >= m->x); break;
    case 0x45: jump(m, i, (m->a & k) != 0); break;
    case 0x4d: jump(m, i, (m->a & m->x) != 0); break;
    case 0x06: stop(m, k); break;
    case 0x16: stop(m, m->a); break;
    case 0x07: m->x = m->a; break;
    case 0x87: m->a = m->x; break;
    default: require(false);
    }
    /* clang-format on */
}

static uint32_t
run(const uint8_t *bytes, size_t len, uint32_t n)
{
    struct machine m = { .bytes = bytes, .len = len };

    for (uint32_t steps = 0; !m.done; steps++) {
        require(m.pc < n && steps < n); /* it goes forwards only */
        step(&m, &program[m.pc]);
    }
    return m.result;
}

/* ---- ---- */

/* A frame whose every part is a block of its own, so that nothing beyond it may be read. */
static void
make_frame(const uint8_t *bytes, uint32_t len, uint32_t piece)
{
    pvs_frame_from_bytes(&frame, seg, bytes, len);
    memset(frame.head + frame.head_len, 0xee, sizeof frame.head - frame.head_len);
    uint32_t left = len - frame.head_len;
    const uint8_t *from = bytes + frame.head_len;
    for (frame.n_seg = 0; left != 0 && frame.n_seg < MOST; frame.n_seg++) {
        uint32_t part = piece == 0 || left < piece || frame.n_seg == MOST - 1 ? left : piece;
        uint8_t *block = malloc(part);
        require(block != NULL);
        memcpy(block, from, part);
        seg[frame.n_seg] = (struct pvs_seg){ .base = block, .len = part };
        from += part;
        left -= part;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEADER)
        return -1;
    uint32_t n = (uint32_t)(data[0] | data[1] << 8) % (PVS_MAX_FILTER + 1), piece = data[2];
    data += HEADER;
    size -= HEADER;
    if (n > size / sizeof program[0])
        n = (uint32_t)(size / sizeof program[0]);
    memcpy(program, data, n * sizeof program[0]);
    data += n * sizeof program[0];
    size -= n * sizeof program[0];
    if (!pvs_bpf_valid(program, n) || size > PVS_MAX_FRAME)
        return 0;
    make_frame(data, (uint32_t)size, piece);
    require(pvs_bpf_run(program, &frame) == run(data, size, n));
    for (uint32_t i = 0; i < frame.n_seg; i++)
        free(seg[i].base);
    return 0;
}
