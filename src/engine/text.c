#include "engine/text.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/prompt.h"
#include "kernels/convert.h"
#include "kernels/param.h"

void ts_texts_free(ts_group *g, const ts_model *model) {
    ts_text_program *gone = NULL;
    pthread_mutex_lock(&g->kept);
    for (ts_text_program **at = &g->texts, *t; (t = *at);) {
        if (model && t->model != model) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        t->next = gone;
        gone = t;
    }
    pthread_mutex_unlock(&g->kept);
    for (ts_text_program *t = gone, *next; t; t = next) {
        next = t->next;
        ts_program_free(t->program);
        free(t);
    }
}

/* Programs that a group keeps; clip_skip multiplies them. */
#define KEPT 16

/* Where a pipeline takes its text: SD after the last layer and the final norm, XL before the last layer,
 * without it; XL's second encoder is read to its end for the pooled vector. (diffusers' encode_prompt) */
static ts_clip_reading reading_of(const ts_model *m, int encoder, int clip_skip) {
    return (ts_clip_reading){.layers = m->text[encoder].config.layers - (m->xl ? 1 : 0) - clip_skip,
                             .norm = !m->xl,
                             .last = m->xl && encoder == 1};
}

static ts_code check_sizes(const ts_model *m, const ts_size_condition *s, ts_error *e) {
    const struct {
        const char *name;
        int x, y;
    } pairs[] = {{"original_size", s->original_width, s->original_height},
                 {"crop", s->crop_left, s->crop_top},
                 {"target_size", s->target_width, s->target_height}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const char *name = pairs[i].name;
        if (!pairs[i].x && !pairs[i].y) continue;
        if (!m->xl)
            return ts_fail_param(e, TS_EINVAL, name, "%s is for XL models, which %s is not", name, m->id);
        const int least = strcmp(name, "crop") ? 1 : 0;
        if (pairs[i].x < least || pairs[i].y < least || pairs[i].x > TS_MAX_SIZE || pairs[i].y > TS_MAX_SIZE)
            return ts_fail_param(e, TS_EINVAL, name, "%s must be two numbers from %d to %d", name, least,
                                 TS_MAX_SIZE);
    }
    return TS_OK;
}

ts_code ts_model_check_params(const ts_model *m, const ts_picture_params *p, ts_error *e) {
    int most = INT_MAX;
    for (int i = 0; i < m->text_count; i++) {
        int layers = reading_of(m, i, 0).layers;
        if (layers < most) most = layers;
    }
    if (p->clip_skip < 0 || p->clip_skip > most)
        return ts_fail_param(e, TS_EINVAL, "clip_skip", "clip_skip must be 0 to %d for this model, not %d",
                             most, p->clip_skip);
    return check_sizes(m, &p->sizes, e);
}

typedef struct encoding {
    ts_group *group;
    const ts_model *model;
    int encoder;
    ts_clip_reading reading;
    ts_dtype dtype;
    const int32_t *ids;   /* of one chunk */
    const float *weights; /* of its tokens; NULL: no emphasis */
    float *text;          /* the encoder's columns of each row */
    float *pooled;
    ts_code code;
    ts_error *error;
} encoding;

static bool serves(const ts_text_program *p, const encoding *c, const ts_model *owner) {
    return p->model == owner && p->encoder == c->encoder && p->layers == c->reading.layers &&
           p->dtype == c->dtype;
}

/* Takes the program out of the list, if it is there; drops the least recently used one where there are too
 * many. */
static ts_text_program *take_program(ts_group *g, const encoding *c, const ts_model *owner) {
    pthread_mutex_lock(&g->kept);
    ts_text_program **at = &g->texts, *found = NULL;
    for (int n = 1; *at; n++) {
        ts_text_program *p = *at;
        if (!found && serves(p, c, owner)) {
            found = p;
            *at = p->next;
        } else if (n == KEPT && !found) {
            *at = p->next;
            ts_program_free(p->program);
            free(p);
        } else {
            at = &p->next;
        }
    }
    pthread_mutex_unlock(&g->kept);
    return found;
}

static ts_code program_for(encoding *c, ts_rank *rank, ts_program **ret) {
    ts_group *g = c->group;
    const ts_text_model *t = &c->model->text[c->encoder];
    const ts_model *owner = ts_model_owner(c->model, t->weights);
    ts_text_program *p = take_program(g, c, owner);
    if (p) goto found;
    p = ts_new0(ts_text_program);
    if (!p) return ts_fail(c->error, TS_ENOMEM, "compiling a text encoder");
    *p = (ts_text_program){
        .model = owner, .encoder = c->encoder, .layers = c->reading.layers, .dtype = c->dtype};
    ts_build build = {.batch = 1, .dtype = c->dtype, .rows = {.n = 1, .bound = {0, 1}}};
    ts_builder *b = ts_builder_new(&build, t->weights);
    if (b) ts_clip_build(b, &t->config, &c->reading);
    ts_code rc = ts_program_compile(b, rank->arena, ts_model_store(c->model, rank->device->backend),
                                    &p->program, c->error);
    ts_model_rest(owner);
    if (rc) {
        free(p);
        return rc;
    }
found:
    pthread_mutex_lock(&g->kept);
    p->next = g->texts;
    g->texts = p;
    pthread_mutex_unlock(&g->kept);
    *ret = p->program;
    return TS_OK;
}

