/* SPDX-License-Identifier: Apache-2.0 */
/* bpf.c - see bpf.h. The codes are those of linux/bpf_common.h. */
#include "bpf.h"

#include <errno.h>
#include <stdlib.h>

enum { LD = 0x00, LDX = 0x01, ST = 0x02, STX = 0x03, ALU = 0x04, JMP = 0x05, RET = 0x06, MISC = 0x07 }; /* classes */
enum { W = 0x00, H = 0x08, B = 0x10 };                                                                  /* sizes */
enum { IMM = 0x00, ABS = 0x20, IND = 0x40, MEM = 0x60, LEN = 0x80, MSH = 0xa0 };                        /* modes */
enum { ADD = 0x00, SUB = 0x10, MUL = 0x20, DIV = 0x30, OR = 0x40, AND = 0x50 };
enum { LSH = 0x60, RSH = 0x70, NEG = 0x80, MOD = 0x90, XOR = 0xa0 };
enum { JA = 0x00, JEQ = 0x10, JGT = 0x20, JGE = 0x30, JSET = 0x40 };
enum { K = 0x00, X = 0x08, A = 0x10, TAX = 0x00, TXA = 0x80 };
enum { SCRATCH = 16 };

/* ---- before it runs ---- */

static bool
load_valid(const struct pvs_bpf *i)
{
    switch (i->code) {
    case LD | W | ABS:
    case LD | H | ABS:
    case LD | B | ABS:
    case LD | W | IND:
    case LD | H | IND:
    case LD | B | IND:
    case LDX | B | MSH:
        return i->k <= INT32_MAX; /* at what would be negative offsets the kernel has more than the frame */
    case LD | IMM:
    case LDX | IMM:
    case LD | W | LEN:
    case LDX | W | LEN:
        return true;
    case LD | MEM:
    case LDX | MEM:
    case ST:
    case STX:
        return i->k < SCRATCH;
    default:
        return false;
    }
}

static bool
alu_valid(const struct pvs_bpf *i)
{
    uint32_t operation = i->code & 0xf0;

    if ((i->code & ~0xffU) != 0 || (operation == NEG && (i->code & X) != 0))
        return false;
    bool divides = operation == DIV || operation == MOD;
    return operation <= XOR && !(divides && (i->code & X) == 0 && i->k == 0);
}

/* `behind`: how many instructions follow. */
static bool
jump_valid(const struct pvs_bpf *i, uint32_t behind)
{
    if (i->code == (JMP | JA))
        return i->k < behind;
    uint32_t test = i->code & 0xf0;
    return (i->code & ~0xffU) == 0 && test >= JEQ && test <= JSET && i->jt < behind && i->jf < behind;
}

static bool
instruction_valid(const struct pvs_bpf *i, uint32_t behind)
{
    switch (i->code & 0x07) {
    case ALU:
        return alu_valid(i);
    case JMP:
        return jump_valid(i, behind);
    case RET:
        return i->code == (RET | K) || i->code == (RET | A);
    case MISC:
        return i->code == (MISC | TAX) || i->code == (MISC | TXA);
    default:
        return load_valid(i);
    }
}

bool
pvs_bpf_valid(const struct pvs_bpf *code, uint32_t n)
{
    if (n == 0 || n > PVS_MAX_FILTER || (code[n - 1].code & 0x07) != RET)
        return false;
    for (uint32_t i = 0; i < n; i++)
        if (!instruction_valid(&code[i], n - 1 - i))
            return false;
    return true;
}

int
pvs_filter_create(const struct pvs_bpf *code, uint32_t n, struct pvs_filter **out)
{
    *out = NULL;
    if (n == 0)
        return 0;
    if (!pvs_bpf_valid(code, n))
        return -EINVAL;
    struct pvs_filter *filter = malloc(sizeof *filter + n * sizeof *code);
    if (filter == NULL)
        return -ENOMEM;
    filter->n = n;
    memcpy(filter->code, code, n * sizeof *code);
    *out = filter;
    return 0;
}

/* ---- while it runs ---- */

