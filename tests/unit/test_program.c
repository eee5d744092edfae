/* Small programs whose every value is known: what the builder refuses, where tensors lie, what is exchanged.
 */
#include "../parity/parity.h"

#include <unistd.h>

/* A parameter file of its own: matrices that add and copy, and a convolution that takes the pixel above plus
 * the pixel below. */
static ts_weights *weights(void) {
    static const float identity[4] = {1, 0, 0, 1}, wide[6] = {1, 0, 0, 1, 1, 1};
    static const float vertical[9] = {0, 1, 0, 0, 0, 0, 0, 1, 0}, zeros[3] = {0};
    const ts_file_tensor tensors[] = {
        {"copy.weight", TS_F32, 2, {2, 2}, identity, sizeof identity},
        {"copy.bias", TS_F32, 1, {2}, zeros, 2 * sizeof(float)},
        {"wide.weight", TS_F32, 2, {3, 2}, wide, sizeof wide},
        {"wide.bias", TS_F32, 1, {3}, zeros, 3 * sizeof(float)},
        {"vertical.weight", TS_F32, 4, {1, 1, 3, 3}, vertical, sizeof vertical},
        {"vertical.bias", TS_F32, 1, {1}, zeros, sizeof(float)},
    };
    char folder[] = "/tmp/program-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *path = ts_path_join(folder, "model.safetensors");
    ts_weights *w = NULL;
    ts_error e = {0};
    must(ts_safetensors_write(path, tensors, sizeof tensors / sizeof *tensors, &e), &e);
    ts_code rc = ts_weights_open(folder, &w, &e);
    unlink(path);
    rmdir(folder);
    free(path);
    must(rc, &e);
    return w;
}

static const ts_scope copy = {.path = "copy"}, vertical = {.path = "vertical"};

static parity_spec spec_of(const ts_backend *backend, int height, int ranks,
                           void (*model)(ts_builder *, void *)) {
    parity_spec s = {
        .backend = backend, .weights = weights(), .model = model, .build = {.batch = 1, .dtype = TS_F32}};
    assert_int_equal(ts_rows_split(height, 0, ranks, &s.build.rows), ranks);
    return s;
}

/* ---- what is refused ---- */

/* Compiles and expects a failure; the message is in e. */
static ts_code refusal(const ts_backend *backend, void (*model)(ts_builder *b), ts_error *e) {
    ts_build build = {.batch = 1, .dtype = TS_F32, .rows = {.n = 1, .bound = {0, 4}}};
    ts_weights *w = weights();
    ts_store *store = NULL;
    ts_device *device = NULL;
    ts_arena *arena = NULL;
    ts_program *p = NULL;
    assert_int_equal(ts_store_new(&store), TS_OK);
    must(backend->open(0, 1, &device, e), e);
    must(ts_arena_new(device, &arena, e), e);
    ts_builder *b = ts_builder_new(&build, w);
    model(b);
    ts_code rc = ts_program_compile(b, arena, store, &p, e);
    assert_null(p);
    ts_arena_free(arena);
    backend->close(device);
    ts_store_free(store);
    ts_weights_free(w);
    return rc;
}

static void missing(ts_builder *b) {
    ts_buf x = ts_input(b, "x", 1, 2, TS_F32);
    x = ts_linear(b, (ts_scope){.path = "nowhere"}, x, 2, TS_NO_BUF);
    assert_true(x.id < 0);
    /* What follows the first error neither crashes nor changes it. */
    x = ts_group_norm(b, (ts_scope){.path = "later"}, x, TS_NO_BUF, 0, 1e-5, TS_ACT_SILU);
    x = ts_self_attention(b, (ts_scope){.path = "later"}, (ts_qkv){"q", "k", "v", true}, x, 3);
    x = ts_upsample(b, copy, ts_conv3x3(b, vertical, x, 1, TS_NO_BUF, 0), 8, 8);
    x = ts_add(b, copy, ts_geglu(b, copy, x), ts_concat(b, copy, x, x));
    ts_builder_fail(b, TS_EINVAL, "later");
    ts_output(b, "y", x);
}

static void a_missing_parameter_is_named(void **state) {
    ts_error e = {0};
    assert_int_equal(refusal(*state, missing, &e), TS_EFORMAT);
    assert_non_null(strstr(e.message, "nowhere.weight"));
    assert_null(strstr(e.message, "later"));
}

static void misshapen(ts_builder *b) {
    ts_output(b, "y", ts_linear(b, copy, ts_input(b, "x", 1, 5, TS_F32), 2, TS_NO_BUF));
}

