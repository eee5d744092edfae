/* Convolutions and matrix products: a linear layer is a 1x1 convolution over its tokens.
 *
 * TILE output pixels of one row at a time: for each tap of the kernel their inputs are gathered as float32,
 * and each block of output channels reads its weights once for all of them. Products are summed in float32
 * over at most CHUNK channels, then in double. */
#include "kernels/ref/ref.h"

#include "base/alloc.h"
#include "kernels/param.h"

enum { TILE = 16, GROUP = 4, CHUNK = 128, BLOCK = TS_REF_BLOCK };

static int blocks_of(int c) {
    return (c + BLOCK - 1) / BLOCK;
}
static int kernel_of(const ts_op *op) {
    return op->kind == TS_OP_CONV2D ? op->conv.kernel : 1;
}

static ts_code pack(void *memory, void *arg, ts_error *e) {
    const ts_param *p = arg;
    int cout = (int)p->shape[0], cin = (int)p->shape[1], blocks = blocks_of(cout);
    int taps = p->rank == 4 ? (int)(p->shape[2] * p->shape[3]) : 1;
    size_t row = (size_t)cin * (size_t)taps;
    float *to = memory, *plain = ts_array0(float, ts_param_count(p)), *from = plain;
    ts_code rc = plain ? ts_param_load(p, TS_F32, plain, e) : ts_fail(e, TS_ENOMEM, "a weight");
    if (rc) {
        free(plain);
        return rc;
    }
    memset(to, 0, (size_t)blocks * BLOCK * row * sizeof *to);
    for (int co = 0; co < cout; co++, from += row)
        for (int ci = 0; ci < cin; ci++)
            for (int tap = 0; tap < taps; tap++) {
                size_t block = (size_t)tap * (size_t)blocks + (size_t)(co / BLOCK);
                to[(block * (size_t)cin + (size_t)ci) * BLOCK + (size_t)(co % BLOCK)] = from[ci * taps + tap];
            }
    free(plain);
    return TS_OK;
}

ts_code ts_ref_pack(ts_store *store, const ts_op *op, const float **ret, ts_error *e) {
    static const char layout[] = "ref blocked";
    const ts_param *p = op->weight;
    const void *entry = NULL;
    size_t k = (size_t)kernel_of(op);
    size_t n = (size_t)blocks_of(op->out.c) * BLOCK * (size_t)op->in[0].c * k * k;
    ts_code rc = ts_store_get(store, (ts_store_key){p, layout, sizeof layout}, n * sizeof(float), pack,
                              (void *)(uintptr_t)p, &entry, e);
    if (rc == TS_OK) *ret = entry;
    return rc;
}

/* Inputs of TILE pixels; their sums in double; one row to write. */
static size_t product_scratch(const ts_op *op) {
    size_t cout = (size_t)blocks_of(op->out.c) * BLOCK;
    return (size_t)TILE * (size_t)op->in[0].c + TILE * cout * 2 + 2 * cout;
}

/* sum[p][co] += x[p][:] w[:][co] for GROUP pixels and one block. */
static void multiply(const float *restrict x, int cin, const float *restrict w, double *restrict sum,
                     size_t cout) {
    for (int c0 = 0; c0 < cin; c0 += CHUNK) {
        int c1 = c0 + CHUNK < cin ? c0 + CHUNK : cin;
        float acc[GROUP][BLOCK] = {{0}};
        for (int ci = c0; ci < c1; ci++)
            for (int p = 0; p < GROUP; p++)
                for (int i = 0; i < BLOCK; i++) acc[p][i] += x[p * cin + ci] * w[ci * BLOCK + i];
        for (int p = 0; p < GROUP; p++)
            for (int i = 0; i < BLOCK; i++) sum[(size_t)p * cout + (size_t)i] += (double)acc[p][i];
    }
}

/* A row of tokens, or an image's row: pixels [x0, x0 + n) of output row y. */
static void tile(const ts_ref_kernel *k, const ts_args *args, int image, int y, int x0, int n) {
    const ts_op *op = &k->op;
    const ts_view *in = &op->in[0], *out = &op->out, *res = &op->in[1];
    bool conv = op->kind == TS_OP_CONV2D;
    int taps = kernel_of(op), stride = conv ? op->conv.stride : 1, left = conv ? op->conv.pad_left : 0;
    int cin = in->c, blocks = blocks_of(out->c);
    size_t cout = (size_t)blocks * BLOCK;
    double *sum = args->scratch;
    float *x = (float *)(sum + TILE * cout), *row = x + (size_t)TILE * (size_t)cin, *other = row + cout;
    memset(sum, 0, TILE * cout * sizeof *sum);
    for (int ky = 0; ky < taps; ky++)
        for (int kx = 0; kx < taps; kx++) {
            for (int p = 0; p < TILE; p++) {
                int at = (x0 + p) * stride + kx - left;
                float *to = x + (size_t)p * (size_t)cin;
                if (p < n && at >= 0 && at < in->w)
                    ts_ref_load(args->in[0], in->dtype,
                                ts_view_at(in, image, (size_t)(y * stride + ky) * (size_t)in->w + (size_t)at),
                                cin, to);
                else
                    memset(to, 0, (size_t)cin * sizeof *to);
            }
            const float *w = k->weight + (size_t)(ky * taps + kx) * cout * (size_t)cin;
            for (int block = 0; block < blocks; block++)
                for (int p = 0; p < n; p += GROUP)
                    multiply(x + (size_t)p * (size_t)cin, cin, w + (size_t)block * BLOCK * (size_t)cin,
                             sum + (size_t)p * cout + (size_t)block * BLOCK, cout);
        }
    for (int p = 0; p < n; p++) {
        size_t token = (size_t)y * (size_t)out->w + (size_t)(x0 + p);
        const double *s = sum + (size_t)p * cout;
        if (res->c) ts_ref_load(args->in[1], res->dtype, ts_view_at(res, image, token), res->c, other);
        for (int i = 0; i < out->c; i++)
            row[i] = (float)(s[i] + (k->bias ? (double)k->bias[i] : 0) + (res->c ? (double)other[i] : 0));
        ts_ref_save(args->out, out->dtype, ts_view_at(out, image, token), out->c, row);
    }
}

static void product(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *out = &k->op.out;
    for (int image = 0; image < out->b; image++)
        for (int y = 0; y < out->h; y++)
            for (int x0 = 0; x0 < out->w; x0 += TILE)
                tile(k, args, image, y, x0, out->w - x0 < TILE ? out->w - x0 : TILE);
}

const ts_ref_impl ts_ref_product = {product, product_scratch};
