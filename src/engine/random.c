#include "engine/random.h"

#include <math.h>
#include <string.h>

/* torch.randn takes two ways: below this many elements one value at a time, in double; from it on, blocks. */
#define BLOCK 16

/* Matsumoto & Nishimura 1998: the mt19937 generator. */
void ts_torch_rng_seed(ts_torch_rng *rng, uint64_t seed) {
    rng->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < TS_MT_WORDS; i++) {
        uint32_t before = rng->state[i - 1];
        rng->state[i] = 1812433253u * (before ^ before >> 30) + i;
    }
    rng->next = TS_MT_WORDS;
    rng->has_spare = false;
    rng->spare = 0;
}

static uint32_t twist(uint32_t far, uint32_t a, uint32_t b) {
    uint32_t mixed = (a & 0x80000000u) | (b & 0x7fffffffu);
    return far ^ mixed >> 1 ^ (b & 1u ? 0x9908b0dfu : 0u);
}

static void next_block(ts_torch_rng *rng) {
    uint32_t *s = rng->state;
    for (unsigned i = 0; i < TS_MT_WORDS; i++)
        s[i] = twist(s[(i + 397) % TS_MT_WORDS], s[i], s[(i + 1) % TS_MT_WORDS]);
    rng->next = 0;
}

static uint32_t random32(ts_torch_rng *rng) {
    if (rng->next >= TS_MT_WORDS) next_block(rng);
    uint32_t y = rng->state[rng->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ y >> 18;
}

/* In [0, 1): as many random bits as the type has of mantissa. */
static double uniform_double(ts_torch_rng *rng) {
    uint64_t high = random32(rng), low = random32(rng);
    return (double)((high << 32 | low) & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

static float uniform_float(ts_torch_rng *rng) {
    return (float)(random32(rng) & 0xffffffu) * 0x1p-24f;
}

/* Box-Muller; the sine of a pair is kept for the next call. */
static double normal(ts_torch_rng *rng) {
    if (rng->has_spare) {
        rng->has_spare = false;
        return rng->spare;
    }
    double angle = 2 * M_PI * uniform_double(rng);
    double radius = sqrt(-2 * log1p(-uniform_double(rng)));
    rng->spare = radius * sin(angle);
    rng->has_spare = true;
    return radius * cos(angle);
}

/* Sixteen uniforms become sixteen normals: value j and value j + 8 are a pair. The angle is rounded to
 * float32 as torch rounds it: at 2 pi that alone is 2.4e-7, times a radius of up to 5.8. */
static void normal_block(float *x) {
    for (int j = 0; j < BLOCK / 2; j++) {
        float radius = sqrtf(-2 * logf(1 - x[j])), angle = (float)(2 * M_PI) * x[j + BLOCK / 2];
        x[j] = radius * cosf(angle);
        x[j + BLOCK / 2] = radius * sinf(angle);
    }
}

void ts_torch_randn(ts_torch_rng *rng, float *out, size_t n) {
    if (n < BLOCK) {
        for (size_t i = 0; i < n; i++) out[i] = (float)normal(rng);
        return;
    }
    for (size_t i = 0; i < n; i++) out[i] = uniform_float(rng);
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK) normal_block(out + i);
    if (n % BLOCK) {
        /* What is left over is the end of one more block, drawn anew over the last sixteen. */
        float *tail = out + n - BLOCK;
        for (int j = 0; j < BLOCK; j++) tail[j] = uniform_float(rng);
        normal_block(tail);
    }
}

static const char *const kinds[TS_RNG_KIND_COUNT] = {"torch-cpu", "torch-cuda"};

const char *ts_rng_kind_name(ts_rng_kind kind) {
    return kinds[kind];
}

int ts_rng_kind_find(const char *name) {
    for (int i = 0; i < TS_RNG_KIND_COUNT; i++)
        if (strcmp(kinds[i], name) == 0) return i;
    return -1;
}

void ts_rng_seed(ts_rng *rng, ts_rng_kind kind, uint64_t seed) {
    rng->kind = kind;
    if (kind == TS_RNG_TORCH_CUDA)
        ts_cuda_rng_seed(&rng->of.cuda, seed, TS_CUDA_RNG_THREADS);
    else
        ts_torch_rng_seed(&rng->of.cpu, seed);
}

void ts_rng_randn(ts_rng *rng, float *out, size_t n) {
    if (rng->kind == TS_RNG_TORCH_CUDA)
        ts_cuda_randn(&rng->of.cuda, out, n);
    else
        ts_torch_randn(&rng->of.cpu, out, n);
}
