/* Loads a diffusers folder, of which model_index.json says which components there are, or a single file. */
#include "engine/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/config.h"
#include "engine/verify.h"

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
    if (!rc) return TS_OK;
    if (!m->checkpoint) return ts_error_context(e, rc, "%s/%s", m->path, component);
    /* No config.json there: the component alone. */
    char name[32];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(component, "/"), component);
    return ts_error_context(e, rc, "%s: %s", ts_checkpoint_config_path(m->checkpoint, name), name);
}

/* A component's config and weights, from its folder or the single file. The config is *ret_owned too where
 * the caller must delete it. */
static ts_code open_component(const ts_model *m, const char *component, const cJSON **ret_config,
                              cJSON **ret_owned, ts_weights **ret_weights, ts_error *e) {
    if (m->checkpoint) {
        *ret_config = ts_checkpoint_config(m->checkpoint, component);
        return ts_checkpoint_weights(m->checkpoint, component, ret_weights, e);
    }
    char *folder = NULL;
    ts_code rc = open_config(m, component, "config.json", &folder, ret_owned, e);
    *ret_config = *ret_owned;
    if (!rc) rc = ts_weights_open(folder, ret_weights, e);
    free(folder);
    return rc;
}

/* Converters before 0.9 wrote 32 for models of 512 pixels, and diffusers knows. */
static void correct_sample_size(const cJSON *json, ts_unet_config *c) {
    const char *version = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "_diffusers_version"));
    int major, minor;
    if (version && sscanf(version, "%4d.%4d", &major, &minor) == 2 && major == 0 && minor < 9 &&
        c->sample_width < 64 && c->sample_width == c->sample_height)
        c->sample_width = c->sample_height = 64;
}

static ts_code load_unet(ts_model *m, ts_error *e) {
    const cJSON *json = NULL;
    cJSON *owned = NULL;
    ts_code rc = open_component(m, "unet", &json, &owned, &m->unet_weights, e);
    if (!rc) rc = in_component(m, "unet/config.json", ts_unet_config_read(json, &m->unet, e), e);
    if (!rc && !m->xl) correct_sample_size(json, &m->unet);
    m->consistent = m->consistent || (m->checkpoint && !m->xl && m->unet.guidance_dim > 0);
    cJSON_Delete(owned);
    return rc;
}

static ts_code read_vae_config(ts_model *m, const cJSON *json, ts_error *e) {
    return in_component(m, "vae/config.json", ts_vae_config_read(json, &m->vae, e), e);
}

static ts_code load_own_vae(ts_model *m, ts_error *e) {
    const cJSON *json = NULL;
    cJSON *owned = NULL;
    ts_code rc = m->checkpoint ? ts_checkpoint_check_vae(m->checkpoint, e) : TS_OK;
    m->vae_inferred = m->checkpoint != NULL;
    if (!rc) rc = open_component(m, "vae", &json, &owned, &m->vae_weights, e);
    if (!rc) rc = read_vae_config(m, json, e);
    cJSON_Delete(owned);
    return rc;
}

/* diffusers' folder of an autoencoder, which says itself what it is. */
static ts_code load_vae_folder(ts_model *m, const char *folder, ts_error *e) {
    char *path = ts_path_join(folder, "config.json");
    cJSON *json = NULL;
    ts_code rc = path ? ts_json_file(path, CONFIG_BYTES, CONFIG_LIMITS, &json, e)
                      : ts_fail(e, TS_ENOMEM, "loading %s", folder);
    if (!rc) rc = ts_vae_config_read(json, &m->vae, e);
    if (rc) ts_error_context(e, rc, "%s", path ? path : folder);
    if (!rc) rc = ts_weights_open(folder, &m->vae_weights, e);
    cJSON_Delete(json);
    free(path);
    return rc;
}

