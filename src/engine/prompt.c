#include "engine/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/emphasis.h"

/* How far back a comma may be that a full chunk is cut at; AUTOMATIC1111's default. */
#define BACKTRACK 20

void ts_prompt_free(ts_prompt *p) {
    free(p->ids);
    free(p->weights);
    *p = (ts_prompt){0};
}

/* Chunks while they are filled. What does not fit into `most` of them is `left_out`. */
typedef struct cutter {
    const ts_tokenizer *t;
    ts_prompt *p;
    int most;
    bool truncate; /* one chunk, to its last place */
    bool left_out;
    int fill;   /* tokens in the chunk that is being filled */
    int comma;  /* place of its last comma; -1: none */
    int breaks; /* chunks to end before the next token */
    int rest;   /* vectors of a name that are still to come */
} cutter;

static int room(const cutter *c) {
    return c->p->positions - 2;
}

/* Where token i of a chunk lies. */
static int32_t *place(const cutter *c, int chunk, int i) {
    return c->p->ids + chunk * c->p->positions + 1 + i;
}

static float *weight(const cutter *c, int chunk, int i) {
    return c->p->weights + chunk * c->p->positions + 1 + i;
}

/* Frames the chunk and begins the next one. */
static void end_chunk(cutter *c) {
    ts_prompt *p = c->p;
    *place(c, p->chunks, -1) = ts_tokenizer_start(c->t);
    *place(c, p->chunks, c->fill) = ts_tokenizer_end(c->t);
    for (int i = c->fill + 1; i <= room(c); i++) *place(c, p->chunks, i) = ts_tokenizer_pad(c->t);
    if (p->weights) {
        *weight(c, p->chunks, -1) = 1;
        for (int i = c->fill; i <= room(c); i++) *weight(c, p->chunks, i) = 1;
    }
    p->tokens += c->fill + 2;
    p->chunks++;
    c->fill = 0;
    c->comma = -1;
}

/* The chunk is full and `id` is to come: what is behind its last comma goes with it. */
static void turn_page(cutter *c, int32_t id) {
    int moved = 0;
    if (id != ts_tokenizer_comma(c->t) && c->comma >= 0 && room(c) - c->comma <= BACKTRACK)
        moved = room(c) - (c->comma + 1);
    if (c->truncate || c->p->chunks + 1 == c->most) {
        c->left_out = true;
        return;
    }
    /* Ending the chunk writes over the tokens that move. */
    memcpy(place(c, c->p->chunks + 1, 0), place(c, c->p->chunks, c->fill - moved),
           (size_t)moved * sizeof(int32_t));
    if (c->p->weights)
        memcpy(weight(c, c->p->chunks + 1, 0), weight(c, c->p->chunks, c->fill - moved),
               (size_t)moved * sizeof(float));
    c->fill -= moved;
    end_chunk(c);
    c->fill = moved;
}

static void put(cutter *c, int32_t id, double w) {
    for (; c->breaks && !c->left_out; c->breaks--) {
        c->left_out = c->p->chunks + 1 == c->most;
        if (!c->left_out) end_chunk(c);
    }
    if (c->fill == room(c)) turn_page(c, id);
    const int vectors = c->rest ? 0 : ts_tokenizer_rest(c->t, id);
    if (vectors && c->fill + vectors > room(c) && !c->truncate && !c->left_out) {
        c->left_out = c->p->chunks + 1 == c->most;
        if (!c->left_out) end_chunk(c);
    }
    if (c->left_out) return;
    c->rest = vectors ? vectors - 1 : c->rest ? c->rest - 1 : 0;
    if (id == ts_tokenizer_comma(c->t)) c->comma = c->fill;
    if (c->p->weights) *weight(c, c->p->chunks, c->fill) = (float)w;
    *place(c, c->p->chunks, c->fill++) = id;
}

static ts_code put_text(cutter *c, const char *text, size_t size, double w, ts_error *e) {
    /* One more than can be taken shows that something is left out. */
    const size_t most = (size_t)c->most * (size_t)room(c) + 1;
    int32_t *ids = ts_array0(int32_t, most);
    size_t count = 0;
    if (!ids) return ts_fail(e, TS_ENOMEM, "reading a prompt");
    ts_code rc = ts_tokenizer_ids(c->t, text, size, ids, most, &count, e);
    for (size_t i = 0; !rc && i < count && i < most && !c->left_out; i++) put(c, ids[i], w);
    free(ids);
    return rc;
}

static ts_code put_emphasised(cutter *c, const char *text, ts_error *e) {
    ts_emphasis m;
    ts_code rc = ts_emphasis_parse(text, strlen(text), &m, e);
    if (rc) return rc;
    for (size_t i = 0; i < m.count && !rc && !c->left_out; i++) {
        const ts_emphasis_run *r = &m.runs[i];
        if (!r->ends_chunk)
            rc = put_text(c, m.text + r->begin, r->size, r->weight, e);
        else if (!c->truncate)
            c->breaks++;
    }
    ts_emphasis_free(&m);
    return rc;
}

ts_code ts_prompt_read(const ts_tokenizer *t, int positions, const ts_picture_params *params, bool negative,
                       int chunks, ts_prompt *ret, ts_error *e) {
    const char *text = negative ? params->negative : params->prompt;
    const char *param = negative ? "negative_prompt" : "prompt";
    if (positions < 3)
        return ts_fail(e, TS_EFORMAT, "a text encoder of %d positions has no room for a text", positions);
    ts_prompt p = {.positions = positions};
    cutter c = {
        .t = t, .p = &p, .most = chunks ? chunks : TS_MAX_CHUNKS, .truncate = params->truncate, .comma = -1};
    p.ids = ts_array0(int32_t, (size_t)c.most * (size_t)positions);
    if (params->emphasis) p.weights = ts_array0(float, (size_t)c.most *(size_t)positions);
    if (!p.ids || (params->emphasis && !p.weights)) {
        ts_prompt_free(&p);
        return ts_fail(e, TS_ENOMEM, "reading a prompt");
    }
    if (!text) text = "";
    ts_code rc = params->emphasis ? put_emphasised(&c, text, e) : put_text(&c, text, strlen(text), 1, e);
    const int text_chunks = p.chunks + (c.fill || !p.chunks);
    c.left_out = c.left_out || (c.breaks > 1 && text_chunks + c.breaks - 1 > c.most);
    if (!rc && c.left_out && !c.truncate)
        rc = ts_fail(e, TS_EINVAL, "%s has more than %d times the %d tokens that a text encoder takes", param,
                     c.most, positions - 2);
    if (rc) {
        if (e && rc == TS_EINVAL) snprintf(e->param, sizeof e->param, "%s", param);
        ts_prompt_free(&p);
        return rc;
    }
    if (c.fill || !p.chunks) end_chunk(&c);
    for (; c.breaks > 1 && p.chunks < c.most; c.breaks--) end_chunk(&c); /* the first has ended the text's */
    const int tokens = p.tokens;
    while (p.chunks < chunks) end_chunk(&c);
    p.tokens = tokens;
    *ret = p;
    return TS_OK;
}
