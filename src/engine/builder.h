/* The builder: a model is written once, as code that reads like the paper, and becomes a program.
 *
 * Each call records one op and returns the tensor that it makes. Model code never sees patches, memory or
 * peers: the builder holds one rank's share of the rows of every tensor, and puts halo, key/value and
 * statistics exchanges where an op needs what other patches hold. ts_program_compile (engine/program.h) then
 * places the tensors and prepares the kernels.
 *
 * Errors stick: after the first one every call does nothing and returns an empty tensor, and compiling
 * reports it. So model code needs no checks of its own. One builder is used by one thread. */
#ifndef TS_ENGINE_BUILDER_H
#define TS_ENGINE_BUILDER_H

#include "engine/rows.h"
#include "engine/weights.h"
#include "kernels/op.h"

typedef struct ts_builder ts_builder;

/* A tensor [batch][h][w][c] of this rank: h counts its own rows. */
typedef struct ts_buf {
    int id; /* < 0: no tensor */
    int h, w, c;
} ts_buf;

#define TS_NO_BUF ((ts_buf){.id = -1})

/* A place in the model's names: "down_blocks.0.resnets.1". */
typedef struct ts_scope {
    char path[120];
} ts_scope;
ts_scope ts_sub(ts_scope s, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What the program is built for. */
typedef struct ts_build {
    int batch;      /* images side by side; guidance alone makes two */
    ts_dtype dtype; /* of activations */
    ts_rows rows;   /* of the spatial input; rows.n == 1: the whole picture */
    int patch;      /* which of rows.n this rank has */
    bool naive;     /* no exchanges at all */
    bool displaced; /* asynchronous evaluations will be run */
    double partial; /* their window */
    ts_group_norm_mode group_norm;
} ts_build;

/* `weights` must outlive the builder and the program. NULL when memory ran out. */
ts_builder *ts_builder_new(const ts_build *build, ts_weights *weights);
void ts_builder_free(ts_builder *b); /* NULL is fine */
const ts_build *ts_builder_build(const ts_builder *b);

/* Model code's own complaint (a config that contradicts itself). Sticks like every other. */
void ts_builder_fail(ts_builder *b, ts_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Whether a program could be compiled of what was recorded for one image, as far as parameters and shapes go: the first
 * error, or TS_EFORMAT for an op that does not fit. `each` hears of every parameter (a joined one is not taken apart). */
ts_code ts_builder_check(const ts_builder *b, void (*each)(void *arg, const ts_param *p), void *arg, ts_error *e);

/* True when the weights have "<scope>.<name>" (name "" asks for the scope itself). */
bool ts_builder_has(const ts_builder *b, ts_scope s, const char *name);

/* Ops recorded between begin and end run once a job, not in every evaluation; what they make stays. */
void ts_builder_once_begin(ts_builder *b);
void ts_builder_once_end(ts_builder *b);

/* Inputs are filled by the caller before a run, outputs read after it (ts_program_tensor). A picture input has
 * the build's rows and the given width; a plain one has h * w tokens that no patch divides. `name` is a
 * literal. dtype TS_F32 also stands for 32-bit integers. */
ts_buf ts_input_picture(ts_builder *b, const char *name, int w, int c, ts_dtype dtype);
ts_buf ts_input(ts_builder *b, const char *name, int w, int c, ts_dtype dtype);
void ts_output(ts_builder *b, const char *name, ts_buf x);

/* weight and bias below are "<scope>.weight" and "<scope>.bias". */

enum { TS_CONV_FRESH = 1, TS_CONV_F32_OUT = 2 }; /* flags: halo of this evaluation always; result in float32 */
ts_buf ts_conv3x3(ts_builder *b, ts_scope s, ts_buf x, int channels, ts_buf residual, int flags);
ts_buf ts_conv3x3_down(ts_builder *b, ts_scope s, ts_buf x, int channels); /* stride 2, padding 1 */
/* stride 2, padding below and to the right only; x has an even number of rows and columns */
ts_buf ts_conv3x3_down_end(ts_builder *b, ts_scope s, ts_buf x, int channels);
ts_buf ts_linear(ts_builder *b, ts_scope s, ts_buf x, int channels, ts_buf residual);
ts_buf ts_linear_unbiased(ts_builder *b, ts_scope s, ts_buf x, int channels, ts_buf residual);

/* add: TS_NO_BUF, or [batch][1][1][c], a value for every channel of x that is added first. */
ts_buf ts_group_norm(ts_builder *b, ts_scope s, ts_buf x, ts_buf add, int groups, double eps, ts_act act);
ts_buf ts_layer_norm(ts_builder *b, ts_scope s, ts_buf x, double eps);

/* Attention with its projections "<scope>.<names.q>" and so on, all of which have a bias or none has; the output
 * projection is the model's own.
 * self: keys of the whole picture or of the window. cross: keys of `context`, projected once a job. causal:
 * token i sees tokens 0..i of the same x, which no patch divides. */
typedef struct ts_qkv {
    const char *q, *k, *v;
    bool biased;
} ts_qkv;
ts_buf ts_self_attention(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, int heads);
ts_buf ts_cross_attention(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, ts_buf context, int heads);
ts_buf ts_causal_attention(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, int heads);

ts_buf ts_activation(ts_builder *b, ts_scope s, ts_buf x, ts_act act);
ts_buf ts_geglu(ts_builder *b, ts_scope s, ts_buf x);
ts_buf ts_add(ts_builder *b, ts_scope s, ts_buf x, ts_buf y);
ts_buf ts_concat(ts_builder *b, ts_scope s, ts_buf x, ts_buf y);
ts_buf ts_upsample(ts_builder *b, ts_scope s, ts_buf x, int height, int w); /* to height rows of the picture */
ts_buf ts_cast(ts_builder *b, ts_scope s, ts_buf x, ts_dtype dtype, float factor);
ts_buf ts_time_embed(ts_builder *b, ts_scope s, ts_buf scalars, int dim, bool flip_sin_to_cos, double shift);
/* A vector of the table "<tokens>.weight", which has `vocabulary` rows, for each id below that, or that of `own` where the id
 * is negative. */
ts_buf ts_embed(ts_builder *b, ts_scope tokens, ts_scope positions, int vocabulary, ts_buf ids, ts_buf own);

int ts_buf_height(const ts_builder *b, ts_buf x); /* rows of the whole picture at x's level */

#endif
