/* Ops: what a device can be asked to compute, described by shapes and parameters, never by addresses.
 *
 * An op is prepared once by a backend (kernels/backend.h) when a program is compiled, and then run any number
 * of times on the addresses of a ts_args. Layout is NHWC everywhere: a pixel is a token, a patch a contiguous
 * run of rows. All activations of an op share one dtype unless its row below says otherwise; accumulation is
 * float32 at least. */
#ifndef TS_KERNELS_OP_H
#define TS_KERNELS_OP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/error.h"

/* kind, name, what it computes (x = in[0], r = in[1], s = in[2], y = out) */
#define TS_OPS(X)                                                                                            \
    /* y = conv(x) + bias (+ r). weight [cout][cin][k][k]. k is 1 or 3. Vertical padding is already in x as    \
     * rows (x.h = (y.h - 1) * stride + k); horizontal padding is conv.pad_left, conv.pad_right zeros.         \
     * y may be float32 where x is bf16. r has y's shape and dtype; r may be y's own buffer. */                \
    X(CONV2D, "conv2d")                                                                                      \
    /* y[t][:] = x[t][:] weight^T + bias (+ r). weight [cout][cin]. y may be float32 where x is bf16. */       \
    X(LINEAR, "linear")                                                                                      \
    /* y: double [b][groups][2] = sum and sum of squares of x (+ r broadcast: r [b][c], a value for each       \
     * channel) over the rows of this patch. (Wu & He 2018) */                                                 \
    X(GROUP_STATS, "group_stats")                                                                            \
    /* y = (x (+ r broadcast) - mean) / sqrt(var + eps) * weight + bias, then SiLU if act says so.             \
     * s: double [b][groups][2] = mean and biased variance. y may be x. */                                     \
    X(GROUP_NORM, "group_norm")                                                                              \
    /* over c of each token; weight and bias [c] */                                                            \
    X(LAYER_NORM, "layer_norm")                                                                              \
    /* y = softmax(scale * x k^T) v by head, streaming over the segments of the args; never the whole score    \
     * matrix. x is q [b][tokens][heads * d]; d = c / heads. causal: query i sees keys 0..i (one segment). */  \
    X(ATTENTION, "attention")                                                                                \
    /* y = act(x), elementwise; y may be x */                                                                  \
    X(ACTIVATION, "activation")                                                                              \
    /* x has 2 c channels: y = x[:c] * gelu(x[c:]) (Shazeer 2020, exact erf gelu) */                           \
    X(GEGLU, "geglu")                                                                                        \
    /* y = x + r; y may be x or r */                                                                           \
    X(ADD, "add")                                                                                            \
    /* y = channels of x, then channels of r */                                                                \
    X(CONCAT, "concat")                                                                                      \
    /* nearest 2x. x.h = H + 2 and y.h = Ho + 2: both have a halo row above and below, Ho is 2H or 2H - 1;     \
     * y row 0 comes from x row 0, y row 1 + i from x row 1 + i / 2, the last y row from the last x row.       \
     * y.w is 2 x.w or 2 x.w - 1. */                                                                           \
    X(UPSAMPLE, "upsample")                                                                                  \
    /* x: float32 [b][n] scalars (c = n); y [b][n * dim]: sinusoids (Vaswani 2017), time.* says how */         \
    X(TIME_EMBED, "time_embed")                                                                              \
    /* x: int32 ids [b][tokens] (c = 1); y = weight[id] + bias[position]; weight [vocab][c], bias [max][c].    \
     * With r, float32 of y's shape, a negative id is r's vector at its place. The caller has checked every     \
     * id. */                                                                                                  \
    X(EMBED, "embed")                                                                                        \
    /* y = scale * x, with conversion between dtypes */                                                        \
    X(COPY, "copy")

typedef enum ts_op_kind {
#define X(kind, name) TS_OP_##kind,
    TS_OPS(X)
#undef X
        TS_OP_COUNT
} ts_op_kind;

typedef enum ts_act { TS_ACT_NONE, TS_ACT_SILU, TS_ACT_GELU, TS_ACT_QUICK_GELU } ts_act;

/* The shape of a tensor in memory. Rows of an image are contiguous: pixel (y, x) of image i begins at element
 * i * pitch + (y * w + x) * ld. */
typedef struct ts_view {
    int b, h, w, c; /* images, rows, columns, channels; tokens are h * w. c == 0: there is no such tensor */
    size_t ld;      /* elements between neighbouring pixels, >= c */
    size_t pitch;   /* elements between images, >= h * w * ld */
    ts_dtype dtype;
} ts_view;

/* A parameter, row-major in PyTorch's order, of one of three kinds. As it lies in the model file: `data`, host memory,
 * perhaps unaligned (copy or convert, never cast). Two that are computed as one: `parts`, the second one's rows behind the
 * first one's, each of its own dtype (theirs together is the first one's). Computed when a kernel wants it, so that it takes no memory beside what the store makes of it: `make` writes
 * all of it as float32, on any thread. Lives as long as the model; its address is its identity. */
typedef struct ts_param ts_param;
struct ts_param {
    const char *name;
    int rank;
    int64_t shape[4];
    ts_dtype dtype;
    const void *data;
    const ts_param *parts[2];
    ts_code (*make)(const void *source, float *ret, ts_error *e);
    const void *source;
};

typedef struct ts_op {
    ts_op_kind kind;
    const char *name; /* its place in the model ("down_blocks.0.resnets.1.conv1"), for profiles and errors */
    ts_view in[3], out;
    const ts_param *weight, *bias; /* NULL: none */
    ts_act act;                    /* ACTIVATION, GROUP_NORM (NONE or SILU) */
    float scale;                   /* ATTENTION: of the scores; COPY: factor */
    struct { int kernel, stride, pad_left, pad_right; } conv;
    struct { int groups; float eps; } norm; /* groups unused by LAYER_NORM */
    struct { int heads; bool causal; int max_tokens; /* keys in all segments together, at most */ } attention;
    struct { int dim; bool flip_sin_to_cos; float downscale_freq_shift; float max_period; } time;
} ts_op;

/* Keys and values of one run of tokens: image i, token t at k + i * pitch + t * ld (elements). */
typedef struct ts_segment {
    const void *k, *v;
    int tokens;
    size_t ld, pitch;
} ts_segment;

/* Addresses for one run; each is that of the first element of its view, on the op's device. */
typedef struct ts_args {
    const void *in[3];
    void *out;
    const ts_segment *segments; /* ATTENTION */
    int segment_count;
    void *scratch; /* as many bytes as the kernel asked for, TS_ALIGN aligned */
} ts_args;

const char *ts_op_kind_name(ts_op_kind kind);

/* Shapes, dtypes and parameters against the table above. TS_EINVAL names the op and what is wrong. */
ts_code ts_op_check(const ts_op *op, ts_error *e);

/* Multiply-adds count two. Attention counts `keys` tokens (0: attention.max_tokens). */
double ts_op_flops(const ts_op *op, int keys);

/* Bytes read and written once each, parameters included. */
double ts_op_bytes(const ts_op *op, int keys);

static inline size_t ts_view_tokens(const ts_view *v) { return (size_t)v->h * (size_t)v->w; }

/* A dense view. */
static inline ts_view ts_view_dense(int b, int h, int w, int c, ts_dtype dtype) {
    return (ts_view){.b = b, .h = h, .w = w, .c = c, .ld = (size_t)c, .dtype = dtype,
                     .pitch = (size_t)h * (size_t)w * (size_t)c};
}

#endif