/* Where the pooled vector is taken: at the end token; for configs that still say 2, at the largest id of the
 * vocabulary. */
static int end_position(const ts_text_model *t, const int32_t *ids) {
    const int eos = t->config.eos_token;
    int at = 0;
    for (int i = 0; i < t->config.positions; i++) {
        if (eos != 2 && ids[i] == eos) return i;
        if (eos == 2 && ids[i] > ids[at] && ts_tokenizer_row(t->tokenizer, ids[i]) < 0) at = i;
    }
    return at;
}

/* pooled = text_projection * hidden; no bias. Once a prompt, on the host, from the store's copy. */
static ts_code project(const encoding *c, const ts_backend *backend, const float *hidden) {
    const ts_text_model *t = &c->model->text[c->encoder];
    const int n = t->config.projection, width = t->config.hidden;
    const ts_param *w = ts_weights_find(t->weights, "text_projection.weight"); /* verified: n x width */
    const float *row;
    ts_code rc = ts_param_f32(ts_model_store(c->model, backend), w, &row, c->error);
    if (rc) return rc;
    for (int i = 0; i < n; i++, row += width) {
        double sum = 0;
        for (int k = 0; k < width; k++) sum += (double)row[k] * (double)hidden[k];
        c->pooled[i] = (float)sum;
    }
    return TS_OK;
}

/* The encoder's columns of a chunk, as they were written for the one before. */
static void copy_columns(const encoding *c, const float *from) {
    const ts_clip_config *config = &c->model->text[c->encoder].config;
    const int stride = ts_model_text_width(c->model);
    for (int i = 0; i < config->positions; i++)
        memcpy(c->text + (size_t)i * (size_t)stride, from + (size_t)i * (size_t)stride,
               (size_t)config->hidden * sizeof *from);
}

/* Names have no rows in the encoder's table: their vectors are put in their places. */
static void fill_ids(const ts_text_model *t, const int32_t *from, int32_t *ids, float *vectors) {
    const size_t width = (size_t)t->config.hidden;
    for (int i = 0; i < t->config.positions; i++) {
        const int row = ts_tokenizer_row(t->tokenizer, from[i]);
        ids[i] = row < 0 ? from[i] : -1;
        if (row >= 0)
            memcpy(vectors + (size_t)i * width, t->vectors + (size_t)row * width, width * sizeof *vectors);
    }
}

static double mean_of(const encoding *c) {
    const ts_clip_config *config = &c->model->text[c->encoder].config;
    const int stride = ts_model_text_width(c->model);
    double sum = 0;
    for (int i = 0; i < config->positions; i++)
        for (int k = 0; k < config->hidden; k++)
            sum += (double)c->text[(size_t)i * (size_t)stride + (size_t)k];
    return sum / ((double)config->positions * config->hidden);
}

static void scale_row(const encoding *c, int row, float factor) {
    float *at = c->text + (size_t)row * (size_t)ts_model_text_width(c->model);
    for (int k = 0; k < c->model->text[c->encoder].config.hidden; k++) at[k] *= factor;
}

/* Each token's text is multiplied by its weight, and then the mean of the chunk brought back to what it was:
 * what AUTOMATIC1111 calls the original emphasis. */
static void emphasise(const encoding *c) {
    const int positions = c->model->text[c->encoder].config.positions;
    bool any = false;
    for (int i = 0; c->weights && i < positions; i++) any = any || c->weights[i] != 1;
    if (!any) return;
    const double mean = mean_of(c);
    for (int i = 0; i < positions; i++) scale_row(c, i, c->weights[i]);
    const float back = (float)(mean / mean_of(c));
    for (int i = 0; i < positions && isfinite(back); i++) scale_row(c, i, back);
}

static void encode(void *arg, ts_rank *rank) {
    encoding *c = arg;
    const ts_model *m = c->model;
    const ts_text_model *t = &m->text[c->encoder];
    const int positions = t->config.positions, width = t->config.hidden, stride = ts_model_text_width(m);
    ts_program *p = NULL;
    float *hidden = NULL;
    ts_code rc = program_for(c, rank, &p);
    if (rc) goto done;
    fill_ids(t, c->ids, ts_program_tensor(p, "ids", NULL), ts_program_tensor(p, "vectors", NULL));
    rc = ts_program_run(p, NULL, 0, (ts_evaluation){.number = 1, .fresh = true}, c->error);
    if (rc) goto done;
    const char *from = ts_program_tensor(p, "text", NULL);
    for (int i = 0; i < positions; i++, from += (size_t)width * ts_dtype_size(c->dtype))
        ts_convert(c->dtype, from, TS_F32, c->text + (size_t)i * (size_t)stride, (size_t)width);
    emphasise(c);
    if (!c->pooled) goto done;
    hidden = ts_array0(float, (size_t)width);
    if (!hidden) {
        rc = ts_fail(c->error, TS_ENOMEM, "encoding a prompt");
        goto done;
    }
    size_t at = (size_t)end_position(t, c->ids) * (size_t)width * ts_dtype_size(c->dtype);
    ts_convert(c->dtype, (const char *)ts_program_tensor(p, "last", NULL) + at, TS_F32, hidden,
               (size_t)width);
    rc = project(c, rank->device->backend, hidden);
done:
    free(hidden);
    c->code = rc;
}