/* A file has no config: it is the model's, but for what some autoencoders do without. */
static ts_code load_vae_file(ts_model *m, const char *path, ts_error *e) {
    cJSON *owned = NULL;
    ts_vae_config *c = &m->vae;
    ts_code rc = m->checkpoint ? TS_OK : open_config(m, "vae", "config.json", NULL, &owned, e);
    if (!rc) rc = read_vae_config(m, owned ? owned : ts_checkpoint_config(m->checkpoint, "vae"), e);
    cJSON_Delete(owned);
    if (!rc) rc = ts_checkpoint_open_vae(path, c->levels, &m->vae_weights, e);
    if (rc) return rc;
    /* The shapes are verified later; these tell the kinds of model apart. */
    const ts_param *in = ts_weights_find(m->vae_weights, "decoder.conv_in.weight");
    if (in->rank != 4 || in->shape[0] != c->channels[c->levels - 1] || in->shape[1] != c->latent_channels)
        return ts_fail(e, TS_EFORMAT, "%s is an autoencoder of other sizes than that of %s", path, m->path);
    m->vae_inferred = true;
    c->mid_attention =
        ts_weights_find(m->vae_weights, "decoder.mid_block.attentions.0.group_norm.weight") != NULL;
    c->quant = ts_weights_find(m->vae_weights, "quant_conv.weight") != NULL;
    c->post_quant = ts_weights_find(m->vae_weights, "post_quant_conv.weight") != NULL;
    return TS_OK;
}

static ts_code load_vae(ts_model *m, const char *other, ts_error *e) {
    if (!other) return load_own_vae(m, e);
    return ts_folder_exists(other) ? load_vae_folder(m, other, e) : load_vae_file(m, other, e);
}

static ts_code load_tokenizer(const ts_model *m, int i, ts_tokenizer **ret, ts_error *e) {
    static const char *const folders[] = {"tokenizer", "tokenizer_2"};
    if (m->checkpoint) return ts_checkpoint_tokenizer(m->checkpoint, i, ret, e);
    char *folder = ts_path_join(m->path, folders[i]);
    ts_code rc = folder ? ts_tokenizer_open(folder, ret, e) : ts_fail(e, TS_ENOMEM, "loading %s", m->path);
    free(folder);
    return rc;
}

static ts_code load_text(ts_model *m, int i, bool projected, ts_error *e) {
    static const char *const encoders[] = {"text_encoder", "text_encoder_2"};
    static const char *const configs[] = {"text_encoder/config.json", "text_encoder_2/config.json"};
    ts_text_model *t = &m->text[i];
    const cJSON *json = NULL;
    cJSON *owned = NULL;
    m->text_count = i + 1;
    ts_code rc = open_component(m, encoders[i], &json, &owned, &t->weights, e);
    if (!rc) rc = in_component(m, configs[i], ts_clip_config_read(json, projected, &t->config, e), e);
    if (!rc) rc = load_tokenizer(m, i, &t->tokenizer, e);
    cJSON_Delete(owned);
    return rc;
}

static ts_code open_scheduler(ts_model *m, const char *class_name, ts_error *e) {
    char *folder = ts_path_join(m->path, "scheduler");
    char *path = folder ? ts_path_join(folder, "scheduler_config.json") : NULL;
    ts_code rc = path ? ts_schedule_config_open(path, *class_name ? class_name : NULL, &m->schedule, e)
                      : ts_fail(e, TS_ENOMEM, "loading %s", m->path);
    free(path);
    free(folder);
    return rc;
}

/* class_name: what the folder's index says that it is; "" where it does not. */
static ts_code load_scheduler(ts_model *m, const char *class_name, ts_error *e) {
    ts_code rc = TS_OK;
    if (m->checkpoint)
        rc = in_component(
            m, "scheduler",
            ts_schedule_config_read(ts_checkpoint_config(m->checkpoint, "scheduler"), &m->schedule, e), e);
    else
        rc = open_scheduler(m, class_name, e);
    if (m->overrules) ts_schedule_suit_sd(&m->schedule);
    return rc;
}

