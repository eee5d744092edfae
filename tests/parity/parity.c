#include "parity.h"

#include <pthread.h>
#include <unistd.h>
#include "kernels/convert.h"

struct parity {
    parity_spec spec;
    int ranks;
    ts_device *device[TS_MAX_RANKS];
    ts_arena *arena[TS_MAX_RANKS];
    ts_program *program[TS_MAX_RANKS];
    ts_store *store;
    ts_transport *transport; /* NULL where there is nobody to talk to */
};

void parity_init(int argc, char **argv) {
    fixture_init(argc, argv);
}

char *parity_path(const char *fixture) {
    return fixture_path(fixture);
}

ts_weights *parity_weights_folder(const char *fixture_folder) {
    char *path = fixture_path(fixture_folder);
    ts_weights *w = NULL;
    ts_error e = {0};
    must(ts_weights_open(path, &w, &e), &e);
    free(path);
    return w;
}

ts_weights *parity_weights(const char *fixture) {
    char folder[] = "/tmp/parity-XXXXXX", link[sizeof folder + 32];
    char *path = realpath(fixture_dir, NULL), *file = ts_format("%s/%s", path, fixture);
    ts_weights *w = NULL;
    ts_error e = {0};
    assert_non_null(file);
    assert_non_null(mkdtemp(folder));
    snprintf(link, sizeof link, "%s/model.safetensors", folder);
    assert_int_equal(symlink(file, link), 0);
    ts_code rc = ts_weights_open(folder, &w, &e);
    unlink(link);
    rmdir(folder);
    free(file);
    free(path);
    must(rc, &e);
    return w;
}

parity *parity_new(const parity_spec *spec) {
    parity *p = ts_new0(parity);
    ts_error e = {0};
    assert_non_null(p);
    p->spec = *spec;
    p->ranks = spec->build.rows.n;
    assert_int_equal(ts_store_new(&p->store), TS_OK);
    for (int i = 0; i < p->ranks; i++) {
        ts_build build = spec->build;
        build.patch = i;
        ts_builder *b = ts_builder_new(&build, spec->weights);
        assert_non_null(b);
        spec->model(b, spec->arg);
        must(spec->backend->open(i, 1, &p->device[i], &e), &e);
        must(ts_arena_new(p->device[i], &p->arena[i], &e), &e);
        must(ts_program_compile(b, p->arena[i], p->store, &p->program[i], &e), &e);
    }
    if (p->ranks == 1 || spec->build.naive) return p;
    int count;
    ts_program_exchanges(p->program[0], &count);
    assert_int_equal(ts_transport_local_new(p->ranks, count, &p->transport), TS_OK);
    for (int i = 0; i < p->ranks; i++)
        p->transport->ops->attach(p->transport, i, ts_program_inbox(p->program[i]),
                                  ts_program_exchanges(p->program[i], &count));
    return p;
}

void parity_free(parity *p) {
    ts_transport_free(p->transport);
    for (int i = 0; i < p->ranks; i++) {
        ts_program_free(p->program[i]);
        ts_arena_free(p->arena[i]);
        p->spec.backend->close(p->device[i]);
    }
    ts_store_free(p->store);
    free(p);
}

static void *tensor_memory(const parity *p, int rank, const char *name, ts_view *v) {
    void *memory = ts_program_tensor(p->program[rank], name, v);
    if (!memory) fail_msg("the program has no tensor %s", name);
    return memory;
}

void parity_put(parity *p, const char *name, tensor t) {
    for (int r = 0, top = 0; r < p->ranks; r++) {
        ts_view v;
        float *to = tensor_memory(p, r, name, &v);
        if (v.b != t.n || v.c != t.c || v.w != t.w || top + v.h > t.h)
            fail_msg("%s is %d x %d x %d x %d, not %d x %d x %d x %d", name, v.b, v.c, v.h, v.w, t.n, t.c,
                     t.h, t.w);
        for (int n = 0; n < v.b; n++)
            for (int y = 0; y < v.h; y++)
                for (int x = 0; x < v.w; x++)
                    for (int c = 0; c < v.c; c++)
                        to[(size_t)n * v.pitch + (size_t)(y * v.w + x) * v.ld + (size_t)c] =
                            t.data[(((size_t)n * (size_t)t.c + (size_t)c) * (size_t)t.h + (size_t)(top + y)) *
                                       (size_t)t.w +
                                   (size_t)x];
        top += v.h;
    }
}

void parity_put_flat(parity *p, const char *name, const void *data, size_t n) {
    for (int r = 0; r < p->ranks; r++) {
        ts_view v;
        float *to = tensor_memory(p, r, name, &v);
        assert_int_equal(n, (size_t)v.b * v.pitch);
        memcpy(to, data, n * sizeof *to);
    }
}

