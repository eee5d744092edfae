/* Times the ops of Stable Diffusion 1.5 at 512x512 with guidance (a batch of two) and of the demo model. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../amx/emulate.h"
#include "base/alloc.h"
#include "kerncheck.h"

typedef struct shape {
    ts_op_kind kind;
    int b, h, w, cin, cout, k, keys; /* k: kernel, or heads; keys 0: as many as tokens */
    bool winograd;                   /* in float32, with AVX-512 */
} shape;

static const shape shapes[] = {
    {TS_OP_CONV2D, 2, 64, 64, 4, 320, 3, 0},
    {TS_OP_CONV2D, 2, 64, 64, 320, 320, 3, 0, true},
    {TS_OP_CONV2D, 2, 64, 64, 640, 320, 3, 0, true},
    {TS_OP_CONV2D, 2, 32, 32, 640, 640, 3, 0, true},
    {TS_OP_CONV2D, 2, 16, 16, 1280, 1280, 3, 0},
    {TS_OP_CONV2D, 2, 8, 8, 2560, 1280, 3, 0},
    {TS_OP_CONV2D, 2, 32, 32, 64, 64, 3, 0, true},
    {TS_OP_CONV2D, 2, 8, 8, 256, 256, 3, 0},
    {TS_OP_CONV2D, 1, 256, 256, 128, 128, 3, 0, true},
    {TS_OP_LINEAR, 2, 64, 64, 320, 320, 1, 0},
    {TS_OP_LINEAR, 2, 64, 64, 320, 2560, 1, 0},
    {TS_OP_LINEAR, 2, 32, 32, 640, 5120, 1, 0},
    {TS_OP_LINEAR, 2, 16, 16, 1280, 1280, 1, 0},
    {TS_OP_LINEAR, 2, 1, 1, 1280, 1280, 1, 0},
    {TS_OP_ATTENTION, 2, 64, 64, 320, 320, 8, 0},
    {TS_OP_ATTENTION, 2, 32, 32, 640, 640, 8, 0},
    {TS_OP_ATTENTION, 2, 16, 16, 1280, 1280, 8, 0},
    {TS_OP_ATTENTION, 2, 64, 64, 320, 320, 8, 77},
    {TS_OP_ATTENTION, 2, 16, 16, 256, 256, 4, 0},
    {TS_OP_ATTENTION, 1, 64, 64, 512, 512, 1, 0},
    {TS_OP_GROUP_STATS, 2, 64, 64, 320, 320, 32, 0},
    {TS_OP_GROUP_NORM, 2, 64, 64, 320, 320, 32, 0},
    {TS_OP_GROUP_NORM, 1, 512, 512, 128, 128, 32, 0},
    {TS_OP_LAYER_NORM, 2, 64, 64, 320, 320, 1, 0},
    {TS_OP_GEGLU, 2, 64, 64, 2560, 1280, 1, 0},
    {TS_OP_ACTIVATION, 2, 64, 64, 320, 320, 1, 0},
    {TS_OP_ADD, 2, 64, 64, 320, 320, 1, 0},
    {TS_OP_CONCAT, 2, 64, 64, 320, 640, 1, 0},
    {TS_OP_UPSAMPLE, 2, 32, 32, 640, 640, 1, 0},
    {TS_OP_COPY, 2, 64, 64, 320, 320, 1, 0},
};

static ts_param zeros(const char *name, int rank, int a, int b, int k, void **data) {
    ts_param p = {.name = name, .rank = rank, .shape = {a, b, k, k}, .dtype = TS_F32};
    size_t n = (size_t)a * (size_t)(b ? b : 1) * (size_t)(k ? k * k : 1);
    if (!(p.data = *data = calloc(n, sizeof(float)))) abort();
    return p;
}