/* Which pipeline it is; opens the single file. */
static ts_code load_checkpoint(ts_model *m, ts_error *e) {
    ts_code rc = ts_checkpoint_open(m->path, &m->checkpoint, e);
    if (rc) return rc;
    m->xl = m->zeros_for_absent = ts_checkpoint_is_xl(m->checkpoint);
    return TS_OK;
}

/* What the folder was saved from; the models of all tasks have the same parts, and the U-Net tells which it
 * can do. */
static ts_code read_class(ts_model *m, const char *name, ts_error *e) {
    static const struct {
        const char *name;
        bool xl, overrules, consistent;
    } classes[] = {{"StableDiffusionPipeline", false, true},
                   {"StableDiffusionImg2ImgPipeline", false, true},
                   {"StableDiffusionInpaintPipeline", false, true},
                   {"LatentConsistencyModelPipeline", false, false, true},
                   {"LatentConsistencyModelImg2ImgPipeline", false, false, true},
                   {"StableDiffusionXLPipeline", true, false},
                   {"StableDiffusionXLImg2ImgPipeline", true, false},
                   {"StableDiffusionXLInpaintPipeline", true, false}};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (!strcmp(name, classes[i].name)) {
            m->xl = classes[i].xl;
            m->overrules = classes[i].overrules;
            m->consistent = classes[i].consistent;
            return TS_OK;
        }
    return ts_fail_param(e, TS_EFORMAT, "_class_name", "_class_name: \"%.64s\" is not supported", name);
}

static ts_code check_refiner(const cJSON *index, ts_error *e) {
    bool aesthetics = false;
    ts_code rc = ts_json_bool(index, "requires_aesthetics_score", false, &aesthetics, e);
    if (rc || !aesthetics) return rc;
    return ts_fail_param(e, TS_EUNSUPPORTED, "requires_aesthetics_score",
                         "it is of an XL refiner, which is not offered");
}

enum { CLASS_BYTES = 64 };

/* "scheduler": ["diffusers", "EulerDiscreteScheduler"] is what counts, whatever the component's own file
 * says; other libraries' are left to that. */
static ts_code read_scheduler_class(const cJSON *index, char ret[CLASS_BYTES], ts_error *e) {
    const cJSON *pair = cJSON_GetObjectItemCaseSensitive(index, "scheduler");
    const char *library = cJSON_GetStringValue(cJSON_GetArrayItem(pair, 0));
    const char *name = cJSON_GetStringValue(cJSON_GetArrayItem(pair, 1));
    if (!library || !name || strcmp(library, "diffusers") != 0) return TS_OK;
    if (strlen(name) >= CLASS_BYTES)
        return ts_fail_param(e, TS_EFORMAT, "scheduler", "scheduler: \"%.64s\" is not offered", name);
    strcpy(ret, name);
    return TS_OK;
}

static ts_code load_index(ts_model *m, char ret_scheduler[CLASS_BYTES], ts_error *e) {
    cJSON *json = NULL;
    ts_code rc = open_config(m, NULL, "model_index.json", NULL, &json, e);
    if (rc) return rc;
    const char *name = NULL;
    rc = ts_json_string(json, "_class_name", NULL, &name, e);
    if (!rc && !name) rc = ts_fail_param(e, TS_EFORMAT, "_class_name", "there is no _class_name");
    if (!rc) rc = read_class(m, name, e);
    if (!rc && m->xl) rc = check_refiner(json, e);
    if (!rc) rc = read_scheduler_class(json, ret_scheduler, e);
    if (!rc) rc = ts_config_bool(json, "force_zeros_for_empty_prompt", true, &m->zeros_for_absent, e);
    if (!m->xl) m->zeros_for_absent = false;
    cJSON_Delete(json);
    return rc ? ts_error_context(e, rc, "%s/model_index.json", m->path) : TS_OK;
}

