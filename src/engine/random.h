/* Starting noise: PyTorch's CPU generator, so that a picture can be made again from diffusers.
 *
 * The same numbers as torch.Generator("cpu").manual_seed(seed) and float32 torch.randn(n, generator=g), draw
 * after draw, within 1e-6 (torch's own vector code is not bit-stable between processors). A generator belongs
 * to one thread at a time. */
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

/* Only the low 32 bits of the seed count, as in PyTorch. */
void ts_torch_rng_seed(ts_torch_rng *rng, uint64_t seed);

/* n unit-normal values, in the order of the tensor's elements. */
void ts_torch_randn(ts_torch_rng *rng, float *out, size_t n);

#endif