static ts_op op_of(const shape *s, ts_dtype t, ts_param *weight, ts_param *bias, void *data[2]) {
    int h = s->h, w = s->w;
    ts_op op = {.kind = s->kind,
                .name = "bench",
                .in = {ts_view_dense(s->b, h, w, s->cin, t)},
                .out = ts_view_dense(s->b, h, w, s->cout, t),
                .scale = 0.125f,
                .act = TS_ACT_SILU};
    switch (s->kind) {
    case TS_OP_CONV2D:
        op.in[0] = ts_view_dense(s->b, h + 2, w, s->cin, t);
        *weight = zeros("weight", 4, s->cout, s->cin, 3, &data[0]);
        op.conv.kernel = 3, op.conv.stride = op.conv.pad_left = op.conv.pad_right = 1;
        break;
    case TS_OP_LINEAR: *weight = zeros("weight", 2, s->cout, s->cin, 0, &data[0]); break;
    case TS_OP_GROUP_STATS:
        op.norm.groups = s->k, op.out = ts_view_dense(s->b, 1, 1, 4 * s->k, TS_F32);
        return op;
    case TS_OP_GROUP_NORM:
        op.norm.groups = s->k, op.in[2] = ts_view_dense(s->b, 1, 1, 4 * s->k, TS_F32);
        /* fall through */
    case TS_OP_LAYER_NORM:
        op.norm.eps = 1e-5f;
        *weight = zeros("weight", 1, s->cout, 0, 0, &data[0]);
        break;
    case TS_OP_ATTENTION:
        op.attention.heads = s->k, op.attention.max_tokens = s->keys ? s->keys : h * w;
        return op;
    case TS_OP_ADD: op.in[1] = op.in[0]; return op;
    case TS_OP_CONCAT: op.in[1] = op.in[0]; return op;
    case TS_OP_UPSAMPLE:
        op.in[0].h = h + 2, op.in[0].pitch = (size_t)(h + 2) * (size_t)w * op.in[0].ld;
        op.out = ts_view_dense(s->b, 2 * h + 2, 2 * w, s->cout, t);
        return op;
    default: return op;
    }
    *bias = zeros("bias", 1, s->cout, 0, 0, &data[1]);
    op.weight = weight, op.bias = bias;
    return op;
}

