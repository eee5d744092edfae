/* Pictures that run together: each is the picture that it would be alone, whoever leaves the batch on the
 * way. */
#include "pictures.h"

#include "engine/group.h"
#include "engine/text.h"

enum { COUNT = 3, STEPS = 9 };

typedef struct batch_case {
    const char *how;
    int ranks;
    ts_parallel parallel;
    const char *sampler;
    int leaves; /* picture 0 goes after this many evaluations; 0: it stays */
} batch_case;

/* Pictures that differ in all that they may. */
static const ts_picture requests[COUNT] = {
    {.params.prompt = "a red house",
     .params.negative = "",
     .params.seed = 1,
     .params.guidance_scale = 3,
     .params.guidance_interval = {0, 0.5}},
    {.params.prompt = "the sea at night",
     .params.negative = "blurry",
     .params.seed = 22,
     .params.guidance_scale = 7.5,
     .params.guidance_rescale = 0.6,
     .params.guidance_interval = {0.2, 0.8}},
    {.params.prompt = "",
     .params.negative = NULL,
     .params.seed = 333,
     .params.guidance_scale = 5,
     .params.guidance_rescale = 1},
};

/* 32 x 256 pixels are 32 rows of the latent and 4 of the deepest level. */
static ts_shape shape_of(const batch_case *k) {
    return (ts_shape){.width = 32,
                      .height = 256,
                      .steps = STEPS,
                      .sampler = ts_sampler_find(k->sampler),
                      .parallel = k->parallel,
                      .dtype = TS_F32,
                      .guided = true};
}

typedef struct album {
    ts_picture pictures[COUNT];
    shot shots[COUNT];
    int given, leaves, last_step;
} album;

static void take(void *arg, ts_picture *picture) {
    album *a = arg;
    shot *s = &a->shots[picture - a->pictures];
    s->error = picture->error;
    s->latents.data = picture->latents_out;
    s->rgb = picture->rgb;
    picture->latents_out = NULL;
    picture->rgb = NULL;
    a->given++;
}

static void step(void *arg, int at, int total) {
    album *a = arg;
    assert_int_equal(total, STEPS);
    assert_int_equal(at, a->last_step + 1);
    a->last_step = at;
    if (at == a->leaves) atomic_store(&a->pictures[0].cancelled, true);
}

static void album_open(album *a, int leaves) {
    *a = (album){.leaves = leaves};
    for (int i = 0; i < COUNT; i++) {
        a->pictures[i].params = requests[i].params;
        a->shots[i].latents = (tensor){1, 4, 32, 4, NULL};
    }
}

static ts_code album_run(album *a, studio s, const batch_case *k, ts_error *e) {
    ts_job job = {.shape = shape_of(k),
                  .pictures = a->pictures,
                  .count = COUNT,
                  .keep_latents = true,
                  .on_step = step,
                  .on_picture = take,
                  .arg = a};
    return ts_group_run(s.group, s.model, &job, e);
}

static void album_free(album *a) {
    for (int i = 0; i < COUNT; i++) shot_free(a->shots[i]);
}

static void hold_alone(const album *a, int i, studio s, const batch_case *k) {
    ts_shape shape = shape_of(k);
    const ts_picture request = {.params = a->pictures[i].params};
    shot alone = studio_shoot(s, &shape, &request);
    must(a->shots[i].error.code, &a->shots[i].error);
    assert_close(request.params.prompt, a->shots[i].latents, alone.latents, 1e-4);
    for (size_t n = 0; n < (size_t)32 * 256 * 3; n++)
        assert_true(abs(a->shots[i].rgb[n] - alone.rgb[n]) <= 1);
    shot_free(alone);
}

static void each_picture_is_as_if_alone(void **state) {
    const batch_case *k = *state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, k->ranks);
    album a;
    ts_error e = {0};
    album_open(&a, k->leaves);
    must(album_run(&a, s, k, &e), &e);
    assert_int_equal(a.given, COUNT);
    assert_int_equal(a.last_step, STEPS);
    if (k->leaves) {
        assert_int_equal(a.shots[0].error.code, TS_ECANCELLED);
        assert_true(!a.shots[0].rgb && !a.shots[0].latents.data);
    }
    for (int i = k->leaves > 0; i < COUNT; i++) hold_alone(&a, i, s, k);
    album_free(&a);
    studio_close(s);
}

