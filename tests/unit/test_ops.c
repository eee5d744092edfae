/* The reference ops against their definitions, written down a second time in double, and against PyTorch's
 * values; the rules of ts_op_check; the store. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/alloc.h"
#include "kernels/backend.h"

#define N_MAX 40000

static uint64_t state = 1;
static float uniform(void) { /* [-1, 1), xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (float)((state * 2685821657736338717u) >> 40) * 0x1p-23f - 1;
}
static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = uniform();
}

static void run_op(const ts_op *op, ts_args args) {
    ts_device *device = NULL;
    ts_store *store = NULL;
    ts_kernel *kernel = NULL;
    ts_error e = {0};
    assert_int_equal(ts_backend_ref.open(0, 1, &device, &e), TS_OK);
    assert_int_equal(ts_store_new(&store), TS_OK);
    if (ts_backend_ref.prepare(device, store, op, &kernel, &e)) fail_msg("%s", e.message);
    args.scratch = ts_alloc_aligned(kernel->scratch);
    assert_int_equal(kernel->run(kernel, &args), TS_OK);
    free(args.scratch);
    ts_kernel_free(kernel);
    ts_store_free(store);
    ts_backend_ref.close(device);
}

static void assert_close(const double *want, const float *got, size_t n, double tolerance) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        error += (want[i] - (double)got[i]) * (want[i] - (double)got[i]);
        norm += want[i] * want[i];
    }
    if (!(sqrt(error) <= tolerance * sqrt(norm))) fail_msg("relative L2 %g", sqrt(error / norm));
}

static float in_a[N_MAX], in_b[N_MAX], in_c[N_MAX], out_a[N_MAX], out_b[N_MAX];
static double want[N_MAX];

static ts_param param(const float *data, int rank, int a, int b, int k) {
    return (ts_param){.name = "p", .rank = rank, .shape = {a, b, k, k}, .dtype = TS_F32, .data = data};
}

/* ------------------------------------------------------------------------------------------- convolution */

static void conv_case(int k, int stride, int left, int right, int w, int cin, int cout, bool residual) {
    int b = 2, oh = 3, h = (oh - 1) * stride + k, ow = (w + left + right - k) / stride + 1;
    ts_view x = ts_view_dense(b, h, w, cin, TS_F32), y = ts_view_dense(b, oh, ow, cout, TS_F32);
    x.pitch += 5;
    fill(in_a, 2 * x.pitch);
    fill(in_b, (size_t)(cout * cin * k * k + cout));
    fill(in_c, 2 * y.pitch);
    ts_param weight = param(in_b, 4, cout, cin, k), bias = param(in_b + cout * cin * k * k, 1, cout, 0, 0);
    ts_op op = {.kind = TS_OP_CONV2D,
                .name = "c",
                .in = {x},
                .out = y,
                .weight = &weight,
                .bias = &bias,
                .conv = {k, stride, left, right}};
    if (residual) op.in[1] = y;
    run_op(&op, (ts_args){.in = {in_a, in_c}, .out = out_a});
    size_t n = 0;
    for (int i = 0; i < b; i++)
        for (int oy = 0; oy < oh; oy++)
            for (int ox = 0; ox < ow; ox++)
                for (int co = 0; co < cout; co++, n++) {
                    want[n] = (double)in_b[cout * cin * k * k + co] + (residual ? (double)in_c[n] : 0);
                    for (int ky = 0; ky < k; ky++)
                        for (int kx = 0; kx < k; kx++) {
                            int ix = ox * stride + kx - left, iy = oy * stride + ky;
                            if (ix < 0 || ix >= w) continue;
                            for (int ci = 0; ci < cin; ci++)
                                want[n] +=
                                    (double)in_a[(size_t)i * x.pitch + (size_t)((iy * w + ix) * cin + ci)] *
                                    (double)in_b[((co * cin + ci) * k + ky) * k + kx];
                        }
                }
    assert_close(want, out_a, n, 1e-6);
}

static void conv2d_is_its_definition(void **unused) {
    (void)unused;
    conv_case(3, 1, 1, 1, 7, 5, 9, false);
    conv_case(3, 1, 1, 1, 1, 3, 4, true);
    conv_case(3, 2, 1, 1, 9, 4, 17, true);
    conv_case(3, 2, 0, 1, 8, 8, 3, false);
    conv_case(1, 1, 0, 0, 33, 130, 10, true);
    conv_case(1, 2, 0, 0, 5, 2, 2, false);
}

