/* CONV2D and LINEAR by oneDNN: a primitive is made when the op is prepared, its weights are reordered through
 * the store, and a run only sets addresses.
 *
 * oneDNN 2.6 has fast NHWC convolutions for dense tensors only (anything else falls to its scalar reference):
 * images with a gap between them are run one by one, and pixels with a gap (ld > c) are copied to and from
 * scratch. A residual is the `sum` post-op, which adds to what the output holds, so it is copied there first
 * unless it already lies there; the `binary` post-op would take convolutions off their fast path. */
#include "kernels/cpu/cpu.h"

#include <pthread.h>
#include "base/alloc.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/param.h"

typedef struct product {
    ts_cpu_kernel base;
    dnnl_primitive_t primitive;
    dnnl_stream_t stream;
    dnnl_memory_t src, dst, weights, bias, work;
    int images;             /* that one execution takes: all, or one */
    bool copy_in, copy_out; /* through scratch, one image at a time */
    ts_view x, y;           /* as the primitive sees them: one execution, dense */
    size_t x_bytes, work_bytes;
    const void *weight_data, *bias_data;
} product;

static dnnl_engine_t engine;
static pthread_mutex_t engine_lock = PTHREAD_MUTEX_INITIALIZER;

dnnl_engine_t ts_dnnl_engine(void) {
    pthread_mutex_lock(&engine_lock);
    if (!engine && dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) engine = NULL;
    const dnnl_engine_t made = engine; /* another thread may be trying */
    pthread_mutex_unlock(&engine_lock);
    return made;
}

ts_code ts_dnnl_code(dnnl_status_t status) {
    switch (status) {
    case dnnl_success: return TS_OK;
    case dnnl_out_of_memory: return TS_ENOMEM;
    default: return TS_EDEVICE;
    }
}

static dnnl_data_type_t type_of(ts_dtype t) {
    return t == TS_F32 ? dnnl_f32 : dnnl_bf16;
}

/* A dense view with the strides of NHWC, or a matrix of tokens. */
static dnnl_status_t describe(const ts_view *v, bool matrix, dnnl_memory_desc_t *ret) {
    dnnl_dim_t c = v->c, tokens = (dnnl_dim_t)v->b * v->h * v->w;
    if (matrix)
        return dnnl_memory_desc_init_by_strides(ret, 2, (dnnl_dims_t){tokens, c}, type_of(v->dtype),
                                                (dnnl_dims_t){(dnnl_dim_t)v->ld, 1});
    return dnnl_memory_desc_init_by_strides(ret, 4, (dnnl_dims_t){v->b, c, v->h, v->w}, type_of(v->dtype),
                                            (dnnl_dims_t){(dnnl_dim_t)v->h * v->w * c, 1, v->w * c, c});
}

/* A 1x1 convolution is a matrix product. */
static bool is_matrix(const ts_op *op) {
    return op->kind == TS_OP_LINEAR || (op->conv.kernel == 1 && op->conv.stride == 1 &&
                                        op->conv.pad_left == 0 && op->conv.pad_right == 0);
}

/* Matrices keep their ld (oneDNN's blocked product wants it dense to be fast, its other one takes any). */
static void plan_views(product *p) {
    const ts_op *op = &p->base.op;
    bool matrix = is_matrix(op);
    p->x = op->in[0], p->y = op->out;
    bool gap = (p->x.b > 1 && (p->x.pitch != ts_view_tokens(&p->x) * p->x.ld ||
                               p->y.pitch != ts_view_tokens(&p->y) * p->y.ld));
    p->copy_in = !matrix && p->x.ld != (size_t)p->x.c;
    p->copy_out = !matrix && p->y.ld != (size_t)p->y.c;
    p->images = gap || p->copy_in || p->copy_out ? 1 : p->x.b;
    p->x.b = p->y.b = p->images;
    if (p->copy_in) p->x = ts_view_dense(1, p->x.h, p->x.w, p->x.c, p->x.dtype);
    if (p->copy_out) p->y = ts_view_dense(1, p->y.h, p->y.w, p->y.c, p->y.dtype);
}

static dnnl_status_t make_attr(bool residual, dnnl_primitive_attr_t *ret) {
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t s = dnnl_primitive_attr_create(&attr);
    if (s == dnnl_success) s = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (s == dnnl_success && residual) {
        s = dnnl_post_ops_create(&ops);
        if (s == dnnl_success) s = dnnl_post_ops_append_sum(ops, 1.0f);
        if (s == dnnl_success) s = dnnl_primitive_attr_set_post_ops(attr, ops);
        if (ops) dnnl_post_ops_destroy(ops);
    }
    if (s == dnnl_success)
        *ret = attr;
    else if (attr)
        dnnl_primitive_attr_destroy(attr);
    return s;
}