static void a_latent_that_is_not_finite_fails_its_picture_only(void **state) {
    const batch_case *k = *state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, k->ranks);
    tensor noise = {1, 4, 32, 4, ts_array0(float, 4 * 32 * 4)};
    assert_non_null(noise.data);
    noise.data[77] = INFINITY;
    album a;
    ts_error e = {0};
    album_open(&a, 0);
    a.pictures[0].latents_in = noise.data;
    must(album_run(&a, s, k, &e), &e);
    assert_int_equal(a.given, COUNT);
    assert_int_equal(a.shots[0].error.code, TS_ENONFINITE);
    assert_null(a.shots[0].rgb);
    for (int i = 1; i < COUNT; i++) hold_alone(&a, i, s, k);
    album_free(&a);
    tensor_free(noise);
    studio_close(s);
}

static void when_all_have_failed_the_job_says_why(void **state) {
    const batch_case *k = *state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, k->ranks);
    tensor noise = {1, 4, 32, 4, ts_array0(float, 4 * 32 * 4)};
    assert_non_null(noise.data);
    noise.data[77] = NAN;
    album a;
    ts_error e = {0};
    album_open(&a, 0);
    for (int i = 0; i < COUNT; i++) a.pictures[i].latents_in = noise.data;
    assert_int_equal(album_run(&a, s, k, &e), TS_ENONFINITE);
    assert_non_null(strstr(e.message, "no longer finite"));
    for (int i = 0; i < COUNT; i++) assert_int_equal(a.shots[i].error.code, TS_ENONFINITE);
    album_free(&a);
    tensor_free(noise);
    studio_close(s);
}

static void when_all_have_left_the_job_is_over(void **state) {
    const batch_case *k = *state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, k->ranks);
    album a;
    ts_error e = {0};
    album_open(&a, 2);
    atomic_store(&a.pictures[1].cancelled, true);
    atomic_store(&a.pictures[2].cancelled, true);
    assert_int_equal(album_run(&a, s, k, &e), TS_ECANCELLED);
    assert_int_equal(a.given, COUNT);
    assert_true(a.last_step < STEPS);
    for (int i = 0; i < COUNT; i++) assert_int_equal(a.shots[i].error.code, TS_ECANCELLED);
    album_free(&a);
    /* The group is as good as new. */
    album_open(&a, 0);
    must(album_run(&a, s, k, &e), &e);
    for (int i = 0; i < COUNT; i++) hold_alone(&a, i, s, k);
    album_free(&a);
    studio_close(s);
}

/* ---- guidance in a part of the steps ---- */

typedef struct interval_case {
    batch_case k;
    ts_interval interval;
    int guided; /* evaluations of STEPS that need unconditional images */
} interval_case;

static double flops_of(studio s, const ts_shape *shape, const ts_picture *request, tensor *ret) {
    shot one = studio_shoot(s, shape, request);
    double sum = 0;
    for (int r = 0; r < one.stats.ranks; r++) sum += one.stats.flops[r];
    if (ret) {
        *ret = one.latents;
        one.latents.data = NULL;
    }
    shot_free(one);
    return sum;
}

static int plans_of(const ts_group *g) {
    int n = 0;
    for (const ts_plan *p = g->plans; p; p = p->next) n++;
    return n;
}

/* A shape has two programs: the U-Net's and the decoder's. The fourth picture is the first one again, and the
 * third the largest. */
static void programs_of_past_shapes_stay_within_their_bytes(void **state) {
    const batch_case *k = *state;
    for (int none = 0; none < 2; none++) {
        studio s = studio_open("pipeline_sd1", &ts_backend_cpu, k->ranks);
        if (none) ts_group_set_program_bytes(s.group, 0);
        shot shots[4];
        size_t arena[4];
        for (int i = 0; i < 4; i++) {
            ts_shape shape = shape_of(k);
            shape.height += 32 * (i % 3);
            const ts_picture request = {.params = {.prompt = "a lake", .negative = "", .guidance_scale = 5}};
            shots[i] = studio_shoot(s, &shape, &request);
            assert_int_equal(plans_of(s.group), none ? 2 : i < 3 ? 2 * (i + 1) : 6);
            arena[i] = ts_arena_bytes(s.group->ranks[0].arena);
        }
        assert_true(arena[2] > arena[0]);
        assert_int_equal(arena[3], arena[none ? 0 : 2]);
        assert_close("the first shape again", shots[0].latents, shots[3].latents, 1e-7);
        for (int i = 0; i < 4; i++) shot_free(shots[i]);
        studio_close(s);
    }
}