static void a_parameter_of_another_shape_is_named(void **state) {
    ts_error e = {0};
    assert_int_not_equal(refusal(*state, misshapen, &e), TS_OK);
    assert_non_null(strstr(e.message, "copy"));
}

static void unfit_groups(ts_builder *b) {
    ts_group_norm(b, (ts_scope){.path = "norm"}, ts_input_picture(b, "x", 4, 6, TS_F32), TS_NO_BUF, 4, 1e-5,
                  TS_ACT_NONE);
}

static void channels_that_do_not_divide_are_refused(void **state) {
    ts_error e = {0};
    assert_int_equal(refusal(*state, unfit_groups, &e), TS_EFORMAT);
    assert_non_null(strstr(e.message, "norm"));
}

static void a_scope_that_is_too_long_is_no_overflow(void **state) {
    (void)state;
    ts_scope s = {0};
    for (int i = 0; i < 100; i++) s = ts_sub(s, "a_rather_long_component_name_%d", i);
    assert_true(strlen(s.path) < sizeof s.path);
}

/* ---- memory ---- */

enum { SIDE = 64, LINKS = 20 };

/* Copies of copies of *arg x *arg pixels. */
static void chain(ts_builder *b, void *arg) {
    ts_buf x = ts_input_picture(b, "x", *(const int *)arg, 2, TS_F32);
    for (int i = 0; i < LINKS; i++) x = ts_linear(b, copy, x, 2, TS_NO_BUF);
    ts_output(b, "y", x);
}

static tensor ramp(int h, int w, int c, float first) {
    tensor t = {1, c, h, w, ts_array0(float, h *w *c)};
    assert_non_null(t.data);
    for (int i = 0; i < h * w * c; i++) t.data[i] = first + (float)i;
    return t;
}

static void tensors_whose_lives_do_not_meet_share_memory(void **state) {
    int side = SIDE;
    parity_spec spec = spec_of(*state, side, 1, chain);
    spec.arg = &side;
    parity *p = parity_new(&spec);
    tensor x = ramp(SIDE, SIDE, 2, 1);
    parity_put(p, "x", x);
    parity_run(p, 1);
    tensor y = parity_get(p, "y");
    assert_close("a copy of a copy", y, x, 0);
    ts_program_stats s;
    ts_program_get_stats(parity_program(p, 0), &s);
    /* Input and output stay, between them there are two at a time; the kernels' scratch is less than a fifth.
     */
    if (s.arena_bytes > 5 * SIDE * SIDE * 2 * sizeof(float)) fail_msg("%zu bytes", s.arena_bytes);
    assert_true(s.flops_fresh == (double)LINKS * SIDE * SIDE * 2 * 2 * 2);
    assert_null(ts_program_tensor(parity_program(p, 0), "no such tensor", NULL));
    tensor_free(x);
    tensor_free(y);
    parity_free(p);
    ts_weights_free(spec.weights);
}

static void once(ts_builder *b, void *arg) {
    (void)arg;
    ts_buf x = ts_input_picture(b, "x", 4, 2, TS_F32);
    ts_builder_once_begin(b);
    ts_buf k = ts_linear(b, copy, ts_input_picture(b, "k", 4, 2, TS_F32), 2, TS_NO_BUF);
    ts_builder_once_end(b);
    for (int i = 0; i < 5; i++) x = ts_linear(b, copy, x, 2, TS_NO_BUF);
    ts_output(b, "y", ts_add(b, (ts_scope){.path = "add"}, x, k));
}

static void what_runs_once_stays(void **state) {
    parity_spec spec = spec_of(*state, 4, 1, once);
    parity *p = parity_new(&spec);
    ts_error e = {0};
    tensor k = ramp(4, 4, 2, 100), x = ramp(4, 4, 2, 0);
    parity_put(p, "k", k);
    parity_begin(p);
    for (unsigned t = 1; t <= 3; t++) {
        for (int i = 0; i < 32; i++) x.data[i] = (float)(t * 1000) + (float)i;
        parity_put(p, "x", x);
        must(parity_evaluate(p, (ts_evaluation){.number = t, .fresh = true}, &e), &e);
        tensor y = parity_get(p, "y");
        for (int i = 0; i < 32; i++) assert_true(y.data[i] == x.data[i] + k.data[i]);
        tensor_free(y);
    }
    tensor_free(k);
    tensor_free(x);
    parity_free(p);
    ts_weights_free(spec.weights);
}