/* One thread is timed by its own processor time, so that a busy machine does not show. */
static double seconds(int threads) {
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The best of as many runs as fit into a third of a second, three at least. */
static double best_time(const ts_kernel *kernel, const ts_args *args, int threads) {
    double best = 1e9, all = 0;
    for (int i = 0; i < 3 || all < 0.33; i++) {
        double start = seconds(threads);
        if (kernel->run(kernel, args)) abort();
        double t = seconds(threads) - start;
        best = t < best ? t : best;
        all += t;
    }
    return best;
}

/* Where AMX is emulated seconds mean nothing; how many tiles there are, and how full, is as with AMX. */
static void print_tiles(const ts_kernel *kernel, const ts_args *args, double flops) {
    enum { FLOPS = 2 * 16 * 16 * 32 }; /* of a full product */
    const amx_counts before = amx_pretended();
    if (kernel->run(kernel, args)) abort();
    const amx_counts after = amx_pretended();
    const double n = (double)(after.products - before.products);
    printf("%9.0f tile products, %3.0f%% of them needed, %.2f loads and stores each", n,
           n > 0 ? 100 * flops / FLOPS / n : 0, n > 0 ? (double)(after.moves - before.moves) / n : 0);
}

static void bench(const shape *s, ts_dtype t, ts_device *device, ts_store *store) {
    ts_param weight, bias;
    void *data[2] = {0};
    kc_tensor in[3] = {0}, out, k, v;
    ts_op op = op_of(s, t, &weight, &bias, data);
    ts_kernel *kernel = NULL;
    ts_error e;
    if (device->backend->prepare(device, store, &op, &kernel, &e)) {
        printf("%s: %s\n", ts_op_kind_name(s->kind), e.message);
        abort();
    }
    ts_args args = {0};
    for (int i = 0; i < 3; i++) {
        in[i] = kc_tensor_make(op.in[i], 1);
        args.in[i] = kc_at(&in[i]);
    }
    if (op.in[2].c)
        for (int i = 0; i < s->b * s->k * 2; i++) ((double *)kc_at(&in[2]))[i] = 1;
    out = kc_tensor_make(op.out, 1);
    ts_view keys = ts_view_dense(s->b, 1, s->keys ? s->keys : s->h * s->w, s->cout, t);
    k = kc_tensor_make(keys, 1), v = kc_tensor_make(keys, 1);
    ts_segment segment = {kc_at(&k), kc_at(&v), keys.w, keys.ld, keys.pitch};
    args.segments = &segment, args.segment_count = 1;
    args.out = kc_at(&out);
    args.scratch = ts_alloc_aligned(kernel->scratch);
    const double flops = ts_op_flops(&op, 0), bytes = ts_op_bytes(&op, 0);
    const bool product = s->kind == TS_OP_CONV2D || s->kind == TS_OP_LINEAR || s->kind == TS_OP_ATTENTION;
    printf("%-12s %-5s %d x %3d x %3d  %4d -> %4d  %s%-4d ", ts_op_kind_name(s->kind), ts_dtype_name(t), s->b,
           s->h, s->w, s->cin, s->cout, s->keys ? "keys " : "k ", s->keys ? s->keys : s->k);
    if (amx_pretended) {
        print_tiles(kernel, &args, flops);
    } else {
        const double time = best_time(kernel, &args, device->threads);
        printf("%9.3f ms  %7.3f %-7s", time * 1e3, (product ? flops * 1e-12 : bytes * 1e-9) / time,
               product ? "TFLOP/s" : "GB/s");
    }
    printf("  %s\n", kernel->name);
    fflush(stdout);
    for (int i = 0; i < 3; i++) free(in[i].memory);
    free(out.memory), free(k.memory), free(v.memory);
    free(args.scratch);
    ts_kernel_free(kernel);
    /* The store knows parameters by address, and these are about to be others: it goes with them. */
    free(data[0]), free(data[1]);
}

/* Whether the op has the kernel that makes it fast, which no comparison of results would show. */
static bool is_chosen(const shape *s, ts_dtype t, ts_device *device, ts_store *store) {
    ts_param weight, bias;
    void *data[2] = {0};
    const ts_op op = op_of(s, t, &weight, &bias, data);
    ts_kernel *kernel = NULL;
    if (device->backend->prepare(device, store, &op, &kernel, NULL)) abort();
    const char *isa = ts_vec_best()->name;
    /* What oneDNN has no fast bf16 for, on processors without it, is the reference's. */
    const bool product = s->kind == TS_OP_CONV2D || s->kind == TS_OP_LINEAR;
    const bool may_be_slow = product && (!KC_ONEDNN || (t == TS_BF16 && !device->backend->prefers(t)));
    const bool winograd =
        KC_ONEDNN && s->winograd && t == TS_F32 && strcmp(isa, "plain") != 0 && strcmp(isa, "avx2") != 0;
    const bool good =
        winograd ? !strcmp(kernel->name, "winograd") : may_be_slow || strcmp(kernel->name, "ref") != 0;
    if (!good)
        printf("FAIL %s of %s, %d x %d x %d, %d -> %d, is computed by \"%s\"\n", ts_op_kind_name(s->kind),
               ts_dtype_name(t), s->b, s->h, s->w, s->cin, s->cout, kernel->name);
    ts_kernel_free(kernel);
    free(data[0]), free(data[1]);
    return good;
}

/* Every shape in each type. */
static int for_each_shape(void (*visit)(void *arg, const shape *s, ts_dtype t, ts_device *device,
                                        ts_store *store),
                          void *arg, const char *only, ts_device *device) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (only && strcmp(only, ts_op_kind_name(shapes[i].kind))) continue;
        for (int t = TS_F32; t <= TS_BF16; t++) {
            ts_store *store = NULL;
            if (ts_store_new(&store)) return 1;
            visit(arg, &shapes[i], (ts_dtype)t, device, store);
            ts_store_free(store);
        }
    }
    return 0;
}

typedef struct tally {
    int *passed, *failed;
} tally;

static void count_chosen(void *arg, const shape *s, ts_dtype t, ts_device *device, ts_store *store) {
    const tally *to = arg;
    ++*(is_chosen(s, t, device, store) ? to->passed : to->failed);
}

void kc_check_choice(const char *only, ts_device *device, int *passed, int *failed) {
    tally to = {passed, failed};
    if (for_each_shape(count_chosen, &to, only, device)) abort();
}

static void time_shape(void *arg, const shape *s, ts_dtype t, ts_device *device, ts_store *store) {
    (void)arg;
    bench(s, t, device, store);
}

int kc_bench(const char *only, int threads) {
    ts_device *device = NULL;
    if (ts_backend_cpu.open(0, threads, &device, NULL)) return 1;
    device->backend->thread_begin(device);
    printf("cpu backend, %s, %d threads; best run of each, by %s\n", ((ts_cpu_device *)device)->vec->name,
           threads, threads == 1 ? "processor time" : "the clock");
    const int failed = for_each_shape(time_shape, NULL, only, device);
    ts_backend_cpu.close(device);
    return failed;
}
