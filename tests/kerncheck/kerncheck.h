/* kerncheck: every implementation of every op against the plain-C reference, and a bench of them. */
#ifndef TS_KERNCHECK_H
#define TS_KERNCHECK_H

#include "kernels/cpu/cpu.h"

#define MAX_SEGMENTS 5

/* One op with everything that it needs, made from a seed. */
typedef struct kc_tensor {
    ts_view view;
    char *memory; /* guard, tensor, guard */
    size_t bytes; /* of all three */
} kc_tensor;

typedef struct kc_case {
    ts_op op;
    kc_tensor in[3], out, keys[MAX_SEGMENTS], values[MAX_SEGMENTS];
    ts_segment segments[MAX_SEGMENTS];
    int segment_count;
    ts_param weight, bias;
    void *weight_data, *bias_data;
    int alias; /* -1: the output is apart; else the input that it lies in */
    double tolerance;
    char text[256]; /* what it is, for people */
} kc_case;

#define KC_GUARD 256u

/* Aborts when memory runs out: a test program. */
void kc_case_make(kc_case *c, ts_op_kind kind, uint64_t seed);
void kc_case_free(kc_case *c);

static inline void *kc_at(const kc_tensor *t) {
    return t->memory ? t->memory + KC_GUARD : NULL;
}

/* A tensor of random values of the given magnitude; what is between its pixels and images is NaN. */
kc_tensor kc_tensor_make(ts_view view, float magnitude);

/* The table for AMX where only AMX is missing, whose instructions are emulated from then on; else NULL. */
const ts_vec *kc_emulated_amx(void);

int kc_bench(const char *only, int threads);

/* Whether each of the bench's ops gets a fast kernel: counts them. A failure is printed. */
void kc_check_choice(const char *only, ts_device *device, int *passed, int *failed);

#endif
