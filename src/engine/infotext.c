#include "engine/infotext.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/buffer.h"
#include "engine/model.h"

/* What else changes the steps. AUTOMATIC1111 calls PyTorch's generator of a GPU NV. */
static ts_code sampling(ts_buffer *b, const ts_shape *s, const ts_picture_params *p) {
    const ts_interval i = p->guidance_interval;
    ts_code rc = ts_buffer_printf(b, ", Schedule type: %s, RNG: %s", ts_scheduler_label(s->scheduler),
                                  p->rng == TS_RNG_TORCH_CUDA ? "NV" : "CPU");
    for (int k = 0; k < s->levels.count && !rc; k++)
        rc = ts_buffer_printf(b, "%s%.7g", k ? " " : ", Levels: ", (double)s->levels.at[k]);
    if (!rc && s->has_eta) rc = ts_buffer_printf(b, ", Eta: %s", ts_digits_of(s->eta).text);
    if (!rc && s->guided && p->guidance_rescale > 0)
        rc = ts_buffer_printf(b, ", CFG rescale: %s", ts_digits_of(p->guidance_rescale).text);
    if (!rc && s->guided && (i.from > 0 || (i.to > 0 && i.to < 1)))
        rc = ts_buffer_printf(b, ", CFG interval: %s-%s", ts_digits_of(i.from).text,
                              ts_digits_of(i.to > 0 ? i.to : 1).text);
    return rc;
}

/* As those tools have them in the prompt. */
static ts_code loras(ts_buffer *b, const ts_lora_ref *list, int n) {
    ts_code rc = TS_OK;
    for (int i = 0; i < n && !rc; i++)
        rc = ts_buffer_printf(b, " <lora:%s:%s>", list[i].name, ts_digits_of(list[i].scale).text);
    return rc;
}

/* How the prompts were read. */
static ts_code texts(ts_buffer *b, const ts_picture_params *p) {
    const ts_size_condition *c = &p->sizes;
    const bool brackets = strpbrk(p->prompt, "([") || (p->negative && strpbrk(p->negative, "(["));
    ts_code rc = TS_OK;
    /* Those tools take brackets for emphasis unless they are told. */
    if (brackets) rc = ts_buffer_printf(b, ", Emphasis: %s", p->emphasis ? "Original" : "None");
    if (!rc && p->truncate) rc = ts_buffer_printf(b, ", Long prompt: truncate");
    /* Counted as they count: 1 is the last layer. */
    if (!rc && p->clip_skip) rc = ts_buffer_printf(b, ", Clip skip: %d", p->clip_skip + 1);
    if (!rc && c->original_width)
        rc = ts_buffer_printf(b, ", Original size: %dx%d", c->original_width, c->original_height);
    if (!rc && (c->crop_left || c->crop_top))
        rc = ts_buffer_printf(b, ", Crop left: %d, Crop top: %d", c->crop_left, c->crop_top);
    if (!rc && c->target_width)
        rc = ts_buffer_printf(b, ", Target size: %dx%d", c->target_width, c->target_height);
    return rc;
}

ts_code ts_infotext(const ts_model *model, const ts_job *job, const ts_picture *p, char **ret) {
    const ts_shape *s = &job->shape;
    const ts_parallel *l = &s->parallel;
    ts_buffer b;
    enum { BESIDE = 1 << 16 }; /* what stands beside the texts, lists of levels and LoRAs included */
    ts_buffer_init(&b,
                   strlen(p->params.prompt) + (p->params.negative ? strlen(p->params.negative) : 0) + BESIDE);
    const ts_model_info *info = ts_model_get_info(model);
    ts_code rc = ts_buffer_printf(&b, "%s", p->params.prompt);
    if (!rc) rc = loras(&b, info->loras, info->lora_count);
    if (!rc) rc = loras(&b, s->loras, s->lora_count);
    if (!rc) rc = ts_buffer_printf(&b, "\n");
    if (!rc && p->params.negative) rc = ts_buffer_printf(&b, "Negative prompt: %s\n", p->params.negative);
    if (!rc)
        rc = ts_buffer_printf(
            &b, "Steps: %d, Sampler: %s, CFG scale: %s, Seed: %llu, Size: %dx%d, Model: %s", s->steps,
            s->sampler->label,
            ts_digits_of(s->guided || model->unet.guidance_dim ? p->params.guidance_scale : 1).text,
            (unsigned long long)p->params.seed, s->width, s->height, info->id);
    if (!rc) rc = sampling(&b, s, &p->params);
    if (!rc && s->task != TS_TASK_TEXT)
        rc = ts_buffer_printf(&b, ", Denoising strength: %s%s", ts_digits_of(s->strength).text,
                              s->task == TS_TASK_INPAINT ? ", Mask: yes" : "");
    if (!rc)
        rc = ts_buffer_printf(&b, ", Precision: %s, Parallel mode: %s, Devices: %d, Patches: %d",
                              ts_dtype_name(s->dtype), ts_mode_name(l->mode), job->stats.ranks,
                              job->stats.patches);
    if (!rc) rc = texts(&b, &p->params);
    /* What the mode makes of them; the others' pictures do not depend on these. */
    bool displaced = l->mode == TS_MODE_PCPP || l->mode == TS_MODE_DISTRIFUSION;
    if (!rc && displaced && l->mode == TS_MODE_PCPP)
        rc = isinf(l->partial) ? ts_buffer_printf(&b, ", Partial: all")
                               : ts_buffer_printf(&b, ", Partial: %s", ts_digits_of(l->partial).text);
    if (!rc && displaced)
        rc = ts_buffer_printf(&b, ", Warm-up steps: %d, GroupNorm: %s", l->warmup,
                              ts_group_norm_mode_name(l->group_norm));
    if (!rc) rc = ts_buffer_printf(&b, ", Version: tessera %s", TS_VERSION);
    if (!rc) *ret = ts_buffer_take(&b, NULL);
    if (!rc && !*ret) rc = TS_ENOMEM;
    ts_buffer_free(&b);
    return rc;
}
