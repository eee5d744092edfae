#include "emulate.h"

#include <string.h>
#include "kernels/convert.h"

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, FLUSH_TO_ZERO_BELOW = 0x00800000 };

static _Thread_local struct {
    uint8_t config[64];
    union {
        uint8_t bytes[ROWS][ROW_BYTES];
        float f32[ROWS][ROW_BYTES / 4];
        uint16_t bf16[ROWS][ROW_BYTES / 2];
    } tile[TILES];
} amx;

static amx_counts counts;

static unsigned row_bytes(unsigned tile) {
    return amx.config[16 + 2 * tile] | (unsigned)amx.config[17 + 2 * tile] << 8;
}
static unsigned rows(unsigned tile) {
    return amx.config[48 + tile];
}

/* Denormals count as zeros, in and out. */
static float flushed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7fffffff) < FLUSH_TO_ZERO_BELOW ? 0 : x;
}
static float operand(uint16_t x) {
    return flushed(ts_bf16_to_f32(x));
}

/* The even and the odd channels are summed apart, then together, then added. False where the tiles do not fit
 * together: a fault. */
static bool product(unsigned sum, unsigned left, unsigned right) {
    if (sum == left || sum == right || left == right || rows(sum) != rows(left) ||
        row_bytes(sum) != row_bytes(right) || rows(right) * 4 != row_bytes(left))
        return false;
    for (unsigned m = 0; m < rows(sum); m++)
        for (unsigned n = 0; n < row_bytes(sum) / 4; n++) {
            float even = 0, odd = 0;
            for (unsigned k = 0; k < row_bytes(left) / 4; k++) {
                even = flushed(even + operand(amx.tile[left].bf16[m][2 * k]) *
                                          operand(amx.tile[right].bf16[k][2 * n]));
                odd = flushed(odd + operand(amx.tile[left].bf16[m][2 * k + 1]) *
                                        operand(amx.tile[right].bf16[k][2 * n + 1]));
            }
            amx.tile[sum].f32[m][n] = flushed(amx.tile[sum].f32[m][n] + flushed(even + odd));
        }
    return true;
}

/* Only palettes 0 (no tiles) and 1 are there. Tiles are zero after it. */
static bool load_config(const uint8_t *from) {
    if (from[0] > 1) return false;
    memset(&amx, 0, sizeof amx);
    if (from[0] == 0) return true;
    for (unsigned i = 2; i < 64; i++) {
        bool used = (i >= 16 && i < 16 + 2 * TILES) || (i >= 48 && i < 48 + TILES);
        if (!used && from[i]) return false;
    }
    memcpy(amx.config, from, sizeof amx.config);
    for (unsigned t = 0; t < TILES; t++)
        if (row_bytes(t) > ROW_BYTES || rows(t) > ROWS || !row_bytes(t) != !rows(t)) return false;
    return true;
}

/* An instruction of the map 0F38 with a three-byte VEX prefix, taken apart. */
typedef struct instruction {
    unsigned prefix, opcode, reg, vvvv, length; /* prefix: 0 none, 1 66, 2 F3, 3 F2 */
    bool in_memory;
    unsigned rm;   /* the tile, unless in_memory */
    uint8_t *base; /* of the memory, with the displacement */
    int64_t pitch; /* the index register, scaled */
} instruction;

static int64_t general(const ucontext_t *u, unsigned number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return u->uc_mcontext.gregs[order[number]];
}

static bool decode(const ucontext_t *u, const uint8_t *code, instruction *i) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || code[2] & 0x84)
        return false; /* map 0F38, W 0, 128 bits */
    unsigned high_reg = !(code[1] & 0x80) * 8u, high_index = !(code[1] & 0x40) * 8u,
             high_base = !(code[1] & 0x20) * 8u;
    unsigned mod = code[4] >> 6, rm = code[4] & 7;
    *i = (instruction){.prefix = code[2] & 3, .opcode = code[3], .vvvv = (unsigned)~(code[2] >> 3) & 15};
    i->reg = (code[4] >> 3 & 7u) + high_reg;
    i->in_memory = mod != 3;
    i->rm = rm + high_base;
    i->length = 5;
    if (!i->in_memory) return true;
    int64_t base;
    if (rm == 4) {
        unsigned sib = code[5], index = (sib >> 3 & 7u) + high_index;
        if ((sib & 7) == 5 && mod == 0) return false; /* without a base: nobody does */
        base = general(u, (sib & 7) + high_base);
        i->pitch = index == 4 ? 0 : general(u, index) << (sib >> 6);
        i->length = 6;
    } else {
        if (rm == 5 && mod == 0) return false; /* relative to RIP */
        base = general(u, rm + high_base);
    }
    int32_t displacement = 0;
    if (mod == 1) displacement = (int8_t)code[i->length];
    if (mod == 2) memcpy(&displacement, code + i->length, 4);
    i->length += mod == 1 ? 1 : mod == 2 ? 4 : 0;
    i->base = (uint8_t *)(uintptr_t)(base + displacement);
    return true;
}

static bool execute(const instruction *i) {
    enum { NONE, P66, PF3, PF2 };
    if (i->opcode == 0x49 && i->in_memory && i->prefix == NONE) return load_config(i->base);
    if (i->opcode == 0x49 && !i->in_memory && i->prefix == NONE && i->reg == 0 && i->rm == 0)
        return memset(&amx, 0, sizeof amx), true;
    if (i->opcode == 0x49 && i->in_memory && i->prefix == P66)
        return memcpy(i->base, amx.config, sizeof amx.config), true;
    if (i->reg >= TILES || amx.config[0] != 1) return false;
    if (i->opcode == 0x49 && !i->in_memory && i->prefix == PF2)
        return memset(&amx.tile[i->reg], 0, sizeof amx.tile[0]), true;
    /* TILELOADD, and TILELOADDT1, which tells the cache that the tile is not needed again. */
    if (i->opcode == 0x4b && i->in_memory && (i->prefix == PF2 || i->prefix == P66)) {
        memset(&amx.tile[i->reg], 0, sizeof amx.tile[0]);
        for (unsigned r = 0; r < rows(i->reg); r++)
            memcpy(amx.tile[i->reg].bytes[r], i->base + (int64_t)r * i->pitch, row_bytes(i->reg));
        return true;
    }
    if (i->opcode == 0x4b && i->in_memory && i->prefix == PF3) {
        for (unsigned r = 0; r < rows(i->reg); r++)
            memcpy(i->base + (int64_t)r * i->pitch, amx.tile[i->reg].bytes[r], row_bytes(i->reg));
        return true;
    }
    if (i->opcode == 0x5c && !i->in_memory && i->prefix == PF3 && i->rm < TILES && i->vvvv < TILES)
        return product(i->reg, i->rm, i->vvvv);
    return false;
}

bool amx_emulate(ucontext_t *u) {
    instruction i;
    if (!decode(u, (const uint8_t *)(uintptr_t)u->uc_mcontext.gregs[REG_RIP], &i) || !execute(&i))
        return false;
    amx_counts *c = &counts;
    __atomic_add_fetch(i.opcode == 0x5c   ? &c->products
                       : i.opcode == 0x4b ? &c->moves
                                          : &c->others,
                       1, __ATOMIC_RELAXED);
    u->uc_mcontext.gregs[REG_RIP] += i.length;
    return true;
}

amx_counts amx_counted(void) {
    return counts;
}