tensor parity_get(parity *p, const char *name) {
    ts_view v;
    tensor t = {0};
    for (int r = 0; r < p->ranks; r++) {
        tensor_memory(p, r, name, &v);
        t.h += v.h;
    }
    t.n = v.b, t.c = v.c, t.w = v.w;
    t.data = ts_array0(float, (size_t)t.n *(size_t)t.c *(size_t)t.h *(size_t)t.w);
    float *pixel = ts_array0(float, (size_t)t.c);
    assert_true(t.data && pixel);
    for (int r = 0, top = 0; r < p->ranks; r++) {
        const char *from = tensor_memory(p, r, name, &v);
        for (int n = 0; n < v.b; n++)
            for (int i = 0; i < v.h * v.w; i++) {
                size_t at = (size_t)n * v.pitch + (size_t)i * v.ld;
                ts_convert(v.dtype, from + at * ts_dtype_size(v.dtype), TS_F32, pixel, (size_t)v.c);
                for (int c = 0; c < v.c; c++)
                    t.data[((size_t)n * (size_t)t.c + (size_t)c) * (size_t)t.h * (size_t)t.w +
                           (size_t)top * (size_t)t.w + (size_t)i] = pixel[c];
            }
        top += v.h;
    }
    free(pixel);
    return t;
}

typedef struct rank {
    parity *p;
    int index;
    pthread_t thread;
    ts_evaluation evaluation; /* number 0: the ops that run once */
    ts_code code;
    ts_error error;
} rank;

static void *run_rank(void *arg) {
    rank *r = arg;
    parity *p = r->p;
    ts_transport *t = p->transport;
    ts_program *program = p->program[r->index];
    p->spec.backend->thread_begin(p->device[r->index]);
    if (!r->evaluation.number)
        r->code = ts_program_run_once(program, &r->error);
    else
        r->code = ts_program_run(program, t, r->index, r->evaluation, &r->error);
    if (r->code && t) t->ops->abort(t);
    if (!r->code && t && r->evaluation.number) t->ops->finished(t, r->index, r->evaluation.number);
    return NULL;
}

/* Joining the threads is the barrier that ts_transport asks for between evaluations. */
ts_code parity_evaluate(parity *p, ts_evaluation evaluation, ts_error *e) {
    rank ranks[TS_MAX_RANKS] = {0};
    for (int i = 0; i < p->ranks; i++) {
        ranks[i] = (rank){.p = p, .index = i, .evaluation = evaluation};
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]), 0);
    }
    for (int i = 0; i < p->ranks; i++) pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < p->ranks; i++) {
        if (!ranks[i].code) continue;
        *e = ranks[i].error;
        return ranks[i].code;
    }
    return TS_OK;
}

void parity_begin(parity *p) {
    ts_error e = {0};
    if (p->transport) p->transport->ops->reset(p->transport, 0);
    must(parity_evaluate(p, (ts_evaluation){0}, &e), &e);
}

void parity_run(parity *p, int count) {
    ts_error e = {0};
    parity_begin(p);
    for (unsigned i = 1; i <= (unsigned)count; i++)
        must(parity_evaluate(p, (ts_evaluation){.number = i, .fresh = true}, &e), &e);
}

ts_program *parity_program(parity *p, int index) {
    return p->program[index];
}
ts_transport *parity_transport(parity *p) {
    return p->transport;
}

/* ---- lists of tests ---- */

void test_add(test_list *l, void (*test)(void **state), const void *state, size_t size, const char *format,
              ...) {
    char name[200];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    void *copy = size ? malloc(size) : NULL;
    if (!ts_grow(&l->items, &l->capacity, l->count + 1, sizeof *l->items) ||
        !ts_grow(&l->states, &l->state_capacity, l->count + 1, sizeof *l->states) || (size && !copy))
        abort();
    if (size) memcpy(copy, state, size);
    l->states[l->count] = copy;
    l->items[l->count++] = (struct CMUnitTest){
        .name = ts_strdup(name), .test_func = test, .initial_state = size ? copy : (void *)(uintptr_t)state};
}

int test_run(test_list *l, const char *group) {
    const char *filter = getenv("TS_PARITY_FILTER");
    if (filter) cmocka_set_test_filter(filter);
    int failed = _cmocka_run_group_tests(group, l->items, l->count, NULL, NULL);
    for (size_t i = 0; i < l->count; i++) {
        free((char *)(uintptr_t)l->items[i].name);
        free(l->states[i]);
    }
    free(l->items);
    free(l->states);
    return failed;
}
