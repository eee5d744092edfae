/* Loads a diffusers folder: model_index.json says which components there are. */
#include "engine/model.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"

/* Configs are small; tokenizer files have limits of their own. */
#define CONFIG_BYTES  (1u << 20)
#define CONFIG_LIMITS ((ts_json_limits){.depth = 16, .values = 20000})

static ts_code open_config(const ts_model *m, const char *component, const char *file, char **ret_folder,
                           cJSON **ret, ts_error *e) {
    char *folder = component ? ts_path_join(m->path, component) : ts_strdup(m->path);
    char *path = folder ? ts_path_join(folder, file) : NULL;
    ts_code rc = path ? ts_json_file(path, CONFIG_BYTES, CONFIG_LIMITS, ret, e)
                      : ts_fail(e, TS_ENOMEM, "loading %s", m->path);
    free(path);
    if (rc || !ret_folder)
        free(folder);
    else
        *ret_folder = folder;
    return rc;
}

/* In which file a key is wrong is half of the message. */
static ts_code in_component(const ts_model *m, const char *component, ts_code rc, ts_error *e) {
    return rc ? ts_error_context(e, rc, "%s/%s", m->path, component) : TS_OK;
}

static ts_code load_unet(ts_model *m, ts_error *e) {
    char *folder = NULL;
    cJSON *json = NULL;
    ts_code rc = open_config(m, "unet", "config.json", &folder, &json, e);
    if (rc) return rc;
    rc = in_component(m, "unet/config.json", ts_unet_config_read(json, &m->unet, e), e);
    if (!rc) rc = ts_weights_open(folder, &m->unet_weights, e);
    cJSON_Delete(json);
    free(folder);
    return rc;
}

static ts_code load_vae(ts_model *m, ts_error *e) {
    char *folder = NULL;
    cJSON *json = NULL;
    ts_code rc = open_config(m, "vae", "config.json", &folder, &json, e);
    if (rc) return rc;
    rc = in_component(m, "vae/config.json", ts_vae_config_read(json, &m->vae, e), e);
    if (!rc) rc = ts_weights_open(folder, &m->vae_weights, e);
    cJSON_Delete(json);
    free(folder);
    return rc;
}

static ts_code load_text(ts_model *m, int i, bool projected, ts_error *e) {
    static const char *const encoders[] = {"text_encoder", "text_encoder_2"};
    static const char *const tokenizers[] = {"tokenizer", "tokenizer_2"};
    ts_text_model *t = &m->text[i];
    char *folder = NULL, *tokenizer = ts_path_join(m->path, tokenizers[i]);
    cJSON *json = NULL;
    if (!tokenizer) return ts_fail(e, TS_ENOMEM, "loading %s", m->path);
    ts_code rc = open_config(m, encoders[i], "config.json", &folder, &json, e);
    if (rc) {
        free(tokenizer);
        return rc;
    }
    m->text_count = i + 1;
    rc = in_component(m, encoders[i], ts_clip_config_read(json, projected, &t->config, e), e);
    if (!rc) rc = ts_weights_open(folder, &t->weights, e);
    if (!rc) rc = ts_tokenizer_open(tokenizer, &t->tokenizer, e);
    cJSON_Delete(json);
    free(folder);
    free(tokenizer);
    return rc;
}

static ts_code load_scheduler(ts_model *m, ts_error *e) {
    char *folder = ts_path_join(m->path, "scheduler");
    char *path = folder ? ts_path_join(folder, "scheduler_config.json") : NULL;
    ts_code rc =
        path ? ts_schedule_config_open(path, &m->schedule, e) : ts_fail(e, TS_ENOMEM, "loading %s", m->path);
    free(path);
    free(folder);
    return rc;
}

static ts_code load_index(ts_model *m, ts_error *e) {
    cJSON *json = NULL;
    ts_code rc = open_config(m, NULL, "model_index.json", NULL, &json, e);
    if (rc) return rc;
    const char *name = "";
    rc = ts_json_string(json, "_class_name", "", &name, e);
    if (!rc && !strcmp(name, "StableDiffusionXLPipeline"))
        m->xl = true;
    else if (!rc && strcmp(name, "StableDiffusionPipeline") != 0)
        rc = ts_fail_param(e, TS_EFORMAT, "_class_name",
                           "%s/model_index.json: _class_name: \"%.64s\" is not supported", m->path, name);
    if (!rc) rc = ts_json_bool(json, "force_zeros_for_empty_prompt", true, &m->zeros_for_absent, e);
    if (!m->xl) m->zeros_for_absent = false;
    cJSON_Delete(json);
    return rc;
}