static void linear_is_its_definition_and_ignores_gaps(void **unused) {
    (void)unused;
    ts_view x = {1, 5, 4, 19, 23, 5 * 4 * 23, TS_F32}, y = {1, 5, 4, 6, 11, 5 * 4 * 11, TS_F32};
    fill(in_a, x.pitch);
    fill(in_b, 6 * 19);
    for (size_t i = 0; i < y.pitch; i++) out_a[i] = 77;
    ts_param weight = param(in_b, 2, 6, 19, 0);
    ts_op op = {.kind = TS_OP_LINEAR, .in = {x}, .out = y, .weight = &weight};
    run_op(&op, (ts_args){.in = {in_a}, .out = out_a});
    for (size_t t = 0; t < 20; t++)
        for (size_t co = 0; co < 11; co++) {
            double s = 0;
            if (co >= 6) {
                assert_true(out_a[t * 11 + co] == 77);
                continue;
            }
            for (size_t ci = 0; ci < 19; ci++) s += (double)in_a[t * 23 + ci] * (double)in_b[co * 19 + ci];
            assert_true(fabs(s - (double)out_a[t * 11 + co]) < 1e-5);
        }
}

static void bf16_is_rounded_once(void **unused) {
    (void)unused;
    enum { C = 300 };
    static uint16_t x[C], y[2];
    float exact[2] = {0, 0};
    fill(in_b, 2 * C);
    for (int i = 0; i < C; i++) {
        x[i] = ts_f32_to_bf16(uniform());
        for (int j = 0; j < 2; j++) exact[j] += ts_bf16_to_f32(x[i]) * in_b[j * C + i];
    }
    ts_param weight = param(in_b, 2, 2, C, 0);
    ts_op op = {.kind = TS_OP_LINEAR,
                .in = {ts_view_dense(1, 1, 1, C, TS_BF16)},
                .out = ts_view_dense(1, 1, 1, 2, TS_BF16),
                .weight = &weight};
    run_op(&op, (ts_args){.in = {x}, .out = y});
    for (int j = 0; j < 2; j++)
        assert_true(fabsf(ts_bf16_to_f32(y[j]) - exact[j]) <= fabsf(exact[j]) * 0x1.02p-9f);
    op.out.dtype = TS_F32;
    run_op(&op, (ts_args){.in = {x}, .out = out_a});
    for (int j = 0; j < 2; j++) assert_true(fabsf(out_a[j] - exact[j]) < 1e-4f);
}

/* ---------------------------------------------------------------------------------------------- attention */

static void attention_over_segments_is_the_softmax_over_all_keys(void **unused) {
    (void)unused;
    enum { B = 2, T = 6, H = 3, D = 5, C = H * D, KEYS = 21 };
    fill(in_a, B * T * C);
    fill(in_b, B * KEYS * C);
    fill(in_c, B * KEYS * C);
    ts_view x = ts_view_dense(B, 2, 3, C, TS_F32);
    ts_op op = {.kind = TS_OP_ATTENTION, .in = {x}, .out = x, .scale = 0.7f, .attention = {H, false, KEYS}};
    ts_segment one = {in_b, in_c, KEYS, C, KEYS * C};
    ts_segment many[] = {{in_b, in_c, 4, C, KEYS * C},
                         {in_b + 4 * C, in_c + 4 * C, 0, C, KEYS * C},
                         {in_b + 4 * C, in_c + 4 * C, 16, C, KEYS * C},
                         {in_b + 20 * C, in_c + 20 * C, 1, C, KEYS * C}};
    for (int causal = 0; causal < 2; causal++) {
        op.attention.causal = causal;
        run_op(&op, (ts_args){.in = {in_a}, .out = out_a, .segments = &one, .segment_count = 1});
        if (!causal) {
            run_op(&op, (ts_args){.in = {in_a}, .out = out_b, .segments = many, .segment_count = 4});
            assert_memory_equal(out_a, out_b, B * T * C * sizeof(float));
        }
        for (int b = 0; b < B; b++)
            for (int t = 0; t < T; t++)
                for (int h = 0; h < H; h++) {
                    double sum = 0, *o = want + (b * T + t) * C + h * D;
                    memset(o, 0, D * sizeof *o);
                    for (int j = 0; j < (causal ? t + 1 : KEYS); j++) {
                        double s = 0;
                        for (int i = 0; i < D; i++)
                            s += (double)in_a[(b * T + t) * C + h * D + i] *
                                 (double)in_b[(b * KEYS + j) * C + h * D + i];
                        double p = exp(s * 0.7);
                        sum += p;
                        for (int i = 0; i < D; i++) o[i] += p * (double)in_c[(b * KEYS + j) * C + h * D + i];
                    }
                    for (int i = 0; i < D; i++) o[i] /= sum;
                }
        assert_close(want, out_a, B * T * C, 1e-6);
    }
}