static dnnl_status_t make_desc(const product *p, dnnl_primitive_desc_t *ret) {
    const ts_op *op = &p->base.op;
    dnnl_dim_t cin = p->x.c, cout = p->y.c, k = op->conv.kernel, s = op->conv.stride;
    dnnl_data_type_t type = type_of(p->x.dtype);
    dnnl_memory_desc_t src, dst, weights, bias = {0};
    dnnl_primitive_attr_t attr = NULL;
    bool matrix = is_matrix(op);
    dnnl_status_t st = describe(&p->x, matrix, &src);
    if (st == dnnl_success) st = describe(&p->y, matrix, &dst);
    if (st == dnnl_success && op->bias)
        st = matrix ? dnnl_memory_desc_init_by_tag(&bias, 2, (dnnl_dims_t){1, cout}, dnnl_f32, dnnl_ab)
                    : dnnl_memory_desc_init_by_tag(&bias, 1, (dnnl_dims_t){cout}, dnnl_f32, dnnl_a);
    if (st == dnnl_success)
        st = matrix ? dnnl_memory_desc_init_by_tag(&weights, 2, (dnnl_dims_t){cin, cout}, type,
                                                   dnnl_format_tag_any)
                    : dnnl_memory_desc_init_by_tag(&weights, 4, (dnnl_dims_t){cout, cin, k, k}, type,
                                                   dnnl_format_tag_any);
    if (st == dnnl_success) st = make_attr(op->in[1].c != 0, &attr);
    if (st != dnnl_success) return st;
    if (matrix) {
        dnnl_matmul_desc_t d;
        st = dnnl_matmul_desc_init(&d, &src, &weights, op->bias ? &bias : NULL, &dst);
        if (st == dnnl_success) st = dnnl_primitive_desc_create(ret, &d, attr, engine, NULL);
    } else {
        dnnl_convolution_desc_t d;
        st = dnnl_convolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_convolution_direct, &src,
                                                &weights, op->bias ? &bias : NULL, &dst, (dnnl_dims_t){s, s},
                                                (dnnl_dims_t){0, op->conv.pad_left},
                                                (dnnl_dims_t){0, op->conv.pad_right});
        if (st == dnnl_success) st = dnnl_primitive_desc_create(ret, &d, attr, engine, NULL);
    }
    dnnl_primitive_attr_destroy(attr);
    return st;
}

/* ------------------------------------------------------------------------------------------------ weights */

typedef struct reorder_job {
    ts_store *store;
    const ts_param *param;
    const dnnl_memory_desc_t *to;
    bool matrix;
} reorder_job;

