/* 3x3 convolutions in float32 by Winograd's algorithm: F(4x4, 3x3), a quarter of the multiplications.
 *
 * A run of tiles at a time: their inputs are spread over 36 planes [tiles][cin] (cpu/vec_winograd.c), each
 * plane is multiplied by its matrix [cin][cout] of the transformed kernel, and the products are gathered to
 * 4x4 outputs, with bias and residual. What the error grows to is 1.2e-6 (relative L2) where the direct sum's
 * is 2e-7; bf16 has no such room.
 *
 * The choice depends on what patches do not change, the width and the channels. Where a patch begins and ends
 * at a multiple of four rows, each pixel is computed in the same tile as on one device, bit for bit; else
 * within the error. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>
#include "base/alloc.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/param.h"

enum {
    IN = TS_WINOGRAD_IN,
    OUT = TS_WINOGRAD_OUT,
    PLANES = TS_WINOGRAD_PLANES,
    WIDTH = 32,               /* narrower images have too few tiles for the matrices to pay */
    CHANNELS = 64,            /* fewer: the transforms are what takes the time */
    MATRIX_BYTES = 128 << 20, /* of a layer, at most; they are four times its weights */
    RUN_BYTES = 6 << 20,      /* of the planes of a run: third-level cache */
    RUN_TILES = 96,           /* at least: the matrices are read once a run */
    BLOCK = 16                /* output channels whose kernels are transformed together */
};

typedef struct winograd {
    ts_cpu_kernel base;
    int across, down, run; /* tiles of a row and of a column; at a time */
    dnnl_primitive_t primitive;
    dnnl_stream_t stream;
    dnnl_memory_t src, dst, weights, work;
    size_t planes_bytes, work_bytes;
    const void *weight_data;
} winograd;

static bool suits(const ts_op *op) {
    return op->kind == TS_OP_CONV2D && op->conv.kernel == 3 && op->conv.stride == 1 &&
           op->conv.pad_left == 1 && op->conv.pad_right == 1 && op->in[0].dtype == TS_F32 &&
           op->out.dtype == TS_F32 && op->out.w >= WIDTH && op->in[0].c >= CHANNELS &&
           op->out.c >= CHANNELS && op->in[0].c % BLOCK == 0 && op->out.c % BLOCK == 0 &&
           (double)op->in[0].c * op->out.c * PLANES * sizeof(float) <= MATRIX_BYTES;
}

/* ------------------------------------------------------------------------------------------------ weights */

/* G: the points' powers over the product of their distances to the others. */
static const double G[IN][3] = {{1, 0, 0},
                                {-2.0 / 3, -2.0 / 3 * M_SQRT1_2, -1.0 / 3},
                                {-2.0 / 3, 2.0 / 3 * M_SQRT1_2, -1.0 / 3},
                                {1.0 / 6, M_SQRT2 / 6, 1.0 / 3},
                                {1.0 / 6, -M_SQRT2 / 6, 1.0 / 3},
                                {0, 0, 1}};

/* G g G^T of BLOCK kernels g, each `next` after the one before; ret: planes that lie `plane` apart. */
static void transform_kernels(const float *g, size_t next, float *ret, size_t plane) {
    double half[IN][3][BLOCK];
    for (int i = 0; i < IN; i++)
        for (int x = 0; x < 3; x++)
            for (size_t k = 0; k < BLOCK; k++) {
                const float *from = g + k * next + x;
                half[i][x][k] =
                    G[i][0] * (double)from[0] + G[i][1] * (double)from[3] + G[i][2] * (double)from[6];
            }
    for (int i = 0; i < IN; i++)
        for (int j = 0; j < IN; j++)
            for (int k = 0; k < BLOCK; k++)
                ret[(size_t)(i * IN + j) * plane + (size_t)k] =
                    (float)(half[i][0][k] * G[j][0] + half[i][1][k] * G[j][1] + half[i][2][k] * G[j][2]);
}

