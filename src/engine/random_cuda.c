/* PyTorch's CUDA generator (ATen's DistributionTemplates.h, cuRAND's curand_normal4). */
#include <math.h>
#include "engine/random.h"

#define THREADS_OF_BLOCK 256
#define UNROLL           4

/* Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32 with ten rounds. */
void ts_philox4x32(uint64_t key, const uint32_t counter[4], uint32_t ret[4]) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p = UINT64_C(0xD2511F53) * a, q = UINT64_C(0xCD9E8D57) * c;
        a = (uint32_t)(q >> 32) ^ b ^ k0;
        c = (uint32_t)(p >> 32) ^ d ^ k1;
        b = (uint32_t)q;
        d = (uint32_t)p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    ret[0] = a, ret[1] = b, ret[2] = c, ret[3] = d;
}

/* Box-Muller as cuRAND does it, in float32 with fused multiply-adds: the sine comes first. */
static void two_normals(uint32_t x, uint32_t y, float ret[2]) {
    const float inverse = 0x1p-32f, turn = 0x1p-32f * 6.2831855f;
    float u = fmaf((float)x, inverse, inverse / 2), v = fmaf((float)y, turn, turn / 2);
    float radius = sqrtf(-2.0f * logf(u));
    ret[0] = radius * sinf(v);
    ret[1] = radius * cosf(v);
}

void ts_cuda_rng_seed(ts_cuda_rng *rng, uint64_t seed, unsigned threads) {
    *rng = (ts_cuda_rng){.seed = seed, .threads = threads};
}

void ts_cuda_randn(ts_cuda_rng *rng, float *out, size_t n) {
    if (n == 0) return;
    const size_t most = rng->threads / THREADS_OF_BLOCK,
                 blocks = (n + THREADS_OF_BLOCK - 1) / THREADS_OF_BLOCK;
    const size_t threads = (blocks < most ? blocks : most) * THREADS_OF_BLOCK;
    const size_t calls = (n - 1) / (threads * UNROLL) + 1;
    for (size_t call = 0; call < calls; call++)
        for (size_t thread = 0; thread < threads; thread++) {
            const size_t first = call * threads * UNROLL + thread;
            if (first >= n) break;
            const uint64_t at = rng->offset + call;
            const uint32_t counter[4] = {(uint32_t)at, (uint32_t)(at >> 32), (uint32_t)thread, 0};
            uint32_t bits[4];
            float normal[4];
            ts_philox4x32(rng->seed, counter, bits);
            two_normals(bits[0], bits[1], normal);
            if (first + 2 * threads < n) two_normals(bits[2], bits[3], normal + 2);
            for (size_t k = 0; k < UNROLL && first + k * threads < n; k++)
                out[first + k * threads] = normal[k];
        }
    rng->offset += calls;
}
