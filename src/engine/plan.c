/* Plans: the programs of all ranks for one shape, compiled on the threads that will run them, and kept. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/group.h"

static void plan_free(ts_plan *p) {
    for (int i = 0; i < p->ranks; i++) {
        ts_program_free(p->program[i]);
        free(p->noise[i].inbox);
        free(p->sums[i].inbox);
    }
    for (int branch = 0; branch < p->layout.branches; branch++) {
        ts_transport_free(p->branch[branch]);
        ts_transport_free(p->sums[branch * p->layout.patches].transport);
    }
    for (int i = 0; i < p->layout.patches; i++) ts_transport_free(p->noise[i].transport);
    free(p);
}

static void list_free(ts_plan *p) {
    for (ts_plan *next; p; p = next) {
        next = p->next;
        plan_free(p);
    }
}

void ts_plans_free(ts_group *g, const ts_model *model) {
    ts_plan *gone = NULL;
    pthread_mutex_lock(&g->kept);
    for (ts_plan **at = &g->plans, *p; (p = *at);) {
        if (model && p->key.model != model) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        p->next = gone;
        gone = p;
    }
    pthread_mutex_unlock(&g->kept);
    list_free(gone);
}

/* ---- compiling ---- */

typedef struct compilation {
    ts_plan *plan;
    ts_code code[TS_MAX_RANKS];
    ts_error error[TS_MAX_RANKS];
} compilation;

static void compile_rank(void *arg, ts_rank *rank) {
    compilation *c = arg;
    const ts_plan_key *k = &c->plan->key;
    const ts_model *m = k->model;
    ts_build build = {.batch = k->batch,
                      .dtype = k->dtype,
                      .rows = c->plan->layout.rows,
                      .patch = rank->index % c->plan->layout.patches,
                      .naive = k->naive,
                      .displaced = k->displaced,
                      .partial = k->partial,
                      .group_norm = k->group_norm};
    ts_builder *b = ts_builder_new(&build, k->kind == TS_PLAN_UNET ? m->unet_weights : m->vae_weights);
    if (b && k->kind == TS_PLAN_UNET)
        ts_unet_build(b, &m->unet, k->width, k->chunks * m->text[0].config.positions);
    else if (b && k->kind == TS_PLAN_DECODER)
        ts_vae_build_decoder(b, &m->vae, k->width);
    else if (b)
        ts_vae_build_encoder(b, &m->vae, k->width);
    c->code[rank->index] = ts_program_compile(b, rank->arena, ts_model_store(m, rank->device->backend),
                                              &c->plan->program[rank->index], &c->error[rank->index]);
}

/* The transport of one branch, whose ranks begin at `first`. */
static ts_code connect_branch(ts_plan *p, int branch, ts_error *e) {
    const int n = p->layout.patches, first = branch * n;
    int exchanges = 0;
    if (n == 1 || p->key.naive) return TS_OK;
    ts_program_exchanges(p->program[first], &exchanges);
    ts_code rc = ts_transport_local_new(n, exchanges, &p->branch[branch]);
    if (rc) return ts_fail(e, rc, "connecting %d ranks", n);
    for (int i = 0; i < n; i++)
        p->branch[branch]->ops->attach(p->branch[branch], i, ts_program_inbox(p->program[first + i]),
                                       ts_program_exchanges(p->program[first + i], &exchanges));
    return TS_OK;
}

/* Everyone of `n` ranks sends `bytes` to each other one, in one exchange. Their links lie `stride` apart. */
static ts_code connect(ts_link *first, int n, int stride, ts_exchange_kind kind, size_t bytes, size_t *total,
                       ts_error *e) {
    ts_code rc = ts_transport_local_new(n, 1, &first->transport);
    if (rc) return ts_fail(e, rc, "connecting %d ranks", n);
    for (int i = 0; i < n; i++) {
        ts_link *l = first + i * stride;
        l->transport = first->transport;
        l->exchange = (ts_exchange){.kind = kind};
        l->inbox = ts_alloc_aligned(2 * (size_t)(n - 1) * bytes);
        if (!l->inbox) return ts_fail(e, TS_ENOMEM, "connecting %d ranks", n);
        for (int j = 0; j < n; j++) {
            const size_t at = 2 * (size_t)(j > i ? j - 1 : j) * bytes;
            if (j != i)
                l->exchange.from[j] = l->exchange.to[j] =
                    (ts_slot){.runs = 1, .run_bytes = bytes, .offset = {at, at + bytes}};
        }
        l->transport->ops->attach(l->transport, i, l->inbox, &l->exchange);
        *total += 2 * (size_t)(n - 1) * bytes;
    }
    return TS_OK;
}

