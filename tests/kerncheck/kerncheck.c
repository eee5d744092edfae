/* Compares every implementation of every op with the plain-C reference on random ops.
 *
 *     kerncheck [--only OP] [--seed N] [--count N] [--threads N] [--verbose]
 *     kerncheck --bench [--only OP] [--threads N]
 *
 * A failure prints the command that repeats it. The last line is "N passed, N failed". */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "kerncheck.h"

typedef struct result {
    char *memory; /* the output's, with its guards */
    ts_code code;
    char why[200]; /* "" when all is well */
} result;

/* Runs the case's op on copies, and checks that nothing but the output's own elements was written. */
static result run_case(const kc_case *c, ts_device *device) {
    result r = {0};
    ts_store *store = NULL;
    ts_kernel *kernel = NULL;
    ts_error e = {0};
    ts_args args = {.segments = c->segments, .segment_count = c->segment_count};
    char *copies[3] = {0}, *scratch = NULL;
    const kc_tensor *home = c->alias >= 0 ? &c->in[c->alias] : &c->out;
    if (ts_store_new(&store)) abort();
    if ((r.code = device->backend->prepare(device, store, &c->op, &kernel, &e))) {
        snprintf(r.why, sizeof r.why, "prepare: %.150s", e.message);
        goto done;
    }
    r.memory = ts_alloc_aligned(home->bytes);
    scratch = ts_alloc_aligned(kernel->scratch + KC_GUARD);
    if (!r.memory || !scratch) abort();
    memcpy(r.memory, home->memory, home->bytes);
    memset(scratch, 0xff, kernel->scratch);
    memset(scratch + kernel->scratch, 0x5a, KC_GUARD);
    for (int i = 0; i < 3; i++) {
        if (!c->in[i].memory) continue;
        if (i == c->alias) {
            args.in[i] = r.memory + KC_GUARD;
            continue;
        }
        if (!(copies[i] = ts_alloc_aligned(c->in[i].bytes))) abort();
        memcpy(copies[i], c->in[i].memory, c->in[i].bytes);
        args.in[i] = copies[i] + KC_GUARD;
    }
    args.out = r.memory + KC_GUARD;
    args.scratch = scratch;
    if ((r.code = kernel->run(kernel, &args))) snprintf(r.why, sizeof r.why, "run: %s", ts_code_name(r.code));
    for (int i = 0; i < 3; i++)
        if (copies[i] && memcmp(copies[i], c->in[i].memory, c->in[i].bytes))
            snprintf(r.why, sizeof r.why, "wrote into input %d", i);
    for (size_t i = 0; i < KC_GUARD; i++)
        if (scratch[kernel->scratch + i] != 0x5a) snprintf(r.why, sizeof r.why, "wrote behind its scratch");
done:
    for (int i = 0; i < 3; i++) free(copies[i]);
    free(scratch);
    ts_kernel_free(kernel);
    ts_store_free(store);
    return r;
}

/* True when the bytes outside the view's elements are as they were. */
static bool gaps_untouched(const ts_view *v, const char *before, const char *after, size_t bytes) {
    size_t size = ts_dtype_size(v->dtype), at = 0;
    for (int b = 0; b < v->b; b++)
        for (size_t t = 0; t < ts_view_tokens(v); t++) {
            size_t own = KC_GUARD + ((size_t)b * v->pitch + t * v->ld) * size;
            if (memcmp(before + at, after + at, own - at)) return false;
            at = own + (size_t)v->c * size;
        }
    return memcmp(before + at, after + at, bytes - at) == 0;
}

static double element(const char *memory, ts_dtype t, size_t i) {
    const char *base = memory + KC_GUARD;
    return t == TS_F32 ? (double)((const float *)(const void *)base)[i]
                       : (double)ts_bf16_to_f32(((const uint16_t *)(const void *)base)[i]);
}