/* ---- programs of one device ---- */

static ts_program *compile_chain(ts_weights *w, int side, ts_arena *arena, ts_store *store) {
    ts_error e = {0};
    ts_program *p = NULL;
    ts_build build = {.batch = 1, .dtype = TS_F32, .rows = {.n = 1, .bound = {0, side}}};
    ts_builder *b = ts_builder_new(&build, w);
    assert_non_null(b);
    chain(b, &side);
    must(ts_program_compile(b, arena, store, &p, &e), &e);
    return p;
}

static void run_chain(ts_program *p, int side, float first) {
    ts_error e = {0};
    float *x = ts_program_tensor(p, "x", NULL);
    for (int i = 0; i < side * side * 2; i++) x[i] = first + (float)i;
    must(ts_program_run(p, NULL, 0, (ts_evaluation){.number = 1, .fresh = true}, &e), &e);
    const float *y = ts_program_tensor(p, "y", NULL);
    for (int i = 0; i < side * side * 2; i++) assert_true(y[i] == first + (float)i);
}

static size_t needs(const ts_program *p) {
    ts_program_stats s;
    ts_program_get_stats(p, &s);
    return s.arena_bytes;
}

static void programs_of_a_device_share_its_arena(void **state) {
    const ts_backend *backend = *state;
    ts_error e = {0};
    ts_weights *w = weights();
    ts_store *store = NULL;
    ts_device *device = NULL;
    ts_arena *arena = NULL;
    assert_int_equal(ts_store_new(&store), TS_OK);
    must(backend->open(0, 1, &device, &e), &e);
    must(ts_arena_new(device, &arena, &e), &e);
    ts_program *small = compile_chain(w, 4, arena, store);
    assert_true(ts_arena_bytes(arena) == needs(small));
    run_chain(small, 4, 100);
    ts_program *large = compile_chain(w, SIDE, arena, store);
    assert_true(needs(large) > needs(small));
    assert_true(ts_arena_bytes(arena) == needs(large));
    /* By turns, and where the arena has moved. */
    run_chain(large, SIDE, 200);
    run_chain(small, 4, 300);
    run_chain(large, SIDE, 400);
    ts_program_free(large);
    ts_arena_shrink(arena, needs(small));
    assert_true(ts_arena_bytes(arena) == needs(small));
    run_chain(small, 4, 500);
    /* More than there is: as before. */
    assert_int_equal(ts_arena_grow(arena, SIZE_MAX / 2, &e), TS_ENOMEM);
    run_chain(small, 4, 600);
    ts_program_free(small);
    ts_arena_free(arena);
    backend->close(device);
    ts_store_free(store);
    ts_weights_free(w);
}

/* ---- halo rows ---- */

enum { W = 3 };

static void above_and_below(ts_builder *b, void *arg) {
    ts_buf x = ts_input_picture(b, "x", W, 1, TS_F32);
    ts_output(b, "y", ts_conv3x3(b, vertical, x, 1, TS_NO_BUF, *(const int *)arg));
}

/* Row r of evaluation t holds 10 t + r + 1; outside of the picture are zeros. */
static float value(int t, int row) {
    return row < 0 || row > 3 ? 0 : (float)(10 * t + row + 1);
}

static void evaluate(parity *p, ts_evaluation ev) {
    tensor x = ramp(4, W, 1, 0);
    ts_error e = {0};
    for (int i = 0; i < 4 * W; i++) x.data[i] = value((int)ev.number, i / W);
    parity_put(p, "x", x);
    tensor_free(x);
    must(parity_evaluate(p, ev, &e), &e);
}

/* Rows of two ranks: 0, 1 and 2, 3. stale: the neighbour's row is of the evaluation before. */
static void hold_rows(parity *p, int t, bool stale, bool alone) {
    tensor y = parity_get(p, "y");
    for (int row = 0; row < 4; row++) {
        float above = value(row == 2 && stale ? t - 1 : t, row - 1);
        float below = value(row == 1 && stale ? t - 1 : t, row + 1);
        if (alone && row == 2) above = 0;
        if (alone && row == 1) below = 0;
        for (int i = 0; i < W; i++)
            if (y.data[row * W + i] != above + below)
                fail_msg("evaluation %d, row %d: %g, not %g", t, row, (double)y.data[row * W + i],
                         (double)(above + below));
    }
    tensor_free(y);
}