/* The two ranks of a patch send each other the noise that they predicted. */
static ts_code connect_noise(ts_plan *p, int patch, ts_error *e) {
    ts_view out;
    if (!ts_program_tensor(p->program[patch], "out", &out))
        return ts_fail(e, TS_EINTERNAL, "a U-Net without output");
    return connect(&p->noise[patch], 2, p->layout.patches, TS_EXCHANGE_NOISE,
                   (size_t)out.b * out.pitch * sizeof(float), &p->bytes, e);
}

static ts_code compile(ts_group *g, const ts_plan_key *key, const ts_layout *layout, ts_plan **ret,
                       ts_error *e) {
    ts_plan *p = ts_new0(ts_plan);
    if (!p) return ts_fail(e, TS_ENOMEM, "compiling a program");
    p->key = *key;
    p->layout = *layout;
    p->ranks = layout->patches * layout->branches;
    compilation c = {.plan = p};
    ts_group_each(g, p->ranks, compile_rank, &c);
    ts_model_rest(key->model);
    ts_code rc = TS_OK;
    for (int i = 0; i < p->ranks && !rc; i++) {
        rc = c.code[i];
        if (rc && e) *e = c.error[i];
    }
    for (int i = 0; i < layout->branches && !rc; i++) rc = connect_branch(p, i, e);
    for (int i = 0; i < layout->patches && layout->branches == 2 && !rc; i++) rc = connect_noise(p, i, e);
    for (int i = 0; i < layout->branches && key->kind == TS_PLAN_UNET && p->branch[i] && !rc; i++)
        rc = connect(&p->sums[i * layout->patches], layout->patches, 1, TS_EXCHANGE_STATS, sizeof(ts_sums),
                     &p->bytes, e);
    if (rc) {
        plan_free(p);
        return rc;
    }
    for (int i = 0; i < p->ranks; i++) {
        ts_program_stats s;
        ts_program_get_stats(p->program[i], &s);
        p->bytes += s.kept_bytes;
    }
    *ret = p;
    return TS_OK;
}

/* ---- the cache ---- */

static bool key_equal(const ts_plan_key *a, const ts_plan_key *b) {
    return a->kind == b->kind && a->model == b->model && a->width == b->width && a->height == b->height &&
           a->batch == b->batch && a->chunks == b->chunks && a->dtype == b->dtype &&
           a->patches == b->patches && a->branches == b->branches && a->naive == b->naive &&
           a->displaced == b->displaced && a->partial == b->partial && a->group_norm == b->group_norm;
}

static size_t arena_bytes(const ts_program *p) {
    ts_program_stats s;
    ts_program_get_stats(p, &s);
    return s.arena_bytes;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Takes out and returns those that do not fit into the budget beside the ones used since. need: the arena of
 * each rank without them. */
static ts_plan *trim(ts_group *g, size_t need[TS_MAX_RANKS]) {
    size_t own = 0;
    ts_plan *gone = NULL;
    memset(need, 0, TS_MAX_RANKS * sizeof *need);
    for (const ts_text_program *t = g->texts; t; t = t->next)
        need[0] = larger(need[0], arena_bytes(t->program));
    int kept = 0;
    for (ts_plan **at = &g->plans, *p; (p = *at);) {
        size_t with[TS_MAX_RANKS] = {0}, arenas = 0;
        for (int r = 0; r < g->count; r++) {
            with[r] = r < p->ranks ? larger(need[r], arena_bytes(p->program[r])) : need[r];
            arenas += with[r];
        }
        /* A job uses two plans at once: its U-Net's and its decoder's, or those of two legs. */
        if (kept < 2 || own + p->bytes + arenas <= g->plan_bytes) {
            own += p->bytes;
            memcpy(need, with, sizeof with);
            kept++;
            at = &p->next;
        } else {
            *at = p->next;
            p->next = gone;
            gone = p;
        }
    }
    return gone;
}

ts_code ts_plan_get(ts_group *g, const ts_plan_key *key, const ts_layout *layout, ts_plan **ret,
                    ts_error *e) {
    ts_plan **at = &g->plans, *p = NULL;
    pthread_mutex_lock(&g->kept);
    while (*at && !key_equal(&(*at)->key, key)) at = &(*at)->next;
    if ((p = *at)) *at = p->next;
    pthread_mutex_unlock(&g->kept);
    if (!p) {
        ts_code rc = compile(g, key, layout, &p, e);
        if (rc) return rc;
    }
    pthread_mutex_lock(&g->kept);
    p->next = g->plans;
    g->plans = p;
    size_t need[TS_MAX_RANKS];
    ts_plan *rest = trim(g, need);
    pthread_mutex_unlock(&g->kept);
    for (int r = 0; r < g->count; r++) ts_arena_shrink(g->ranks[r].arena, need[r]);
    list_free(rest);
    *ret = p;
    return TS_OK;
}
