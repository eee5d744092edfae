#include "engine/verify.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

/* Which parameters of a component somebody uses. */
typedef struct census {
    const ts_weights *weights;
    bool *used; /* by index */
} census;

static void count(void *arg, const ts_param *p) {
    census *c = arg;
    if (p->parts[0]) {
        count(arg, p->parts[0]);
        count(arg, p->parts[1]);
        return;
    }
    /* They lie side by side, as long as there is no layer over them. */
    c->used[p - ts_weights_at(c->weights, 0)] = true;
}

static ts_code census_new(const ts_weights *w, census *ret, ts_error *e) {
    *ret = (census){.weights = w, .used = ts_array0(bool, ts_weights_count(w) + 1)};
    return ret->used ? TS_OK : ts_fail(e, TS_ENOMEM, "checking %s", ts_weights_path(w));
}

/* In which file a tensor is, and in which part of a single file. */
static ts_code in_part(const ts_model *m, const ts_weights *w, const char *part, ts_code rc, ts_error *e) {
    if (!rc) return TS_OK;
    if (m->checkpoint) return ts_error_context(e, rc, "%s: %s", ts_weights_path(w), part);
    return ts_error_context(e, rc, "%s", ts_weights_path(w));
}

/* A builder for a picture of `side` x `side` of what it divides into rows. */
static ts_builder *builder_for(ts_weights *w, int side) {
    const ts_build build = {.batch = 1, .dtype = TS_F32, .rows = {.n = 1, .bound = {0, side}}};
    return ts_builder_new(&build, w);
}

/* Takes the builder over. */
static ts_code check(ts_builder *b, census *c, ts_error *e) {
    if (!b) return ts_fail(e, TS_ENOMEM, "checking %s", ts_weights_path(c->weights));
    ts_code rc = ts_builder_check(b, count, c, e);
    ts_builder_free(b);
    return rc;
}

/* `spared`: what the names that may be left over begin with, or NULL. What cannot be read was not there for
 * whoever read the config off the tensors. */
static ts_code check_rest(const census *c, const char *spared, ts_error *e) {
    const char *name, *type;
    if ((name = ts_weights_unread_at(c->weights, 0, &type))) return ts_tensors_unread(e, name, type);
    for (size_t i = 0; i < ts_weights_count(c->weights); i++) {
        name = ts_weights_at(c->weights, i)->name;
        if (c->used[i] || (spared && strncmp(name, spared, strlen(spared)) == 0)) continue;
        return ts_fail(e, TS_EFORMAT, "%.200s is of no layer that the other tensors make up: is one missing?",
                       name);
    }
    return TS_OK;
}

static ts_code verify_unet(const ts_model *m, ts_error *e) {
    census c;
    ts_code rc = census_new(m->unet_weights, &c, e);
    const int side = 1 << (m->unet.levels - 1);
    ts_builder *b = rc ? NULL : builder_for(m->unet_weights, side);
    if (b) ts_unet_build(b, &m->unet, side, m->text[0].config.positions);
    if (!rc) rc = check(b, &c, e);
    if (!rc && m->checkpoint) rc = check_rest(&c, NULL, e);
    free(c.used);
    return in_part(m, m->unet_weights, "unet", rc, e);
}

static ts_code verify_vae(const ts_model *m, ts_error *e) {
    census c;
    ts_code rc = census_new(m->vae_weights, &c, e);
    ts_builder *b = rc ? NULL : builder_for(m->vae_weights, 1);
    if (b) ts_vae_build_decoder(b, &m->vae, 1);
    if (!rc) rc = check(b, &c, e);
    const bool encodes = ts_weights_find(m->vae_weights, "encoder.conv_in.weight");
    if (!rc && encodes) {
        b = builder_for(m->vae_weights, ts_model_scale(m));
        if (b) ts_vae_build_encoder(b, &m->vae, ts_model_scale(m));
        rc = check(b, &c, e);
    }
    if (!rc && m->vae_inferred) rc = check_rest(&c, encodes ? NULL : "quant_conv.", e);
    free(c.used);
    return in_part(m, m->vae_weights, "vae", rc, e);
}

/* A table that is longer than the config says belongs to another config. */
static ts_code check_positions(const ts_text_model *t, ts_error *e) {
    static const char name[] = "text_model.embeddings.position_embedding.weight";
    const ts_param *p = ts_weights_find(t->weights, name);
    if (!p) p = ts_weights_find(t->weights, name + strlen("text_model."));
    if (!p || p->shape[0] == t->config.positions) return TS_OK;
    return ts_fail_param(e, TS_EFORMAT, "max_position_embeddings",
                         "%s has %d rows, and max_position_embeddings is %d", p->name, (int)p->shape[0],
                         t->config.positions);
}

static ts_code verify_text(const ts_model *m, int i, ts_error *e) {
    const ts_text_model *t = &m->text[i];
    /* All that some request reads, but XL's first encoder, of which nobody reads the end. */
    const ts_clip_reading all = {.layers = t->config.layers, .norm = !m->xl, .last = m->xl && i == 1};
    census c;
    ts_code rc = census_new(t->weights, &c, e);
    ts_builder *b = rc ? NULL : builder_for(t->weights, 1);
    if (b) ts_clip_build(b, &t->config, &all);
    if (!rc) rc = check(b, &c, e);
    free(c.used);
    if (!rc) rc = check_positions(t, e);
    const ts_param *p = ts_weights_find(t->weights, "text_projection.weight");
    if (!rc && t->config.projection &&
        (!p || p->rank != 2 || p->shape[0] != t->config.projection || p->shape[1] != t->config.hidden))
        rc = ts_fail(e, TS_EFORMAT, "text_projection.weight is missing or not %d x %d", t->config.projection,
                     t->config.hidden);
    return in_part(m, t->weights, i ? "text_encoder_2" : "text_encoder", rc, e);
}

ts_code ts_model_verify(const ts_model *m, ts_error *e) {
    ts_code rc = verify_unet(m, e);
    if (!rc) rc = verify_vae(m, e);
    for (int i = 0; i < m->text_count && !rc; i++) rc = verify_text(m, i, e);
    return rc;
}