static void attention_survives_large_scores_and_no_keys(void **unused) {
    (void)unused;
    ts_view x = ts_view_dense(1, 1, 1, 2, TS_F32);
    float q[2] = {1e4f, 0}, k[4] = {1, 0, -1, 0}, v[4] = {3, 4, 5, 6}, y[2];
    ts_op op = {.kind = TS_OP_ATTENTION, .in = {x}, .out = x, .scale = 1, .attention = {1, false, 2}};
    ts_segment s = {k, v, 2, 2, 4};
    run_op(&op, (ts_args){.in = {q}, .out = y, .segments = &s, .segment_count = 1});
    assert_true(y[0] == 3 && y[1] == 4);
    s.tokens = 0;
    run_op(&op, (ts_args){.in = {q}, .out = y, .segments = &s, .segment_count = 1});
    assert_true(y[0] == 0 && y[1] == 0);
}

/* -------------------------------------------------------------------------------------------------- norms */

static void group_norm_is_its_definition(void **unused) {
    (void)unused;
    enum { B = 2, T = 12, C = 8, G = 2, W = C / G };
    double stats[B * G * 2];
    ts_view x = ts_view_dense(B, 4, 3, C, TS_F32), r = ts_view_dense(B, 1, 1, C, TS_F32);
    fill(in_a, B * T * C);
    fill(in_b, B * C);
    fill(in_c, 2 * C);
    for (int i = 0; i < B * T * C; i++) in_a[i] += 3;
    ts_param weight = param(in_c, 1, C, 0, 0), bias = param(in_c + C, 1, C, 0, 0);
    ts_op op = {.kind = TS_OP_GROUP_STATS, .in = {x, r}, .out = {.c = 1}, .norm = {G, 1e-5f}};
    run_op(&op, (ts_args){.in = {in_a, in_b}, .out = stats});
    for (int i = 0; i < B * G; i++) {
        double mean = stats[2 * i] / (T * W);
        stats[2 * i + 1] = stats[2 * i + 1] / (T * W) - mean * mean;
        stats[2 * i] = mean;
    }
    op = (ts_op){.kind = TS_OP_GROUP_NORM,
                 .in = {x, r, {.c = 1}},
                 .out = x,
                 .weight = &weight,
                 .bias = &bias,
                 .norm = {G, 1e-5f},
                 .act = TS_ACT_SILU};
    run_op(&op, (ts_args){.in = {in_a, in_b, stats}, .out = out_a});
    for (int b = 0; b < B; b++)
        for (int g = 0; g < G; g++) {
            double mean = 0, var = 0;
            for (int t = 0; t < T; t++)
                for (int i = g * W; i < g * W + W; i++)
                    mean += ((double)in_a[(b * T + t) * C + i] + (double)in_b[b * C + i]) / (T * W);
            for (int t = 0; t < T; t++)
                for (int i = g * W; i < g * W + W; i++)
                    var +=
                        pow((double)in_a[(b * T + t) * C + i] + (double)in_b[b * C + i] - mean, 2) / (T * W);
            for (int t = 0; t < T; t++)
                for (int i = g * W; i < g * W + W; i++) {
                    double v = (double)in_a[(b * T + t) * C + i] + (double)in_b[b * C + i] - mean;
                    v = v / sqrt(var + 1e-5) * (double)in_c[i] + (double)in_c[C + i];
                    want[(b * T + t) * C + i] = v / (1 + exp(-v));
                }
        }
    assert_close(want, out_a, B * T * C, 1e-6);
}