static uint64_t sent(parity *p) {
    ts_program_stats s;
    ts_program_get_stats(parity_program(p, 0), &s);
    ts_program_reset_stats(parity_program(p, 0));
    return s.sent_bytes;
}

static void halo_test(const ts_backend *backend, int flags, bool naive) {
    parity_spec spec = spec_of(backend, 4, 2, above_and_below);
    spec.arg = &flags;
    spec.build.displaced = !naive;
    spec.build.naive = naive;
    parity *p = parity_new(&spec);
    const bool stale = !naive && !(flags & TS_CONV_FRESH);
    const uint64_t row = naive ? 0 : W * sizeof(float);
    parity_begin(p);
    sent(p);
    for (int t = 1; t <= 2; t++) {
        evaluate(p, (ts_evaluation){.number = (unsigned)t, .fresh = true, .next_displaced = t == 2});
        hold_rows(p, t, false, naive);
        assert_int_equal(sent(p), row);
    }
    for (int t = 3; t <= 5; t++) {
        evaluate(p, (ts_evaluation){.number = (unsigned)t, .next_displaced = t < 5});
        hold_rows(p, t, stale, naive);
        /* After the last one nobody asks for stale rows. */
        assert_int_equal(sent(p), stale && t == 5 ? 0 : row);
    }
    parity_free(p);
    ts_weights_free(spec.weights);
}

static void displaced_halos_are_of_the_evaluation_before(void **state) {
    halo_test(*state, 0, false);
}

static void fresh_halos_are_always_of_this_evaluation(void **state) {
    halo_test(*state, TS_CONV_FRESH, false);
}

static void naive_patches_see_zeros(void **state) {
    halo_test(*state, 0, true);
}

static void an_aborted_transport_cancels(void **state) {
    int flags = 0;
    parity_spec spec = spec_of(*state, 4, 2, above_and_below);
    spec.arg = &flags;
    parity *p = parity_new(&spec);
    ts_error e = {0};
    parity_begin(p);
    parity_transport(p)->ops->abort(parity_transport(p));
    /* An evaluation that asks for rows that nobody has sent: only the abort ends the wait. */
    assert_int_equal(parity_evaluate(p, (ts_evaluation){.number = 7}, &e), TS_ECANCELLED);
    parity_begin(p);
    evaluate(p, (ts_evaluation){.number = 1, .fresh = true});
    hold_rows(p, 1, false, false);
    parity_free(p);
    ts_weights_free(spec.weights);
}

static void the_profile_names_every_op_that_ran(void **state) {
    int side = SIDE;
    parity_spec spec = spec_of(*state, side, 1, chain);
    spec.arg = &side;
    parity *p = parity_new(&spec);
    ts_buffer text;
    ts_buffer_init(&text, 1 << 16);
    parity_run(p, 3);
    assert_int_equal(ts_program_profile(parity_program(p, 0), &text), TS_OK);
    int lines = 0;
    for (char *line = strtok(ts_buffer_text(&text), "\n"); line; line = strtok(NULL, "\n"), lines++)
        assert_true(strstr(line, "linear") && strstr(line, "copy"));
    assert_int_equal(lines, LINKS);
    ts_buffer_free(&text);
    parity_free(p);
    ts_weights_free(spec.weights);
}

int main(void) {
    static const ts_backend *const backends[] = {&ts_backend_ref, &ts_backend_cpu};
    static const struct {
        void (*test)(void **state);
        const char *name;
    } claims[] = {
#define CLAIM(f) {f, #f}
        CLAIM(a_missing_parameter_is_named),
        CLAIM(a_parameter_of_another_shape_is_named),
        CLAIM(channels_that_do_not_divide_are_refused),
        CLAIM(a_scope_that_is_too_long_is_no_overflow),
        CLAIM(tensors_whose_lives_do_not_meet_share_memory),
        CLAIM(what_runs_once_stays),
        CLAIM(programs_of_a_device_share_its_arena),
        CLAIM(displaced_halos_are_of_the_evaluation_before),
        CLAIM(fresh_halos_are_always_of_this_evaluation),
        CLAIM(naive_patches_see_zeros),
        CLAIM(an_aborted_transport_cancels),
        CLAIM(the_profile_names_every_op_that_ran),
    };
    test_list tests = {0};
    for (int i = 0; i < 2; i++)
        for (size_t k = 0; k < sizeof claims / sizeof *claims; k++)
            test_add(&tests, claims[k].test, backends[i], 0, "%s on %s", claims[k].name, backends[i]->name);
    return test_run(&tests, "program");
}