/* One byte behind the head. */
static uint8_t
tail_byte(const struct pvs_frame *frame, uint64_t at)
{
    for (uint32_t i = 0; i < frame->n_seg; i++) {
        if (at < frame->seg[i].len)
            return frame->seg[i].base[at];
        at -= frame->seg[i].len;
    }
    return 0; /* a frame is as long as it says */
}

/* A number of 1, 2 or 4 bytes in network order; false: the frame ends before. */
static bool
load(const struct pvs_frame *frame, uint64_t at, uint16_t code, uint32_t *value)
{
    uint32_t size = (code & B) != 0 ? 1 : (code & H) != 0 ? 2 : 4;

    if (at + size > frame->len)
        return false;
    *value = 0;
    for (uint64_t i = at; i < at + size; i++) {
        uint8_t byte = i < frame->head_len ? frame->head[i] : tail_byte(frame, i - frame->head_len);
        *value = *value << 8 | byte;
    }
    return true;
}

/* A shift by 32 or more leaves nothing. */
static uint32_t
shifted(uint32_t operation, uint32_t a, uint32_t by)
{
    if (by >= 32)
        return 0;
    return operation == LSH ? a << by : a >> by;
}

/* False: a division by 0. */
static bool
compute(uint16_t code, uint32_t *a, uint32_t operand)
{
    uint32_t operation = code & 0xf0;

    switch (operation) {
    case ADD:
        *a += operand;
        return true;
    case SUB:
        *a -= operand;
        return true;
    case MUL:
        *a *= operand;
        return true;
    case OR:
        *a |= operand;
        return true;
    case AND:
        *a &= operand;
        return true;
    case XOR:
        *a ^= operand;
        return true;
    case NEG:
        *a = 0 - *a;
        return true;
    case LSH:
    case RSH:
        *a = shifted(operation, *a, operand);
        return true;
    default:
        if (operand == 0)
            return false;
        *a = operation == DIV ? *a / operand : *a % operand;
        return true;
    }
}

static bool
holds(uint16_t code, uint32_t a, uint32_t operand)
{
    switch (code & 0xf0) {
    case JEQ:
        return a == operand;
    case JGT:
        return a > operand;
    case JGE:
        return a >= operand;
    default:
        return (a & operand) != 0;
    }
}

/* The loads and stores. False: beyond the frame. */
static bool
move(const struct pvs_bpf *i, const struct pvs_frame *frame, uint32_t *a, uint32_t *x, uint32_t *memory)
{
    uint32_t *to = (i->code & 0x07) == LD ? a : x;

    if ((i->code & 0x07) >= ST) {
        memory[i->k] = i->code == ST ? *a : *x;
        return true;
    }
    switch (i->code & 0xe0) {
    case ABS:
        return load(frame, i->k, i->code, to);
    case IND:
        return load(frame, (uint64_t)*x + i->k, i->code, to);
    case MSH: /* the length of an IPv4 header */
        if (!load(frame, i->k, i->code, to))
            return false;
        *to = (*to & 0xf) * 4;
        return true;
    case LEN:
        *to = frame->len;
        return true;
    case MEM:
        *to = memory[i->k];
        return true;
    default:
        *to = i->k;
        return true;
    }
}

uint32_t
pvs_bpf_run(const struct pvs_bpf *code, const struct pvs_frame *frame)
{
    uint32_t a = 0, x = 0, memory[SCRATCH] = { 0 };

    for (const struct pvs_bpf *i = code;; i++) {
        uint32_t operand = (i->code & X) != 0 ? x : i->k;
        switch (i->code & 0x07) {
        case ALU:
            if (!compute(i->code, &a, operand))
                return 0;
            break;
        case JMP:
            i += i->code == (JMP | JA) ? i->k : holds(i->code, a, operand) ? i->jt : i->jf;
            break;
        case RET:
            return i->code == (RET | A) ? a : i->k;
        case MISC:
            if (i->code == (MISC | TAX))
                x = a;
            else
                a = x;
            break;
        default:
            if (!move(i, frame, &a, &x, memory))
                return 0;
        }
    }
}