/* The prompt as encoder i of the model takes it, its ids checked against the encoder's table. */
static ts_code read_prompt(const ts_model *m, int i, const ts_picture_params *params, bool negative,
                           int chunks, ts_prompt *ret, ts_error *e) {
    const ts_text_model *t = &m->text[i];
    ts_prompt p = {0};
    ts_code rc = ts_prompt_read(t->tokenizer, t->config.positions, params, negative, chunks, &p, e);
    for (int k = 0; k < p.chunks * p.positions && !rc; k++)
        if ((p.ids[k] < 0 || p.ids[k] >= t->config.vocabulary) &&
            ts_tokenizer_row(t->tokenizer, p.ids[k]) < 0)
            rc = ts_fail(e, TS_EFORMAT, "%s: the tokenizer has ids beyond the encoder's vocabulary", m->path);
    if (rc)
        ts_prompt_free(&p);
    else
        *ret = p;
    return rc;
}

/* All chunks of a prompt through one encoder. */
static ts_code encode_chunks(encoding *c, const ts_prompt *p) {
    const size_t rows = (size_t)p->positions * (size_t)ts_model_text_width(c->model);
    for (int i = 0; i < p->chunks; i++, c->text += rows) {
        const int32_t *ids = p->ids + i * p->positions;
        const float *weights = p->weights ? p->weights + i * p->positions : NULL;
        if (c->ids && !memcmp(ids, c->ids, (size_t)p->positions * sizeof *ids) &&
            (!weights || !memcmp(weights, c->weights, (size_t)p->positions * sizeof *weights))) {
            /* The empty chunks at the end of the shorter prompt, mostly. */
            copy_columns(c, c->text - rows);
            continue;
        }
        c->ids = ids;
        c->weights = weights;
        ts_group_each(c->group, 1, encode, c);
        if (c->code) return c->code;
        c->pooled = NULL;
    }
    return TS_OK;
}

ts_code ts_text_encode(ts_group *g, const ts_model *m, ts_dtype dtype, const ts_picture_params *params,
                       bool negative, int chunks, float *text, float *pooled, ts_error *e) {
    const int positions = m->text[0].config.positions, stride = ts_model_text_width(m);
    if (negative && !params->negative && m->zeros_for_absent) {
        memset(text, 0, (size_t)chunks * (size_t)positions * (size_t)stride * sizeof *text);
        if (pooled) memset(pooled, 0, (size_t)ts_model_pooled_width(m) * sizeof *pooled);
        return TS_OK;
    }
    ts_code rc = ts_model_check_params(m, params, e);
    int column = 0;
    for (int i = 0; i < m->text_count && !rc; i++) {
        ts_prompt p = {0};
        rc = read_prompt(m, i, params, negative, chunks, &p, e);
        if (rc) break;
        encoding c = {.group = g,
                      .model = m,
                      .encoder = i,
                      .reading = reading_of(m, i, negative ? 0 : params->clip_skip),
                      .dtype = dtype,
                      .text = text + column,
                      .pooled = m->xl && i == 1 ? pooled : NULL,
                      .error = e};
        rc = encode_chunks(&c, &p);
        ts_prompt_free(&p);
        column += m->text[i].config.hidden;
    }
    return rc;
}

ts_code ts_model_measure_prompts(const ts_model *m, const ts_picture_params *params, bool guided, int most,
                                 int *ret_chunks, int *ret_tokens, ts_error *e) {
    int chunks = 1, tokens = 0;
    for (int negative = 0; negative <= guided; negative++)
        for (int i = 0; i < m->text_count; i++) {
            ts_prompt p = {0};
            ts_code rc = read_prompt(m, i, params, negative, 0, &p, e);
            if (rc) return rc;
            if (!negative && i == 0) tokens = p.tokens;
            if (p.chunks > chunks) chunks = p.chunks;
            ts_prompt_free(&p);
            if (chunks > most) {
                const char *param = negative ? "negative_prompt" : "prompt";
                return ts_fail_param(e, TS_EINVAL, param,
                                     "%s takes %d times the %d tokens of a text encoder; at most %d %s",
                                     param, chunks, m->text[i].config.positions - 2, most, "times are read");
            }
        }
    *ret_chunks = chunks;
    *ret_tokens = tokens;
    return TS_OK;
}