typedef struct weight_job {
    ts_store *store;
    const ts_param *param;
    const dnnl_memory_desc_t *to;
    int threads;
    const float *kernels; /* [cout][cin][3][3] */
    float *planes;        /* [36][cin][cout] */
} weight_job;

static void transform_part(void *arg, int part, size_t begin, size_t end) {
    const weight_job *j = arg;
    size_t cout = (size_t)j->param->shape[0], cin = (size_t)j->param->shape[1];
    (void)part;
    for (size_t ci = begin; ci < end; ci++)
        for (size_t co = 0; co < cout; co += BLOCK)
            transform_kernels(j->kernels + (co * cin + ci) * 9, cin * 9, j->planes + ci * cout + co,
                              cin * cout);
}

static ts_code make_weights(void *memory, void *arg, ts_error *e) {
    weight_job *j = arg;
    const ts_param *p = j->param;
    size_t n = ts_param_count(p);
    const size_t kernels = ts_align_up(n * sizeof(float)), planes = n / 9 * PLANES * sizeof(float);
    void *scratch = NULL;
    ts_code rc = ts_store_scratch(j->store, kernels + planes, &scratch, e);
    if (!rc) rc = ts_param_load(p, TS_F32, scratch, e);
    if (!rc) {
        dnnl_memory_desc_t md;
        j->kernels = scratch;
        j->planes = (void *)((char *)scratch + kernels);
        ts_parallel_for(j->threads, (size_t)p->shape[1], 1, transform_part, j);
        dnnl_status_t st = dnnl_memory_desc_init_by_tag(
            &md, 3, (dnnl_dims_t){PLANES, p->shape[1], p->shape[0]}, dnnl_f32, dnnl_abc);
        if (dnnl_memory_desc_get_size(j->to) != planes) memset(memory, 0, dnnl_memory_desc_get_size(j->to));
        if (st == dnnl_success) st = ts_dnnl_reorder(&md, j->planes, j->to, memory);
        if (st != dnnl_success)
            rc = ts_fail(e, ts_dnnl_code(st), "oneDNN could not reorder %s", p->name ? p->name : "");
    }
    return rc;
}

/* ------------------------------------------------------------------------------------------------ running */

typedef struct run_job {
    const winograd *w;
    const ts_args *args;
    float *in, *out; /* the run's planes */
    size_t first;    /* its first tile */
} run_job;

/* Tile number `tile` of all images where it lies in a view of the output's size; *ret_at: its first element.
 */
static ts_tile tile_at(const winograd *w, const ts_view *v, size_t tile, size_t *ret_at) {
    const ts_op *op = &w->base.op;
    const size_t across = (size_t)w->across, each = across * (size_t)w->down, in_image = tile % each;
    const size_t y = in_image / across * OUT, x = in_image % across * OUT, row = (size_t)v->w * v->ld;
    *ret_at = tile / each * v->pitch + y * row + x * v->ld;
    return (ts_tile){
        .row = row, .ld = v->ld, .rows = op->out.h - (int)y, .left = x == 0, .right = op->out.w - (int)x};
}

static void spread_part(void *arg, int part, size_t begin, size_t end) {
    const run_job *j = arg;
    const ts_view *v = &j->w->base.op.in[0];
    const size_t c = (size_t)v->c;
    (void)part;
    for (size_t i = begin; i < end; i++) {
        size_t at;
        ts_tile t = tile_at(j->w, v, j->first + i, &at);
        t.rows += 2; /* the input has a row more above and below, and none beside */
        t.right += 1;
        t.x = (const float *)j->args->in[0] + (t.left ? at : at - t.ld);
        j->w->base.vec->winograd_spread(&t, v->c, j->in + i * c, (size_t)j->w->run * c);
    }
}

