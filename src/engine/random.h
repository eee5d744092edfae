/* Noise: PyTorch's generators, so that a picture can be made again from diffusers.
 *
 * The same numbers as torch.Generator("cpu").manual_seed(seed) and float32 torch.randn(n, generator=g), draw
 * after draw, within 1e-6 (torch's own vector code is not bit-stable between processors). Likewise for
 * torch.Generator("cuda"), but for the sine and cosine, which a GPU only approximates. A generator belongs to
 * one thread at a time. */
#ifndef TS_ENGINE_RANDOM_H
#define TS_ENGINE_RANDOM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TS_MT_WORDS 624

typedef struct ts_torch_rng {
    uint32_t state[TS_MT_WORDS]; /* mt19937 */
    unsigned next;               /* the word that comes next; TS_MT_WORDS: a new block is due */
    bool has_spare; /* short draws come in pairs; the second waits here for the next short draw */
    double spare;
} ts_torch_rng;

/* Only the low 32 bits of the seed count, as in PyTorch on the CPU. */
void ts_torch_rng_seed(ts_torch_rng *rng, uint64_t seed);

/* n unit-normal values, in the order of the tensor's elements. */
void ts_torch_randn(ts_torch_rng *rng, float *out, size_t n);

/* PyTorch on CUDA. Which random number an element gets depends on the GPU as soon as a tensor has more
 * elements than the GPU has threads: an A100 has 221184, an H100 or H200 270336, smaller cards from 40960 on.
 * Up to its number every element has a thread of its own and all GPUs draw the same. */
#define TS_CUDA_RNG_THREADS (132 * 2048) /* H100, H200: SMs x threads */

typedef struct ts_cuda_rng {
    uint64_t seed, offset; /* in blocks of four numbers of each thread */
    unsigned threads;
} ts_cuda_rng;

/* threads: those of the GPU, SMs x the most threads of an SM; at least 256. */
void ts_cuda_rng_seed(ts_cuda_rng *rng, uint64_t seed, unsigned threads);
void ts_cuda_randn(ts_cuda_rng *rng, float *out, size_t n);

/* Philox4x32-10: 128 random bits of a key and a counter. */
void ts_philox4x32(uint64_t key, const uint32_t counter[4], uint32_t ret[4]);

/* Either of them, by the name that a request gives. */
typedef enum ts_rng_kind { TS_RNG_TORCH_CPU, TS_RNG_TORCH_CUDA, TS_RNG_KIND_COUNT } ts_rng_kind;

const char *ts_rng_kind_name(ts_rng_kind kind); /* "torch-cpu", "torch-cuda" */
int ts_rng_kind_find(const char *name);         /* -1: none */

typedef struct ts_rng {
    ts_rng_kind kind;
    union {
        ts_torch_rng cpu;
        ts_cuda_rng cuda; /* of TS_CUDA_RNG_THREADS */
    } of;
} ts_rng;

void ts_rng_seed(ts_rng *rng, ts_rng_kind kind, uint64_t seed);
void ts_rng_randn(ts_rng *rng, float *out, size_t n);

#endif