static size_t arena_of(const ts_program *p) {
    ts_program_stats s;
    ts_program_get_stats(p, &s);
    return s.arena_bytes;
}

static shot lake(studio s, int width, int height) {
    const ts_picture request = {.params = {.prompt = "a lake", .negative = "", .guidance_scale = 5}};
    const ts_shape shape = {.width = width,
                            .height = height,
                            .steps = 2,
                            .sampler = ts_sampler_find("euler"),
                            .parallel = {.mode = TS_MODE_SINGLE},
                            .dtype = TS_F32,
                            .guided = true};
    return studio_shoot(s, &shape, &request);
}

/* Which a decoder of pictures this small would not be. */
static void an_arena_stays_large_enough_for_texts(void **state) {
    (void)state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, 1);
    const ts_model *m = s.model;
    const ts_picture_params params = {.prompt = "a lake"};
    const size_t n = (size_t)m->text[0].config.positions * (size_t)ts_model_text_width(m);
    const ts_layout layout = {.patches = 1, .branches = 1, .rows = {.n = 1, .bound = {0, 1}}};
    const ts_plan_key key = {.kind = TS_PLAN_DECODER,
                             .model = m,
                             .width = 1,
                             .height = 1,
                             .batch = 1,
                             .dtype = TS_F32,
                             .patches = 1,
                             .branches = 1};
    float *first = ts_array0(float, n), *again = ts_array0(float, n);
    ts_plan *plan = NULL;
    ts_error e = {0};
    ts_group_set_program_bytes(s.group, 0);
    must(ts_text_encode(s.group, m, TS_F32, &params, false, 1, first, NULL, &e), &e);
    must(ts_plan_get(s.group, &key, &layout, &plan, &e), &e);
    assert_true(arena_of(s.group->texts->program) > arena_of(plan->program[0]));
    assert_int_equal(ts_arena_bytes(s.group->ranks[0].arena), arena_of(s.group->texts->program));
    must(ts_text_encode(s.group, m, TS_F32, &params, false, 1, again, NULL, &e), &e);
    assert_memory_equal(again, first, n * sizeof *first);
    free(first);
    free(again);
    studio_close(s);
}

/* What two shapes take together leaves no room for a third one, though its arena is the smallest. */
static void the_arenas_count_against_the_budget_once(void **state) {
    (void)state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, 1);
    shot_free(lake(s, 64, 64));
    shot_free(lake(s, 64, 128));
    size_t bytes = ts_arena_bytes(s.group->ranks[0].arena);
    for (const ts_plan *p = s.group->plans; p; p = p->next) bytes += p->bytes;
    ts_group_set_program_bytes(s.group, bytes);
    shot_free(lake(s, 64, 64));
    assert_int_equal(plans_of(s.group), 4);
    shot_free(lake(s, 64, 32));
    assert_int_equal(plans_of(s.group), 4);
    studio_close(s);
}

static void shapes_are_equal_in_all_that_pictures_share(void **state) {
    (void)state;
    const ts_shape shape = {.width = 64, .height = 64, .steps = 4, .sampler = ts_sampler_find("ddim")};
    ts_shape other[] = {shape, shape, shape, shape, shape, shape, shape, shape, shape, shape};
    assert_true(ts_shape_equal(&shape, &other[0]));
    other[1].width = 72;
    other[2].steps = 5;
    other[3].sampler = ts_sampler_find("tcd");
    other[4].scheduler = TS_SCHEDULER_KARRAS;
    other[5].has_eta = true; /* 0 is not the same as unsaid: another sampler's own is another */
    other[6].has_eta = true, other[6].eta = 0.5;
    other[7].guided = true;
    other[8].dtype = TS_BF16;
    other[9].parallel.partial = 0.5;
    for (int i = 0; i < 10; i++)
        for (int k = i + 1; k < 10; k++) assert_false(ts_shape_equal(&other[i], &other[k]));
}

/* In a batch with a picture that is guided throughout, the unconditional images are there all the time: that
 * is the picture that one has which computes them only where they count. */