static dnnl_status_t execute_reorder(dnnl_memory_t from, dnnl_memory_t to, dnnl_primitive_desc_t desc) {
    dnnl_primitive_t primitive = NULL;
    dnnl_stream_t stream = NULL;
    dnnl_status_t st = dnnl_primitive_create(&primitive, desc);
    if (st == dnnl_success) st = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    if (st == dnnl_success)
        st = dnnl_primitive_execute(primitive, stream, 2,
                                    (dnnl_exec_arg_t[]){{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
    if (st == dnnl_success) st = dnnl_stream_wait(stream);
    if (stream) dnnl_stream_destroy(stream);
    if (primitive) dnnl_primitive_destroy(primitive);
    return st;
}

dnnl_status_t ts_dnnl_reorder(const dnnl_memory_desc_t *md, const void *data,
                              const dnnl_memory_desc_t *wanted, void *memory) {
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_status_t st = dnnl_memory_create(&from, md, engine, (void *)(uintptr_t)data);
    if (st == dnnl_success) st = dnnl_memory_create(&to, wanted, engine, memory);
    if (st == dnnl_success) st = dnnl_reorder_primitive_desc_create(&desc, md, engine, wanted, engine, NULL);
    if (st == dnnl_success) st = execute_reorder(from, to, desc);
    if (desc) dnnl_primitive_desc_destroy(desc);
    if (to) dnnl_memory_destroy(to);
    if (from) dnnl_memory_destroy(from);
    return st;
}

/* The parameter as oneDNN can read it: as it lies in the file, else in the store's scratch, of the type that
 * is wanted. */
static ts_code plain_weights(ts_store *store, const ts_param *p, ts_dtype wanted, const void **ret,
                             dnnl_data_type_t *ret_type, ts_error *e) {
    const bool known = p->dtype == TS_F32 || p->dtype == TS_BF16;
    if (p->data && known && (uintptr_t)p->data % ts_dtype_size(p->dtype) == 0) {
        *ret = p->data;
        *ret_type = type_of(p->dtype);
        return TS_OK;
    }
    void *copy = NULL;
    ts_code rc = ts_store_scratch(store, ts_param_count(p) * ts_dtype_size(wanted), &copy, e);
    if (!rc) rc = ts_param_load(p, wanted, copy, e);
    *ret = copy;
    *ret_type = type_of(wanted);
    return rc;
}

/* From the file's order [cout][cin][k][k] and type to what the primitive asked for. */
static ts_code make_weights(void *memory, void *arg, ts_error *e) {
    const reorder_job *job = arg;
    const ts_param *p = job->param;
    const size_t n = ts_param_count(p), size = dnnl_memory_desc_get_size(job->to);
    dnnl_memory_desc_t md;
    const void *source = NULL;
    dnnl_data_type_t type = dnnl_f32;
    /* What is made is float32 anyway. */
    const ts_dtype wanted = job->to->data_type == dnnl_bf16 && !p->make ? TS_BF16 : TS_F32;
    ts_code rc = plain_weights(job->store, p, wanted, &source, &type, e);
    if (rc) return rc;
    /* Padding that the layout adds must be zero, and reorder fills it; what it leaves out stays zero. */
    if (size != n * dnnl_data_type_size(job->to->data_type)) memset(memory, 0, size);
    dnnl_status_t st =
        job->matrix
            ? dnnl_memory_desc_init_by_tag(&md, 2, (dnnl_dims_t){p->shape[1], p->shape[0]}, type, dnnl_ba)
            : dnnl_memory_desc_init_by_tag(
                  &md, 4, (dnnl_dims_t){p->shape[0], p->shape[1], p->shape[2], p->shape[3]}, type, dnnl_abcd);
    if (st == dnnl_success) st = ts_dnnl_reorder(&md, source, job->to, memory);
    if (st != dnnl_success)
        rc = ts_fail(e, ts_dnnl_code(st), "oneDNN could not reorder %s", p->name ? p->name : "");
    return rc;
}

static ts_code fetch_parameters(product *p, ts_store *store, const dnnl_memory_desc_t *weights, ts_error *e) {
    const ts_op *op = &p->base.op;
    const float *bias = NULL;
    reorder_job job = {store, op->weight, weights, is_matrix(op)};
    ts_code rc = ts_store_get(store, (ts_store_key){op->weight, weights, sizeof *weights},
                              dnnl_memory_desc_get_size(weights), make_weights, &job, &p->weight_data, e);
    if (rc == TS_OK) rc = ts_param_f32(store, op->bias, &bias, e);
    if (rc == TS_OK) p->bias_data = bias;
    return rc;
}

/* -------------------------------------------------------------------------------------------------- running
 */

static ts_code execute(const product *p, const void *x, void *y, void *work) {
    dnnl_exec_arg_t args[5] = {
        {DNNL_ARG_SRC, p->src}, {DNNL_ARG_DST, p->dst}, {DNNL_ARG_WEIGHTS, p->weights}};
    int n = 3;
    if (p->bias) args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, p->bias};
    if (p->work) args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, p->work};
    dnnl_status_t st = dnnl_memory_set_data_handle(p->src, (void *)(uintptr_t)x);
    if (st == dnnl_success) st = dnnl_memory_set_data_handle(p->dst, y);
    if (st == dnnl_success && p->work) st = dnnl_memory_set_data_handle(p->work, work);
    if (st == dnnl_success) st = dnnl_primitive_execute(p->primitive, p->stream, n, args);
    if (st == dnnl_success) st = dnnl_stream_wait(p->stream);
    return ts_dnnl_code(st);
}

static ts_code run_product(const ts_kernel *kernel, const ts_args *args) {
    const product *p = (const product *)kernel;
    const ts_op *op = &p->base.op;
    size_t x_size = ts_dtype_size(p->x.dtype), y_size = ts_dtype_size(p->y.dtype);
    ts_view x1 = op->in[0], r1 = op->in[1], y1 = op->out;
    x1.b = r1.b = y1.b = p->images;
    for (int i = 0; i < op->out.b; i += p->images) {
        const char *x = (const char *)args->in[0] + (size_t)i * x1.pitch * x_size;
        char *y = (char *)args->out + (size_t)i * y1.pitch * y_size;
        char *x_dense = (char *)args->scratch + p->work_bytes, *y_dense = x_dense + p->x_bytes;
        char *to = p->copy_out ? y_dense : y;
        if (op->in[1].c) {
            const char *r = (const char *)args->in[1] + (size_t)i * r1.pitch * y_size;
            bool there = r == to && (r1.ld == p->y.ld || ts_view_tokens(&r1) == 1);
            if (!there) ts_cpu_move(p->base.threads, &r1, r, &p->y, to);
        }
        if (p->copy_in) ts_cpu_move(p->base.threads, &x1, x, &p->x, x_dense);
        ts_code rc = execute(p, p->copy_in ? x_dense : x, to, args->scratch);
        if (rc) return rc;
        if (p->copy_out) ts_cpu_move(p->base.threads, &p->y, to, &y1, y);
    }
    return TS_OK;
}

static void free_product(ts_kernel *kernel) {
    product *p = (product *)kernel;
    if (!p) return;
    dnnl_memory_t memories[] = {p->src, p->dst, p->weights, p->bias, p->work};
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++)
        if (memories[i]) dnnl_memory_destroy(memories[i]);
    if (p->stream) dnnl_stream_destroy(p->stream);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    free(p);
}

