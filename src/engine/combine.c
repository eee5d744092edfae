/* What ranks put together outside their programs. */
#include "engine/combine.h"

#include <string.h>
#include "base/clock.h"
#include "engine/guidance.h"

/* Sends to peer `to` of the link what this rank, `me` there, has. */
static ts_code send(ts_patch *p, ts_link *l, int me, int to, unsigned number, const void *source) {
    p->run->job->stats.sent_bytes[p->rank] += l->exchange.to[to].run_bytes;
    return l->transport->ops->post(l->transport, me, to, 0, number, source, 0);
}

/* What peer `from` has sent in this evaluation, in the inbox. */
static ts_code receive(ts_patch *p, ts_link *l, int me, int from, unsigned number, const void **ret) {
    const uint64_t t0 = ts_now_ns();
    ts_code rc = l->transport->ops->wait(l->transport, me, from, 0, number);
    p->wait_ns += ts_now_ns() - t0;
    *ret = l->inbox + l->exchange.from[from].offset[number & 1];
    return rc;
}

/* The transport takes each sum for an evaluation of its own. Always in the order of the patches: all ranks
 * get the same, whichever branch they are of. */
ts_code ts_patch_add_up(ts_patch *p, unsigned evaluation, ts_sum_use use, ts_sums *sums) {
    ts_run *run = p->run;
    const unsigned number = 2 * evaluation + use;
    ts_link *l = &run->unet->sums[p->rank];
    if (!l->transport) return TS_OK;
    ts_sums total = {0};
    ts_code rc = TS_OK;
    for (int j = 0; j < run->layout.patches && !rc; j++)
        if (j != p->index) rc = send(p, l, p->index, j, number, sums);
    for (int j = 0; j < run->layout.patches && !rc; j++) {
        const void *found = sums;
        if (j != p->index) rc = receive(p, l, p->index, j, number, &found);
        for (int k = 0; k < run->count && !rc; k++)
            for (int i = 0; i < TS_PICTURE_SUMS; i++) total.of[k][i] += ((const ts_sums *)found)->of[k][i];
    }
    if (rc) return ts_fail(&run->error[p->rank], rc, "adding up over the patches");
    *sums = total;
    return TS_OK;
}

/* Of the picture at place k of the leg. */
static const ts_picture_params *params_of(const ts_run *run, int k) {
    return &run->job->pictures[run->picture[k]].params;
}

/* Brings p->out to the spread of cond, where pictures ask for it. */
static ts_code rescale(ts_patch *p, unsigned number, const float *cond) {
    ts_run *run = p->run;
    ts_sums sums = {0};
    bool wanted = false;
    for (int k = 0; k < run->count; k++) {
        if (params_of(run, k)->guidance_rescale == 0 || !ts_run_guides(run, k, (int)number - 1)) continue;
        const size_t at = (size_t)k * p->elements;
        const ts_guidance_sums s = ts_guidance_sum(cond + at, p->out + at, p->elements);
        memcpy(sums.of[k], &s, sizeof s);
        wanted = true;
    }
    if (!wanted) return TS_OK;
    ts_code rc = ts_patch_add_up(p, number, TS_SUM_GUIDANCE, &sums);
    if (rc) return rc;
    const size_t n = run->unet->key.naive ? p->elements : ts_run_elements(run);
    for (int k = 0; k < run->count; k++) {
        if (params_of(run, k)->guidance_rescale == 0 || !ts_run_guides(run, k, (int)number - 1)) continue;
        ts_guidance_sums s;
        memcpy(&s, sums.of[k], sizeof s);
        const float factor = ts_guidance_factor(params_of(run, k)->guidance_rescale, &s, n);
        float *out = p->out + (size_t)k * p->elements;
        for (size_t i = 0; i < p->elements; i++) out[i] *= factor;
    }
    return TS_OK;
}

ts_code ts_patch_predict(ts_patch *p, unsigned number) {
    ts_run *run = p->run;
    const size_t all = p->elements * (size_t)run->count;
    const float *own = ts_program_tensor(p->program, "out", NULL);
    const float *uncond = own, *cond = own + all;
    if (!run->guided) {
        memcpy(p->out, own, all * sizeof *own);
        return TS_OK;
    }
    if (run->layout.branches == 2) {
        ts_link *l = &run->unet->noise[p->rank];
        const int me = p->branch, peer = !me;
        const void *other = NULL;
        ts_code rc = send(p, l, me, peer, number, own);
        if (!rc) rc = receive(p, l, me, peer, number, &other);
        if (rc) return ts_fail(&run->error[p->rank], rc, "exchanging the guidance branches");
        uncond = me == 0 ? own : other;
        cond = me == 0 ? other : own;
    }
    for (int k = 0; k < run->count; k++) {
        const size_t at = (size_t)k * p->elements;
        if (ts_run_guides(run, k, (int)number - 1))
            ts_guide((float)params_of(run, k)->guidance_scale, uncond + at, cond + at, p->out + at,
                     p->elements);
        else
            memcpy(p->out + at, cond + at, p->elements * sizeof *cond);
    }
    return rescale(p, number, cond);
}