static void unconditional_images_run_only_where_they_count(void **state) {
    const interval_case *c = *state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, c->k.ranks);
    album a;
    ts_error e = {0};
    album_open(&a, 0);
    a.pictures[0].params.guidance_interval = c->interval;
    must(album_run(&a, s, &c->k, &e), &e);
    must(a.shots[0].error.code, &a.shots[0].error);
    ts_picture request = {.params = requests[0].params};
    ts_shape shape = shape_of(&c->k), plain = shape;
    tensor latents;
    plain.guided = false;
    plain.parallel.cfg_split = TS_CFG_SPLIT_OFF;
    request.params.guidance_interval = c->interval;
    const double some = flops_of(s, &shape, &request, &latents);
    request.params.guidance_interval = (ts_interval){0};
    const double all = flops_of(s, &shape, &request, NULL), none = flops_of(s, &plain, &request, NULL);
    assert_close(c->k.how, latents, a.shots[0].latents, 1e-4);
    /* Each leg computes the text's keys and values again, which is less than an evaluation here. */
    const double evaluation = (all - none) / STEPS;
    assert_true(fabs(some - (none + evaluation * c->guided)) < 0.8 * evaluation);
    tensor_free(latents);
    album_free(&a);
    studio_close(s);
}

/* The first picture is guided throughout. When it leaves, those that stay move up, and their guidance ends,
 * or begins later, at the same time. */
static void a_batch_shrinks_where_guidance_ends(void **state) {
    const interval_case *c = *state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, c->k.ranks);
    album a;
    ts_error e = {0};
    album_open(&a, c->k.leaves);
    a.pictures[0].params.guidance_interval = (ts_interval){0};
    a.pictures[1].params.guidance_interval = a.pictures[2].params.guidance_interval = c->interval;
    must(album_run(&a, s, &c->k, &e), &e);
    assert_int_equal(a.shots[0].error.code, TS_ECANCELLED);
    for (int i = 1; i < COUNT; i++) hold_alone(&a, i, s, &c->k);
    album_free(&a);
    studio_close(s);
}