static void gather_part(void *arg, int part, size_t begin, size_t end) {
    const run_job *j = arg;
    const ts_view *v = &j->w->base.op.out, *r = &j->w->base.op.in[1];
    const size_t c = (size_t)v->c;
    (void)part;
    for (size_t i = begin; i < end; i++) {
        size_t at, at_r;
        ts_tile t = tile_at(j->w, v, j->first + i, &at);
        t.y = (float *)j->args->out + at;
        if (r->c) {
            const ts_tile added = tile_at(j->w, r, j->first + i, &at_r);
            t.row_r = added.row;
            t.ld_r = added.ld;
            t.r = (const float *)j->args->in[1] + at_r;
        }
        j->w->base.vec->winograd_gather(j->out + i * c, (size_t)j->w->run * c, v->c, j->w->base.bias, &t);
    }
}

static ts_code multiply(const winograd *w, const run_job *j, char *work) {
    dnnl_exec_arg_t args[4] = {{DNNL_ARG_SRC, w->src},
                               {DNNL_ARG_DST, w->dst},
                               {DNNL_ARG_WEIGHTS, w->weights},
                               {DNNL_ARG_SCRATCHPAD, w->work}};
    dnnl_status_t st = dnnl_memory_set_data_handle(w->src, j->in);
    if (st == dnnl_success) st = dnnl_memory_set_data_handle(w->dst, j->out);
    if (st == dnnl_success && w->work) st = dnnl_memory_set_data_handle(w->work, work);
    if (st == dnnl_success) st = dnnl_primitive_execute(w->primitive, w->stream, w->work ? 4 : 3, args);
    if (st == dnnl_success) st = dnnl_stream_wait(w->stream);
    return ts_dnnl_code(st);
}

static ts_code run_winograd(const ts_kernel *kernel, const ts_args *args) {
    const winograd *w = (const winograd *)kernel;
    const size_t tiles = (size_t)w->base.op.out.b * (size_t)w->across * (size_t)w->down;
    char *work = args->scratch;
    run_job j = {w, args, (float *)(void *)(work + w->work_bytes), NULL, 0};
    j.out = (float *)(void *)(work + w->work_bytes + w->planes_bytes);
    for (; j.first < tiles; j.first += (size_t)w->run) {
        size_t n = tiles - j.first < (size_t)w->run ? tiles - j.first : (size_t)w->run;
        ts_parallel_for(w->base.threads, n, 4, spread_part, &j);
        ts_code rc = multiply(w, &j, work);
        if (rc) return rc;
        ts_parallel_for(w->base.threads, n, 4, gather_part, &j);
    }
    return TS_OK;
}

/* ------------------------------------------------------------------------------------------------ prepare */

static void free_winograd(ts_kernel *kernel) {
    winograd *w = (winograd *)kernel;
    if (!w) return;
    dnnl_memory_t memories[] = {w->src, w->dst, w->weights, w->work};
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++)
        if (memories[i]) dnnl_memory_destroy(memories[i]);
    if (w->stream) dnnl_stream_destroy(w->stream);
    if (w->primitive) dnnl_primitive_destroy(w->primitive);
    free(w);
}

static dnnl_status_t make_desc(const winograd *w, dnnl_primitive_desc_t *ret) {
    dnnl_dim_t cin = w->base.op.in[0].c, cout = w->base.op.out.c;
    dnnl_memory_desc_t src, dst, weights;
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t st =
        dnnl_memory_desc_init_by_tag(&src, 3, (dnnl_dims_t){PLANES, w->run, cin}, dnnl_f32, dnnl_abc);
    if (st == dnnl_success)
        st = dnnl_memory_desc_init_by_tag(&dst, 3, (dnnl_dims_t){PLANES, w->run, cout}, dnnl_f32, dnnl_abc);
    if (st == dnnl_success)
        st = dnnl_memory_desc_init_by_tag(&weights, 3, (dnnl_dims_t){PLANES, cin, cout}, dnnl_f32,
                                          dnnl_format_tag_any);
    if (st == dnnl_success) st = dnnl_matmul_desc_init(&d, &src, &weights, NULL, &dst);
    if (st == dnnl_success) st = dnnl_primitive_attr_create(&attr);
    if (st == dnnl_success) st = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (st == dnnl_success) st = dnnl_primitive_desc_create(ret, &d, attr, ts_dnnl_engine(), NULL);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return st;
}