static void layer_norm_has_mean_zero_and_variance_one(void **unused) {
    (void)unused;
    enum { C = 37 };
    ts_view x = ts_view_dense(1, 1, 1, C, TS_F32);
    fill(in_a, C);
    for (int i = 0; i < C; i++) in_a[i] += 100;
    ts_op op = {.kind = TS_OP_LAYER_NORM, .in = {x}, .out = x};
    run_op(&op, (ts_args){.in = {in_a}, .out = out_a});
    double sum = 0, square = 0;
    for (int i = 0; i < C; i++) sum += (double)out_a[i], square += (double)out_a[i] * (double)out_a[i];
    assert_true(fabs(sum) < 1e-5 && fabs(square / C - 1) < 1e-5);
}

/* ------------------------------------------------------------------------------------------------- others */

/* torch.nn.functional.gelu, silu and x * sigmoid(1.702 x) in float64; the far tail amplifies rounding. */
static void activations_are_pytorchs(void **unused) {
    (void)unused;
    static const float x[] = {-10, -3, -1, 0.5f, 1, 4};
    static const double values[][6] = {
        [TS_ACT_NONE] = {-10, -3, -1, 0.5, 1, 4},
        [TS_ACT_SILU] = {-0.000453978687024, -0.142277619533, -0.26894142137, 0.311229665601, 0.73105857863,
                         3.92805516015},
        [TS_ACT_GELU] = {-7.61985302416e-23, -0.00404969409489, -0.158655253931, 0.345731230637,
                         0.841344746069, 3.99987331503},
        [TS_ACT_QUICK_GELU] = {-4.05796129486e-07, -0.0180713097078, -0.154204234067, 0.350388436606,
                               0.845795765933, 3.99558527586},
    };
    ts_view v = ts_view_dense(1, 1, 1, 6, TS_F32);
    for (int act = TS_ACT_NONE; act <= TS_ACT_QUICK_GELU; act++) {
        ts_op op = {.kind = TS_OP_ACTIVATION, .in = {v}, .out = v, .act = (ts_act)act};
        run_op(&op, (ts_args){.in = {x}, .out = out_a});
        for (int i = 0; i < 6; i++)
            if (!(fabs((double)out_a[i] - values[act][i]) <= 1e-5 * fabs(values[act][i])))
                fail_msg("act %d of %g: %g", act, (double)x[i], (double)out_a[i]);
    }
}

static void geglu_gates_the_first_half_by_the_second(void **unused) {
    (void)unused;
    const float x[] = {2, -3, 1, 4};
    ts_op op = {.kind = TS_OP_GEGLU,
                .in = {ts_view_dense(1, 1, 1, 4, TS_F32)},
                .out = ts_view_dense(1, 1, 1, 2, TS_F32)};
    run_op(&op, (ts_args){.in = {x}, .out = out_a});
    assert_true(fabsf(out_a[0] - 2 * 0.841344746f) < 1e-6f);
    assert_true(fabsf(out_a[1] + 3 * 3.999873287f) < 1e-5f);
}

/* diffusers' get_timestep_embedding of 999 and 0.5. */
static void time_embeddings_are_diffusers(void **unused) {
    (void)unused;
    static const float t[] = {999, 0.5f};
    static const float flipped[] = {0.999649823f,   0.807455063f,  -0.844469786f,  0.541143537f,
                                    -0.0264607519f, -0.589929104f, -0.535603166f,  0.840930223f,
                                    0.87758255f,    0.998750269f,  0.999987483f,   0.999999881f,
                                    0.47942555f,    0.0499791652f, 0.00499997893f, 0.000499999966f};
    static const float plain[] = {
        -0.0264607519f, -0.535603166f,  0.0997339115f,   0.999649823f, -0.844469786f, 0.995014131f, 0.0f,
        0.47942555f,    0.00499997893f, 4.99999951e-05f, 0.87758255f,  0.999987483f,  1.0f,         0.0f};
    ts_op op = {.kind = TS_OP_TIME_EMBED,
                .in = {ts_view_dense(2, 1, 1, 1, TS_F32)},
                .out = ts_view_dense(2, 1, 1, 8, TS_F32),
                .time = {8, true, 0, 10000}};
    run_op(&op, (ts_args){.in = {t}, .out = out_a});
    for (int i = 0; i < 16; i++) assert_true(fabsf(out_a[i] - flipped[i]) < 2e-6f);
    op.out = ts_view_dense(1, 1, 1, 14, TS_F32);
    op.in[0] = ts_view_dense(1, 1, 1, 2, TS_F32);
    op.time.dim = 7, op.time.flip_sin_to_cos = false, op.time.downscale_freq_shift = 1;
    run_op(&op, (ts_args){.in = {t}, .out = out_a});
    for (int i = 0; i < 14; i++) assert_true(fabsf(out_a[i] - plain[i]) < 2e-6f);
}