static void add_intervals(test_list *tests) {
#define PCPP(w, norm)                                                                                        \
    {                                                                                                        \
        .mode = TS_MODE_PCPP, .partial = 0.3, .warmup = w, .group_norm = TS_GROUP_NORM_##norm,               \
        .cfg_split = TS_CFG_SPLIT_OFF                                                                        \
    }
    static const interval_case cases[] = {
        {{"one rank", 1, {.mode = TS_MODE_SINGLE}, "dpmpp_2m", 0}, {0.34, 0.67}, 3},
        {{"one rank", 1, {.mode = TS_MODE_SINGLE}, "euler_a", 0}, {0.45, 0.78}, 3 + 2},
        {{"one rank, never", 1, {.mode = TS_MODE_SINGLE}, "euler", 0}, {0.78, 0.79}, 0},
        {{"two ranks in sync", 2, {.mode = TS_MODE_SYNC, .cfg_split = TS_CFG_SPLIT_OFF}, "euler", 0},
         {0.34, 0.67},
         3},
        {{"two ranks, naive", 2, {.mode = TS_MODE_NAIVE, .cfg_split = TS_CFG_SPLIT_OFF}, "ddim", 0},
         {0.34, 0.67},
         3},
        {{"three ranks, pcpp, it begins in the warm-up", 3, PCPP(3, CORRECTED), "ddim", 0}, {0.34, 0.67}, 3},
        {{"three ranks, pcpp, it begins after the warm-up", 3, PCPP(2, CORRECTED), "ddim", 0},
         {0.34, 0.67},
         3 + 3},
        {{"three ranks, pcpp, stale", 3, PCPP(3, STALE), "ddim", 0}, {0.34, 0.67}, 3},
        {{"two branches", 2, {.mode = TS_MODE_PCPP, .cfg_split = TS_CFG_SPLIT_ON}, "ddim", 0},
         {0.34, 0.67},
         STEPS},
    };
    static const interval_case shrinking[] = {
        {{"one rank", 1, {.mode = TS_MODE_SINGLE}, "euler", 3}, {0, 0.5}, 0},
        {{"one rank", 1, {.mode = TS_MODE_SINGLE}, "euler", 1}, {0.78, 1}, 0},
        {{"three ranks, pcpp, corrected", 3, PCPP(1, CORRECTED), "ddim", 3}, {0, 0.5}, 0},
        {{"three ranks, pcpp, stale", 3, PCPP(1, STALE), "ddim", 3}, {0, 0.5}, 0},
        {{"three ranks, pcpp, it begins in the warm-up", 3, PCPP(7, CORRECTED), "ddim", 1}, {0.78, 1}, 0},
        {{"two branches", 2, {.mode = TS_MODE_PCPP, .cfg_split = TS_CFG_SPLIT_ON}, "ddim", 3}, {0, 0.5}, 0},
    };
#undef PCPP
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        test_add(tests, unconditional_images_run_only_where_they_count, &cases[i], sizeof cases[i],
                 "%s, %s: guided from %g to %g", cases[i].k.how, cases[i].k.sampler, cases[i].interval.from,
                 cases[i].interval.to);
    for (size_t i = 0; i < sizeof shrinking / sizeof *shrinking; i++)
        test_add(tests, a_batch_shrinks_where_guidance_ends, &shrinking[i], sizeof shrinking[i],
                 "%s, %s: one leaves after %d, the others are guided from %g to %g", shrinking[i].k.how,
                 shrinking[i].k.sampler, shrinking[i].k.leaves, shrinking[i].interval.from,
                 shrinking[i].interval.to);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const batch_case cases[] = {
        {"one rank", 1, {.mode = TS_MODE_SINGLE}, "dpmpp_2m"},
        {"two ranks in sync", 2, {.mode = TS_MODE_SYNC, .cfg_split = TS_CFG_SPLIT_OFF}, "euler"},
        {"three ranks, pcpp, corrected",
         3,
         {.mode = TS_MODE_PCPP,
          .partial = 0.3,
          .warmup = 1,
          .group_norm = TS_GROUP_NORM_CORRECTED,
          .cfg_split = TS_CFG_SPLIT_OFF},
         "dpmpp_2m"},
        {"two ranks, distrifusion, stale",
         2,
         {.mode = TS_MODE_DISTRIFUSION,
          .warmup = 2,
          .group_norm = TS_GROUP_NORM_STALE,
          .cfg_split = TS_CFG_SPLIT_OFF},
         "ddim"},
        {"two ranks, naive", 2, {.mode = TS_MODE_NAIVE, .cfg_split = TS_CFG_SPLIT_OFF}, "ddim"},
        {"two branches", 2, {.mode = TS_MODE_PCPP, .cfg_split = TS_CFG_SPLIT_ON}, "dpmpp_2m"},
        {"two branches of two patches, pcpp",
         4,
         {.mode = TS_MODE_PCPP,
          .partial = 0.3,
          .warmup = 0,
          .group_norm = TS_GROUP_NORM_STALE,
          .cfg_split = TS_CFG_SPLIT_ON},
         "dpmpp_2m"},
        {"two ranks in sync", 2, {.mode = TS_MODE_SYNC, .cfg_split = TS_CFG_SPLIT_OFF}, "dpmpp_2m_sde"},
        {"two branches of two patches, sync",
         4,
         {.mode = TS_MODE_SYNC, .cfg_split = TS_CFG_SPLIT_ON},
         "euler_a"},
        {"two branches of two patches, pcpp",
         4,
         {.mode = TS_MODE_PCPP, .partial = 0.3, .warmup = 1, .cfg_split = TS_CFG_SPLIT_ON},
         "time_shift"},
    };
    test_list tests = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        batch_case k = cases[i];
        test_add(&tests, each_picture_is_as_if_alone, &k, sizeof k, "%s, %s: each picture is as if alone",
                 k.how, k.sampler);
        /* During the warm-up, after it, and too late for a smaller batch to be worth it. */
        static const int leaves[] = {1, 3, STEPS - 1};
        for (int l = 0; l < 3; l++) {
            k.leaves = leaves[l];
            test_add(&tests, each_picture_is_as_if_alone, &k, sizeof k,
                     "%s, %s: one that leaves after %d takes nothing along", k.how, k.sampler, k.leaves);
        }
        test_add(&tests, a_latent_that_is_not_finite_fails_its_picture_only, &k, sizeof k,
                 "%s, %s: a latent that is not finite fails its picture only", k.how, k.sampler);
        test_add(&tests, when_all_have_failed_the_job_says_why, &k, sizeof k,
                 "%s, %s: when all have failed the job says why", k.how, k.sampler);
        test_add(&tests, when_all_have_left_the_job_is_over, &k, sizeof k,
                 "%s, %s: when all have left the job is over", k.how, k.sampler);
    }
    test_add(&tests, an_arena_stays_large_enough_for_texts, NULL, 0, "an arena stays large enough for texts");
    test_add(&tests, the_arenas_count_against_the_budget_once, NULL, 0,
             "the arenas count against the budget once");
    test_add(&tests, shapes_are_equal_in_all_that_pictures_share, NULL, 0,
             "shapes are equal in all that pictures share");
    test_add(&tests, programs_of_past_shapes_stay_within_their_bytes, &cases[0], sizeof cases[0],
             "programs of past shapes stay within their bytes");
    add_intervals(&tests);
    return test_run(&tests, "batches");
}