static dnnl_status_t make_objects(winograd *w, dnnl_primitive_desc_t desc) {
    dnnl_status_t st = dnnl_primitive_create(&w->primitive, desc);
    if (st == dnnl_success) st = dnnl_stream_create(&w->stream, ts_dnnl_engine(), dnnl_stream_default_flags);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_src_md, 0, NULL, &w->src);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_dst_md, 0, NULL, &w->dst);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_weights_md, 0, w->weight_data, &w->weights);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_scratchpad_md, 0, NULL, &w->work);
    return st;
}

static void plan(winograd *w) {
    const ts_op *op = &w->base.op;
    w->across = (op->out.w + OUT - 1) / OUT;
    w->down = (op->out.h + OUT - 1) / OUT;
    long all = (long)op->out.b * w->across * w->down;
    long fit = RUN_BYTES / (PLANES * (long)sizeof(float) * (op->in[0].c + op->out.c));
    if (fit < RUN_TILES) fit = RUN_TILES;
    long runs = (all + fit - 1) / fit;
    w->run = (int)((all + runs - 1) / runs);
    w->planes_bytes = ts_align_up((size_t)PLANES * (size_t)w->run * (size_t)op->in[0].c * sizeof(float));
}

static ts_code prepare(winograd *w, ts_store *store, dnnl_primitive_desc_t desc, ts_error *e) {
    const ts_op *op = &w->base.op;
    const dnnl_memory_desc_t *weights = dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
    const dnnl_memory_desc_t *work = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
    weight_job job = {.store = store, .param = op->weight, .to = weights, .threads = w->base.threads};
    ts_code rc = ts_store_get(store, (ts_store_key){op->weight, weights, sizeof *weights},
                              dnnl_memory_desc_get_size(weights), make_weights, &job, &w->weight_data, e);
    if (!rc) rc = ts_param_f32(store, op->bias, &w->base.bias, e);
    if (rc) return rc;
    rc = ts_dnnl_code(make_objects(w, desc));
    if (rc) return ts_fail(e, rc, "oneDNN could not make the primitive");
    w->work_bytes = work ? ts_align_up(dnnl_memory_desc_get_size(work)) : 0;
    w->base.base.scratch = w->work_bytes + w->planes_bytes +
                           ts_align_up((size_t)PLANES * (size_t)w->run * (size_t)op->out.c * sizeof(float));
    return TS_OK;
}

ts_code ts_cpu_prepare_winograd(const ts_cpu_device *device, ts_store *store, const ts_op *op,
                                ts_kernel **ret, ts_error *e) {
    dnnl_primitive_desc_t desc = NULL;
    if (!suits(op)) return TS_EUNSUPPORTED;
    if (!ts_dnnl_engine()) return ts_fail(e, TS_ENOMEM, "starting oneDNN");
    winograd *w = ts_new0(winograd);
    if (!w) return ts_fail(e, TS_ENOMEM, "a kernel");
    w->base.op = *op;
    w->base.threads = device->base.threads;
    w->base.vec = device->vec;
    w->base.base.name = "winograd";
    w->base.base.run = run_winograd;
    w->base.base.free = free_winograd;
    plan(w);
    /* A primitive is made for the number of threads that this thread would use. */
    int before = ts_parallel_set(device->base.threads);
    const dnnl_status_t st = make_desc(w, &desc);
    const char *product;
    ts_code rc = ts_dnnl_usable(st, desc, &product);
    if (rc && rc != TS_EUNSUPPORTED) ts_fail(e, rc, "oneDNN has no kernel: status %d", (int)st);
    if (!rc) rc = prepare(w, store, desc, e);
    ts_parallel_set(before);
    if (desc) dnnl_primitive_desc_destroy(desc);
    if (rc)
        free_winograd(&w->base.base);
    else
        *ret = &w->base.base;
    return rc;
}