static void upsampled_patches_are_the_upsampled_picture(void **unused) {
    (void)unused;
    /* The middle patch of a picture of 3 columns: rows 4..6, halo rows 3 and 7, of two channels. */
    float x[5 * 3 * 2];
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 6; j++) x[i * 6 + j] = (float)(100 * (3 + i) + j);
    for (int cut = 0; cut < 2; cut++) {
        int rows = 6 - cut, w = 6 - cut;
        ts_op op = {.kind = TS_OP_UPSAMPLE,
                    .in = {ts_view_dense(1, 5, 3, 2, TS_F32)},
                    .out = ts_view_dense(1, rows + 2, w, 2, TS_F32)};
        run_op(&op, (ts_args){.in = {x}, .out = out_a});
        for (int i = 0; i < rows + 2; i++)
            for (int j = 0; j < w; j++)
                for (int c = 0; c < 2; c++) {
                    int row = 8 + i - 1; /* of the large picture */
                    float expected = (float)(100 * (row / 2) + j / 2 * 2 + c);
                    if (cut && i == rows + 1) expected = (float)(700 + j / 2 * 2 + c); /* the halo as it is */
                    assert_true(out_a[(i * w + j) * 2 + c] == expected);
                }
    }
}

static void moves_and_embeddings(void **unused) {
    (void)unused;
    const float x[] = {1, 2, 3, 4}, r[] = {5, 6};
    const int32_t ids[] = {2, 0};
    const float table[] = {1, 2, 3, 4, 5, 6}, positions[] = {10, 20, 30, 40};
    ts_op op = {.kind = TS_OP_CONCAT,
                .in = {ts_view_dense(1, 2, 1, 2, TS_F32), ts_view_dense(1, 2, 1, 1, TS_F32)},
                .out = ts_view_dense(1, 2, 1, 3, TS_F32)};
    run_op(&op, (ts_args){.in = {x, r}, .out = out_a});
    assert_memory_equal(out_a, ((float[]){1, 2, 5, 3, 4, 6}), 6 * sizeof(float));

    ts_param weight = param(table, 2, 3, 2, 0), bias = param(positions, 2, 2, 2, 0);
    op = (ts_op){.kind = TS_OP_EMBED,
                 .in = {ts_view_dense(1, 2, 1, 1, TS_F32)},
                 .out = ts_view_dense(1, 2, 1, 2, TS_F32),
                 .weight = &weight,
                 .bias = &bias};
    run_op(&op, (ts_args){.in = {ids}, .out = out_a});
    assert_memory_equal(out_a, ((float[]){15, 26, 31, 42}), 4 * sizeof(float));

    const int32_t own[] = {1, -1};
    const float vectors[] = {7, 7, 100, 200};
    op.in[1] = ts_view_dense(1, 2, 1, 2, TS_F32);
    run_op(&op, (ts_args){.in = {own, vectors}, .out = out_a});
    assert_memory_equal(out_a, ((float[]){13, 24, 130, 240}), 4 * sizeof(float));

    op = (ts_op){.kind = TS_OP_COPY,
                 .in = {ts_view_dense(1, 2, 1, 2, TS_F32)},
                 .out = ts_view_dense(1, 2, 1, 2, TS_BF16),
                 .scale = 0.5f};
    uint16_t half[4];
    run_op(&op, (ts_args){.in = {x}, .out = half});
    for (int i = 0; i < 4; i++) assert_true(ts_bf16_to_f32(half[i]) == x[i] / 2);

    op = (ts_op){.kind = TS_OP_ADD,
                 .in = {ts_view_dense(1, 2, 1, 2, TS_F32), ts_view_dense(1, 2, 1, 2, TS_F32)},
                 .out = ts_view_dense(1, 2, 1, 2, TS_F32)};
    run_op(&op, (ts_args){.in = {x, x}, .out = out_a});
    assert_memory_equal(out_a, ((float[]){2, 4, 6, 8}), 4 * sizeof(float));
}

/* -------------------------------------------------------------------------------------------------- rules */