static void compare_stats(const kc_case *c, const char *want, const char *got, result *r) {
    const double *a = (const double *)(const void *)(want + KC_GUARD),
                 *b = (const double *)(const void *)(got + KC_GUARD);
    double count = (double)ts_view_tokens(&c->op.in[0]) * c->op.in[0].c / c->op.norm.groups;
    for (int i = 0; i < c->op.in[0].b * c->op.norm.groups; i++) {
        /* |sum| is at most sqrt(count * squares): that is what its rounding is relative to. */
        double sum = fabs(a[2 * i] - b[2 * i]), square = fabs(a[2 * i + 1] - b[2 * i + 1]);
        if (!(sum <= 1e-12 * sqrt(count * a[2 * i + 1])) || !(square <= 1e-12 * a[2 * i + 1]))
            snprintf(r->why, sizeof r->why, "group %d: %g %g, not %g %g", i, b[2 * i], b[2 * i + 1], a[2 * i],
                     a[2 * i + 1]);
    }
}

/* float32 by relative L2; bf16 element by element too: one rounding apart, but for attention, whose weights
 * are rounded. */
static void compare(const kc_case *c, const char *want, const char *got, result *r) {
    const ts_view *v = &c->op.out;
    double error = 0, norm = 0, n = (double)v->b * (double)ts_view_tokens(v) * v->c;
    bool strict = v->dtype == TS_BF16 && c->op.kind != TS_OP_ATTENTION;
    if (c->op.kind == TS_OP_GROUP_STATS) {
        compare_stats(c, want, got, r);
        return;
    }
    for (int pass = 0; pass < 2; pass++)
        for (int b = 0; b < v->b; b++)
            for (size_t t = 0; t < ts_view_tokens(v); t++)
                for (int i = 0; i < v->c; i++) {
                    size_t at = (size_t)b * v->pitch + t * v->ld + (size_t)i;
                    double x = element(want, v->dtype, at), y = element(got, v->dtype, at);
                    if (pass == 0)
                        error += (x - y) * (x - y), norm += x * x;
                    else if (strict && !(fabs(x - y) <= fabs(x) * 0x1.02p-7 + 2e-5 * sqrt(norm / n) + 1e-36))
                        snprintf(r->why, sizeof r->why, "image %d token %zu channel %d: %g, not %g", b, t, i,
                                 y, x);
                }
    if (!(sqrt(error) <= (strict ? 4e-3 : c->tolerance) * sqrt(norm) + 1e-34 * sqrt(n)))
        snprintf(r->why, sizeof r->why, "relative L2 %g, over %g", sqrt(error / norm), c->tolerance);
}

static bool check(const kc_case *c, const result *want, ts_device *device, const char *name, uint64_t seed) {
    const kc_tensor *home = c->alias >= 0 ? &c->in[c->alias] : &c->out;
    result r = run_case(c, device);
    if (!r.why[0] && !gaps_untouched(&c->op.out, home->memory, r.memory, home->bytes))
        snprintf(r.why, sizeof r.why, "wrote outside its output");
    if (!r.why[0]) compare(c, want->memory, r.memory, &r);
    if (r.why[0])
        printf("FAIL %s on %d threads: %s\n     %s\n     kerncheck --only %s --seed %llu\n", name,
               device->threads, r.why, c->text, ts_op_kind_name(c->op.kind), (unsigned long long)seed);
    free(r.memory);
    return r.why[0] == 0;
}

/* Matrix products do not use the vector table: one is enough for them. */
static int tables_for(ts_op_kind kind, const ts_vec *emulated, const ts_vec *tables[TS_VEC_TABLES + 1]) {
    int n = ts_vec_all(tables);
    if (kind == TS_OP_LINEAR) {
        tables[0] = tables[n - 1];
        return 1;
    }
    if (emulated && kind == TS_OP_ATTENTION) tables[n++] = emulated;
    return n;
}