/* The parts must agree with each other before anything is built from them. */
static ts_code check_parts(const ts_model *m, ts_error *e) {
    const ts_unet_config *u = &m->unet;
    if (u->in_channels != m->vae.latent_channels || u->out_channels != m->vae.latent_channels)
        return ts_fail_param(e, TS_EFORMAT, "in_channels",
                             "%s: the U-Net has %d and %d channels, the autoencoder %d", m->path,
                             u->in_channels, u->out_channels, m->vae.latent_channels);
    if (u->cross_attention_dim != ts_model_text_width(m))
        return ts_fail_param(e, TS_EFORMAT, "cross_attention_dim",
                             "%s: the U-Net attends to %d channels, the text has %d", m->path,
                             u->cross_attention_dim, ts_model_text_width(m));
    if (u->text_time != m->xl || (m->xl && u->added_dim - 6 * u->time_id_dim != ts_model_pooled_width(m)))
        return ts_fail_param(e, TS_EFORMAT, "projection_class_embeddings_input_dim",
                             "%s: the U-Net's added embedding does not fit the pipeline", m->path);
    for (int i = 1; i < m->text_count; i++)
        if (m->text[i].config.positions != m->text[0].config.positions)
            return ts_fail(e, TS_EFORMAT, "%s: the text encoders have different lengths", m->path);
    return TS_OK;
}

static const char *last_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

ts_code ts_model_load(const char *path, ts_model **ret, ts_error *e) {
    ts_model *m = ts_new0(ts_model);
    if (!m) return ts_fail(e, TS_ENOMEM, "loading %s", path);
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    m->path = ts_strndup(path, n);
    m->id = m->path ? ts_strdup(last_name(m->path)) : NULL;
    ts_code rc = m->id ? TS_OK : ts_fail(e, TS_ENOMEM, "loading %s", path);
    if (!rc) rc = load_index(m, e);
    if (!rc) rc = load_unet(m, e);
    if (!rc) rc = load_vae(m, e);
    if (!rc) rc = load_text(m, 0, false, e);
    if (!rc && m->xl) rc = load_text(m, 1, true, e);
    if (!rc) rc = load_scheduler(m, e);
    if (!rc) rc = check_parts(m, e);
    if (!rc && (ts_store_new(&m->store_cpu) || ts_store_new(&m->store_ref)))
        rc = ts_fail(e, TS_ENOMEM, "loading %s", path);
    if (rc) {
        ts_model_free(m);
        return rc;
    }
    size_t parameters = ts_weights_elements(m->unet_weights) + ts_weights_elements(m->vae_weights);
    for (int i = 0; i < m->text_count; i++) parameters += ts_weights_elements(m->text[i].weights);
    m->info = (ts_model_info){.id = m->id,
                              .path = m->path,
                              .kind = m->xl ? "sdxl" : "sd",
                              .default_width = m->unet.sample_size * ts_model_scale(m),
                              .default_height = m->unet.sample_size * ts_model_scale(m),
                              .latent_channels = m->unet.in_channels,
                              .scale = ts_model_scale(m),
                              .default_sampler = m->schedule.sampler,
                              .max_tokens = m->text[0].config.positions,
                              .parameters = parameters};
    *ret = m;
    return TS_OK;
}

void ts_model_free(ts_model *m) {
    if (!m) return;
    ts_store_free(m->store_cpu);
    ts_store_free(m->store_ref);
    for (int i = 0; i < m->text_count; i++) {
        ts_weights_free(m->text[i].weights);
        ts_tokenizer_free(m->text[i].tokenizer);
    }
    ts_weights_free(m->vae_weights);
    ts_weights_free(m->unet_weights);
    free(m->id);
    free(m->path);
    free(m);
}

const ts_model_info *ts_model_get_info(const ts_model *m) {
    return &m->info;
}
int ts_model_scale(const ts_model *m) {
    return 1 << (m->vae.levels - 1);
}
int ts_model_pooled_width(const ts_model *m) {
    return m->xl ? m->text[1].config.projection : 0;
}

int ts_model_text_width(const ts_model *m) {
    int width = 0;
    for (int i = 0; i < m->text_count; i++) width += m->text[i].config.hidden;
    return width;
}

ts_store *ts_model_store(const ts_model *m, const ts_backend *backend) {
    return backend == &ts_backend_ref ? m->store_ref : m->store_cpu;
}

ts_code ts_model_count_tokens(const ts_model *m, const char *prompt, int *ret, ts_error *e) {
    int max = m->text[0].config.positions;
    int32_t *ids = ts_array0(int32_t, (size_t)max);
    if (!ids) return ts_fail(e, TS_ENOMEM, "counting tokens");
    bool truncated;
    ts_code rc =
        ts_tokenizer_encode(m->text[0].tokenizer, prompt, strlen(prompt), max, ids, ret, &truncated, e);
    free(ids);
    return rc;
}