static void wrong_ops_are_refused(void **unused) {
    (void)unused;
    ts_param weight = param(in_a, 4, 8, 4, 3), bias = param(in_a, 1, 8, 0, 0);
    const ts_op good = {.kind = TS_OP_CONV2D,
                        .name = "down.conv",
                        .in = {ts_view_dense(1, 6, 4, 4, TS_F32)},
                        .out = ts_view_dense(1, 4, 4, 8, TS_F32),
                        .weight = &weight,
                        .bias = &bias,
                        .conv = {3, 1, 1, 1}};
    ts_error e = {0};
    assert_int_equal(ts_op_check(&good, &e), TS_OK);
    assert_true(ts_op_flops(&good, 0) == 2.0 * 4 * 4 * 8 * 4 * 9);
    assert_true(ts_op_bytes(&good, 0) == 4.0 * (6 * 4 * 4 + 4 * 4 * 8 + 8 * 4 * 9 + 8));
    for (int i = 0; i < 11; i++) {
        ts_op op = good;
        ts_param odd = weight;
        switch (i) {
        case 0: op.in[0].h = 5; break;
        case 1: op.out.w = 5; break;
        case 2: op.conv.kernel = 5; break;
        case 3: op.conv.stride = 3; break;
        case 4: odd.shape[1] = 5, op.weight = &odd; break;
        case 5: op.weight = NULL; break;
        case 6: op.in[0].ld = 3; break;
        case 7: op.in[0].b = op.out.b = 2, op.in[0].pitch = 5; break;
        case 8: op.in[1] = ts_view_dense(1, 4, 4, 7, TS_F32); break;
        case 9: op.out.dtype = TS_BF16; break;
        default: op.out.c = 1 << 30; break;
        }
        memset(&e, 0, sizeof e);
        if (ts_op_check(&op, &e) != TS_EINVAL) fail_msg("case %d passed", i);
        assert_string_equal(e.param, "down.conv");
    }
}

static int made;
static ts_code make(void *memory, void *arg, ts_error *e) {
    made++;
    if (*(const int *)arg < 0) return ts_fail(e, TS_EFORMAT, "no");
    memset(memory, *(const int *)arg, 8);
    return TS_OK;
}

static void the_store_makes_each_layout_once(void **unused) {
    (void)unused;
    ts_store *store = NULL;
    const void *a = NULL, *b = NULL, *c = NULL;
    int value = 7, failing = -1;
    assert_int_equal(ts_store_new(&store), TS_OK);
    made = 0;
    assert_int_equal(ts_store_get(store, (ts_store_key){&made, "x", 1}, 8, make, &failing, &a, NULL),
                     TS_EFORMAT);
    assert_null(a);
    assert_int_equal(ts_store_bytes(store, NULL, NULL), 0);
    assert_int_equal(ts_store_get(store, (ts_store_key){&made, "x", 1}, 8, make, &value, &a, NULL), TS_OK);
    assert_int_equal(ts_store_get(store, (ts_store_key){&made, "x", 1}, 8, make, &value, &b, NULL), TS_OK);
    assert_int_equal(ts_store_get(store, (ts_store_key){&made, "y", 1}, 8, make, &value, &c, NULL), TS_OK);
    assert_ptr_equal(a, b);
    assert_ptr_not_equal(a, c);
    assert_int_equal(made, 3);
    assert_int_equal(ts_store_bytes(store, NULL, NULL), 16);
    assert_int_equal(((const unsigned char *)a)[7], 7);
    ts_store_free(store);
    ts_store_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conv2d_is_its_definition),
        cmocka_unit_test(linear_is_its_definition_and_ignores_gaps),
        cmocka_unit_test(bf16_is_rounded_once),
        cmocka_unit_test(attention_over_segments_is_the_softmax_over_all_keys),
        cmocka_unit_test(attention_survives_large_scores_and_no_keys),
        cmocka_unit_test(group_norm_is_its_definition),
        cmocka_unit_test(layer_norm_has_mean_zero_and_variance_one),
        cmocka_unit_test(activations_are_pytorchs),
        cmocka_unit_test(geglu_gates_the_first_half_by_the_second),
        cmocka_unit_test(time_embeddings_are_diffusers),
        cmocka_unit_test(upsampled_patches_are_the_upsampled_picture),
        cmocka_unit_test(moves_and_embeddings),
        cmocka_unit_test(wrong_ops_are_refused),
        cmocka_unit_test(the_store_makes_each_layout_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