dnnl_status_t ts_dnnl_memory(dnnl_primitive_desc_t desc, dnnl_query_t what, int index, const void *data,
                             dnnl_memory_t *ret) {
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(desc, what, index);
    if (!md || dnnl_memory_desc_get_size(md) == 0) return dnnl_success;
    return dnnl_memory_create(ret, md, engine, (void *)(uintptr_t)data);
}

static dnnl_status_t make_objects(product *p, dnnl_primitive_desc_t desc) {
    dnnl_status_t st = dnnl_primitive_create(&p->primitive, desc);
    if (st == dnnl_success) st = dnnl_stream_create(&p->stream, engine, dnnl_stream_default_flags);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_src_md, 0, NULL, &p->src);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_dst_md, 0, NULL, &p->dst);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_weights_md, 0, p->weight_data, &p->weights);
    if (st == dnnl_success && p->bias_data)
        st = ts_dnnl_memory(desc, dnnl_query_weights_md, 1, p->bias_data, &p->bias);
    if (st == dnnl_success) st = ts_dnnl_memory(desc, dnnl_query_scratchpad_md, 0, NULL, &p->work);
    return st;
}

ts_code ts_dnnl_usable(dnnl_status_t status, dnnl_primitive_desc_t desc, const char **ret_name) {
    *ret_name = "";
    if (status == dnnl_success)
        status = dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, (void *)ret_name);
    if (status == dnnl_unimplemented) return TS_EUNSUPPORTED;
    if (status != dnnl_success) return ts_dnnl_code(status);
    return strncmp(*ret_name, "ref", 3) == 0 ? TS_EUNSUPPORTED : TS_OK;
}

static ts_code prepare(const ts_cpu_device *device, ts_store *store, const ts_op *op, ts_kernel **ret,
                       ts_error *e) {
    dnnl_primitive_desc_t desc = NULL;
    product *p = ts_new0(product);
    if (!p) return ts_fail(e, TS_ENOMEM, "a kernel");
    p->base.op = *op;
    p->base.threads = device->base.threads;
    p->base.base.run = run_product;
    p->base.base.free = free_product;
    plan_views(p);
    const dnnl_status_t st = make_desc(p, &desc);
    ts_code rc = ts_dnnl_usable(st, desc, &p->base.base.name);
    if (rc && rc != TS_EUNSUPPORTED) ts_fail(e, rc, "oneDNN has no kernel: status %d", (int)st);
    if (rc) goto fail;
    rc = fetch_parameters(p, store, dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0), e);
    if (rc) goto fail;
    rc = ts_dnnl_code(make_objects(p, desc));
    if (rc) {
        ts_fail(e, rc, "oneDNN could not make the primitive");
        goto fail;
    }
    const dnnl_memory_desc_t *work = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
    p->work_bytes = work ? ts_align_up(dnnl_memory_desc_get_size(work)) : 0;
    if (p->copy_in) p->x_bytes = ts_align_up(p->x.pitch * ts_dtype_size(p->x.dtype));
    p->base.base.scratch = p->work_bytes + p->x_bytes;
    if (p->copy_out) p->base.base.scratch += ts_align_up(p->y.pitch * ts_dtype_size(p->y.dtype));
    dnnl_primitive_desc_destroy(desc);
    *ret = &p->base.base;
    return TS_OK;
fail:
    if (desc) dnnl_primitive_desc_destroy(desc);
    free_product(&p->base.base);
    return rc;
}

ts_code ts_cpu_prepare_product(const ts_cpu_device *device, ts_store *store, const ts_op *op, ts_kernel **ret,
                               ts_error *e) {
    ts_dtype t = op->in[0].dtype;
    if (t != TS_F32 && t != TS_BF16) return TS_EUNSUPPORTED;
    if (!ts_dnnl_engine()) return ts_fail(e, TS_ENOMEM, "starting oneDNN");
    /* A primitive is made for the number of threads that this thread would use. */
    int before = ts_parallel_set(device->base.threads);
    ts_code rc = prepare(device, store, op, ret, e);
    ts_parallel_set(before);
    return rc;
}