/* The parts must agree with each other before anything is built from them. */
static ts_code check_parts(const ts_model *m, ts_error *e) {
    const ts_unet_config *u = &m->unet;
    const int latent = m->vae.latent_channels;
    /* With mask and kept picture beside the latent: a U-Net for inpainting. */
    const bool told = u->in_channels == 2 * latent + 1;
    if ((u->in_channels != latent && !told) || u->out_channels != latent)
        return ts_fail_param(e, TS_EFORMAT, "in_channels",
                             "%s: the U-Net has %d and %d channels, the autoencoder %d", m->path,
                             u->in_channels, u->out_channels, latent);
    if (u->cross_attention_dim != ts_model_text_width(m))
        return ts_fail_param(e, TS_EFORMAT, "cross_attention_dim",
                             "%s: the U-Net attends to %d channels, the text has %d", m->path,
                             u->cross_attention_dim, ts_model_text_width(m));
    if (u->text_time != m->xl || (m->xl && u->added_dim - 6 * u->time_id_dim != ts_model_pooled_width(m)))
        return ts_fail_param(e, TS_EFORMAT, "projection_class_embeddings_input_dim",
                             "%s: the U-Net's added embedding does not fit the pipeline", m->path);
    /* A single file says no such thing. */
    for (int i = 0; !m->checkpoint && i < m->text_count; i++)
        if (ts_tokenizer_max_length(m->text[i].tokenizer) < m->text[i].config.positions)
            return ts_fail_param(e, TS_EUNSUPPORTED, "model_max_length",
                                 "%s: model_max_length: %d is not offered: the text encoder has %d positions",
                                 m->path, ts_tokenizer_max_length(m->text[i].tokenizer),
                                 m->text[i].config.positions);
    for (int i = 1; i < m->text_count; i++)
        if (m->text[i].config.positions != m->text[0].config.positions)
            return ts_fail(e, TS_EFORMAT, "%s: the text encoders have different lengths", m->path);
    return TS_OK;
}

void ts_model_rest(const ts_model *m) {
    ts_weights_rest(m->unet_weights);
    ts_weights_rest(m->vae_weights);
    for (int i = 0; i < m->text_count; i++) ts_weights_rest(m->text[i].weights);
    ts_store_rest(m->store_cpu);
    ts_store_rest(m->store_ref);
}

/* What is left of a path is what the client may know: below the model's folder, or the file's name. */
static void hide_folders(const ts_model *m, ts_error *e) {
    const char *vae = ts_weights_path(m->vae_weights), *slash = strrchr(m->path, '/');
    if (!m->checkpoint)
        ts_error_hide_folder(e, m->path, (int)strlen(m->path));
    else if (slash)
        ts_error_hide_folder(e, m->path, (int)(slash - m->path));
    if ((slash = strrchr(vae, '/'))) ts_error_hide_folder(e, vae, (int)(slash - vae));
}

ts_code ts_model_check(const ts_model *m, ts_error *e) {
    ts_code rc = m->checkpoint ? ts_checkpoint_check(m->checkpoint, e) : TS_OK;
    if (!rc) rc = ts_weights_check(m->unet_weights, e);
    if (!rc) rc = ts_weights_check(m->vae_weights, e);
    for (int i = 0; i < m->text_count && !rc; i++) rc = ts_weights_check(m->text[i].weights, e);
    if (!rc) return TS_OK;
    hide_folders(m, e);
    return ts_error_context(e, rc, "%s must be loaded again", m->id);
}

static const char *last_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The folder's name, or the file's without its extension. */
static char *id_of(const char *path) {
    const char *name = last_name(path);
    size_t n;
    ts_path_extension(name, ts_tensors_extensions, &n);
    return ts_strndup(name, n);
}