static void check_seed(ts_op_kind kind, uint64_t seed, const ts_vec *emulated, ts_device *ref, ts_device *cpu,
                       bool verbose, int *passed, int *failed) {
    const ts_vec *tables[TS_VEC_TABLES + 1];
    kc_case c;
    kc_case_make(&c, kind, seed);
    if (verbose) printf("%llu %s\n", (unsigned long long)seed, c.text);
    result want = run_case(&c, ref);
    if (want.why[0] || !gaps_untouched(&c.op.out, (c.alias >= 0 ? &c.in[c.alias] : &c.out)->memory,
                                       want.memory, (c.alias >= 0 ? &c.in[c.alias] : &c.out)->bytes)) {
        printf("FAIL ref: %s\n     %s\n     kerncheck --only %s --seed %llu\n",
               want.why[0] ? want.why : "wrote outside its output", c.text, ts_op_kind_name(kind),
               (unsigned long long)seed);
        ++*failed;
    } else {
        int n = tables_for(kind, emulated, tables);
        for (int i = 0; i < n; i++) {
            char name[32];
            snprintf(name, sizeof name, "cpu (%s%s)", tables[i]->name,
                     tables[i] == emulated ? ", emulated" : "");
            ((ts_cpu_device *)cpu)->vec = tables[i];
            ++*(check(&c, &want, cpu, name, seed) ? passed : failed);
        }
    }
    free(want.memory);
    kc_case_free(&c);
}

static ts_op_kind kind_named(const char *name) {
    int kind = 0;
    while (kind < TS_OP_COUNT && strcmp(name, ts_op_kind_name((ts_op_kind)kind))) kind++;
    return (ts_op_kind)kind;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"only", 1, NULL, 'o'},
                                            {"seed", 1, NULL, 's'},
                                            {"count", 1, NULL, 'c'},
                                            {"threads", 1, NULL, 't'},
                                            {"verbose", 0, NULL, 'v'},
                                            {"bench", 0, NULL, 'b'},
                                            {0}};
    ts_op_kind only = TS_OP_COUNT;
    const char *only_name = NULL;
    uint64_t seed = 1;
    int count = 0, threads = 0, passed = 0, failed = 0, option;
    bool verbose = false, bench = false, seeded = false;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) switch (option) {
        case 'o':
            only_name = optarg;
            only = kind_named(optarg);
            if (only == TS_OP_COUNT) return fprintf(stderr, "no op is called %s\n", optarg), 2;
            break;
        case 's': seed = strtoull(optarg, NULL, 10), seeded = true; break;
        case 'c': count = atoi(optarg); break;
        case 't': threads = atoi(optarg); break;
        case 'v': verbose = true; break;
        case 'b': bench = true; break;
        default: return 2;
        }
    if (bench) return kc_bench(only_name, threads > 0 ? threads : 2);
    if (count <= 0) count = seeded ? 1 : 150;
    const ts_vec *emulated = kc_emulated_amx();
    ts_device *ref = NULL, *cpu[2] = {0};
    if (ts_backend_ref.open(0, 1, &ref, NULL) || ts_backend_cpu.open(0, 1, &cpu[0], NULL) ||
        ts_backend_cpu.open(1, threads > 0 ? threads : 2, &cpu[1], NULL))
        abort();
    for (int kind = 0; kind < TS_OP_COUNT; kind++)
        for (int i = 0; i < count && (only == TS_OP_COUNT || only == (ts_op_kind)kind); i++) {
            ts_device *device = cpu[(seed + (uint64_t)i) & 1]; /* a seed is always on as many threads */
            device->backend->thread_begin(device);
            check_seed((ts_op_kind)kind, seed + (uint64_t)i, emulated, ref, device, verbose, &passed,
                       &failed);
        }
    ((ts_cpu_device *)cpu[0])->vec = ts_vec_best();
    if (!seeded) kc_check_choice(only_name, cpu[0], &passed, &failed);
    for (int i = 0; i < 2; i++) ts_backend_cpu.close(cpu[i]);
    ts_backend_ref.close(ref);
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