ts_code ts_model_load(const char *path, const char *vae, ts_model **ret, ts_error *e) {
    ts_model *m = ts_new0(ts_model);
    if (!m) return ts_fail(e, TS_ENOMEM, "loading %s", path);
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    m->path = ts_strndup(path, n);
    m->id = m->path ? id_of(m->path) : NULL;
    char scheduler[CLASS_BYTES] = "";
    ts_code rc = m->id ? TS_OK : ts_fail(e, TS_ENOMEM, "loading %s", path);
    if (!rc) rc = ts_file_exists(m->path) ? load_checkpoint(m, e) : load_index(m, scheduler, e);
    if (!rc) rc = load_unet(m, e);
    if (!rc) rc = load_vae(m, vae, e);
    m->vae.normalised = m->vae.normalised && m->xl; /* 1.x' and 2.x' pipelines do not look */
    if (!rc) rc = load_text(m, 0, false, e);
    if (!rc && m->xl) rc = load_text(m, 1, true, e);
    if (!rc) rc = load_scheduler(m, scheduler, e);
    if (!rc) rc = check_parts(m, e);
    if (!rc) rc = ts_model_verify(m, e);
    if (!rc) rc = ts_model_check(m, e);
    if (!rc && (ts_store_new(&m->store_cpu) || ts_store_new(&m->store_ref)))
        rc = ts_fail(e, TS_ENOMEM, "loading %s", path);
    if (rc) {
        /* Most errors name one of its files. */
        if (e && m->path && !strstr(e->message, m->path)) ts_error_context(e, rc, "%s", m->path);
        ts_model_free(m);
        return rc;
    }
    size_t parameters = ts_weights_elements(m->unet_weights) + ts_weights_elements(m->vae_weights);
    for (int i = 0; i < m->text_count; i++) parameters += ts_weights_elements(m->text[i].weights);
    m->info = (ts_model_info){.id = m->id,
                              .path = m->path,
                              .kind = m->xl ? "sdxl" : "sd",
                              .default_width = m->unet.sample_width * ts_model_scale(m),
                              .default_height = m->unet.sample_height * ts_model_scale(m),
                              .latent_channels = m->vae.latent_channels,
                              .scale = ts_model_scale(m),
                              .prediction = ts_prediction_name(m->schedule.prediction_type),
                              .default_sampler = m->schedule.sampler,
                              .max_tokens = m->text[0].config.positions,
                              .parameters = parameters};
    *ret = m;
    return TS_OK;
}

void ts_model_free(ts_model *m) {
    if (!m) return;
    if (m->base) {
        model_free_variant(m);
        return;
    }
    ts_store_free(m->store_cpu);
    ts_store_free(m->store_ref);
    for (int i = 0; i < m->text_count; i++) {
        ts_weights_free(m->text[i].weights);
        ts_tokenizer_free(m->text[i].tokenizer);
        free(m->text[i].vectors);
    }
    for (int i = 0; i < m->info.embedding_count; i++) free(m->embeddings[i]);
    free(m->embeddings);
    ts_weights_free(m->vae_weights);
    ts_weights_free(m->unet_weights);
    ts_checkpoint_free(m->checkpoint);
    free(m->id);
    free(m->path);
    free(m);
}

static bool takes(const ts_model *m, const ts_sampler *sampler, ts_scheduler scheduler) {
    const int few = m->schedule.num_train_timesteps < 4 ? m->schedule.num_train_timesteps : 4;
    ts_schedule_config schedule = m->schedule;
    ts_schedule_place(&schedule, scheduler, NULL, m->xl);
    ts_sampler_plan *plan = NULL;
    ts_code rc = ts_sampler_takes(sampler, scheduler, NULL);
    if (!rc) rc = ts_sampler_plan_new(sampler, &schedule, few, 0, &plan, NULL);
    free(plan);
    return !rc;
}

bool ts_model_takes_sampler(const ts_model *m, const ts_sampler *sampler) {
    return takes(m, sampler, TS_SCHEDULER_DEFAULT);
}

bool ts_model_takes_scheduler(const ts_model *m, ts_scheduler scheduler) {
    for (int i = 0; i < ts_sampler_count(); i++)
        if (takes(m, ts_sampler_at(i), scheduler)) return true;
    return false;
}

bool ts_model_guides(const ts_model *m, double guidance_scale) {
    return guidance_scale > 1 && !m->unet.guidance_dim;
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
