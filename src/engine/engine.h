/* The engine: models, and groups of devices that make pictures with them.
 *
 * A model is loaded once and shared. A group owns its devices, one rank thread each, the transport between
 * them, and the programs that it has compiled; it runs one job at a time. Nothing here knows of HTTP. */
#ifndef TS_ENGINE_ENGINE_H
#define TS_ENGINE_ENGINE_H

#include "engine/job.h"
#include "kernels/backend.h"

typedef struct ts_model ts_model;
typedef struct ts_group ts_group;

typedef struct ts_model_info {
    const char *id;   /* the folder's last name */
    const char *path;
    const char *kind; /* "sd" or "sdxl" */
    int default_width, default_height; /* pixels; the U-Net's sample_size */
    int latent_channels;
    int scale; /* picture pixels to a latent one, each way: 8 */
    const char *prediction; /* what the U-Net predicts: epsilon, v_prediction, sample or flow_prediction */
    const char *default_sampler; /* what the folder's scheduler asks for, or the nearest */
    int max_tokens; /* of a prompt, begin and end included */
    const char *const *embeddings; /* names that prompts can use */
    int embedding_count;
    size_t parameters;
    const ts_lora_ref *loras; /* that were fused for good */
    int lora_count;
} ts_model_info;

/* Reads a diffusers folder or a single file (engine/checkpoint.h), and checks that its tensors are those that its configs
 * speak of. vae: NULL, or whose autoencoder takes the place of the model's: a file of one of the same sizes (the latents'
 * scale stays the model's), or diffusers' folder of one. Errors name the file and the key. The model outlives every group
 * that ran it. */
ts_code ts_model_load(const char *path, const char *vae, ts_model **ret, ts_error *e);

/* Where the LoRA of that name lies in a folder of them: NAME.safetensors or another extension of tensors, or
 * NAME/adapter_model.safetensors as PEFT saves it, NAME/pytorch_lora_weights.safetensors as diffusers does. That need not exist; then it is the first. free() it; NULL: no memory.
 * Any thread. */
char *ts_lora_find(const char *folder, const char *name);

/* Where the configuration of the LoRA file would lie if it were an adapter's, beside it. free() it; NULL: no memory. */
char *ts_lora_config(const char *path);

/* Tells a LoRA file, and the configuration beside it, from what takes their place later: by when they were changed and
 * where they lie. TS_ENOTFOUND; TS_EIO where it cannot be looked at; TS_ENOMEM. Any thread. */
ts_code ts_lora_stamp(const char *path, uint64_t *ret, ts_error *e);

/* A LoRA file or an adapter's folder (engine/lora.h) and how much of it. */
typedef struct ts_lora_use {
    const char *path;
    double scale;
} ts_lora_use;

/* n texts, "FILE" (all of it) or "FILE:SCALE"; TS_MAX_LORAS at most. TS_EINVAL for a scale beyond TS_LORA_MAX_SCALE,
 * TS_ENOMEM. ret is good for ts_lora_uses_free in any case. */
ts_code ts_lora_uses_parse(const char *const *texts, size_t n, ts_lora_use ret[TS_MAX_LORAS], ts_error *e);
void ts_lora_uses_free(ts_lora_use uses[TS_MAX_LORAS]);

/* Adds what the n files change to the model's own parameters. Once at most, before any group has run it; n is at most
 * TS_MAX_LORAS, none is fine. TS_ENOTFOUND, TS_EIO;
 * TS_EFORMAT and TS_EUNSUPPORTED naming file and key; TS_ENOMEM: then the model is as it was. */
ts_code ts_model_fuse(ts_model *m, const ts_lora_use *loras, size_t n, ts_error *e);

/* A variant: the model with what the files change, which holds the changed parameters itself and shares all else
 * with m, whose store it uses too. m outlives it. Any thread; m may be running. Errors as above. Groups that have
 * run it must forget it (ts_group_forget) before it is freed. */
ts_code ts_model_vary(ts_model *m, const ts_lora_use *loras, size_t n, ts_model **ret, ts_error *e);
size_t ts_model_variant_bytes(const ts_model *variant); /* what it holds itself by now, reordered copies included */

void ts_model_free(ts_model *model); /* NULL is fine */
const ts_model_info *ts_model_get_info(const ts_model *model);
/* Whether the sampler has steps on the model's schedule. Any thread. */
bool ts_model_takes_sampler(const ts_model *model, const ts_sampler *sampler);
/* Whether any sampler has steps on the levels that it places there. Any thread. */
bool ts_model_takes_scheduler(const ts_model *model, ts_scheduler scheduler);

/* Whether a picture of this guidance scale is guided by two evaluations a step: what its shape says. Not where the model is
 * told the scale, in one. Any thread. */
bool ts_model_guides(const ts_model *model, double guidance_scale);

/* Reads textual inversion embeddings: every .safetensors, .pt and .bin of the folder, and of those in it,
 * whose width is the model's, the others not; for XL pairs for both encoders. In a prompt the name stands
 * for its vectors, where it is a word of its own. Before any group has run the model, once. TS_ENOTFOUND,
 * TS_EIO, TS_EFORMAT (the file is named; TS_ECONFLICT for a name that comes twice), TS_ENOMEM; then the
 * model is good for freeing only. */
ts_code ts_model_add_embeddings(ts_model *m, const char *folder, ts_error *e);

/* Checks what a picture is made of against its model, beside what its shape says. Errors carry the request's field as
 * param. Any thread. */
ts_code ts_model_check_params(const ts_model *model, const ts_picture_params *params, ts_error *e);

/* What a picture's prompts come to, the negative one too where there is guidance. *ret_chunks: what its shape must say.
 * *ret_tokens: of the prompt, begin and end of each chunk included, without padding; for usage figures. TS_EINVAL (param
 * "prompt" or "negative_prompt") for text that is no UTF-8 or takes more than `most` chunks (up to TS_MAX_CHUNKS). */
ts_code ts_model_measure_prompts(const ts_model *model, const ts_picture_params *params, bool guided, int most,
                                 int *ret_chunks, int *ret_tokens, ts_error *e);

/* Parses "cpu:N", "cpu:NxT" (T threads each), "ref:N" or "auto" (one CPU device a two cores, two at least). The
 * cores are dealt out evenly. TS_EINVAL names what is wrong. */
typedef struct ts_device_spec {
    const ts_backend *backend;
    int index, threads;
} ts_device_spec;
ts_code ts_devices_parse(const char *text, ts_device_spec ret[TS_MAX_RANKS], int *ret_count, ts_error *e);

/* Opens the devices and starts their rank threads. store_of: devices of one process that share host memory
 * share the model's store. */
ts_code ts_group_open(const ts_device_spec *devices, int count, ts_group **ret, ts_error *e);
void ts_group_close(ts_group *group); /* no job may be running; NULL is fine */
int ts_group_size(const ts_group *group);

/* How many bytes the programs of past shapes may go on holding, for the next picture of such a shape; 4 GiB where nobody
 * says. Those of the shape that ran last always stay. Before any job. */
void ts_group_set_program_bytes(ts_group *group, size_t bytes);

/* True when the group prefers bf16 over float32 (what `dtype: auto` means). */
bool ts_group_prefers_bf16(const ts_group *group);

/* Checks a shape against the model and the group before anything is queued: sizes, ranks, sampler, dtype.
 * Errors carry the request's field as param. Any thread. */
ts_code ts_group_check(const ts_group *group, const ts_model *model, const ts_shape *shape, ts_error *e);

/* Frees what was compiled for a variant. Any thread, while no job runs it here. */
void ts_group_forget(ts_group *group, const ts_model *variant);

/* Compiles the programs of a shape and batch so that the first job need not. One caller at a time. */
ts_code ts_group_compile(ts_group *group, ts_model *model, const ts_shape *shape, int count, ts_error *e);

/* Runs a job to its end on the calling thread's time. Every picture gets exactly one on_picture, also when the
 * job as a whole fails; the return is then that failure. One caller at a time. */
ts_code ts_group_run(ts_group *group, ts_model *model, ts_job *job, ts_error *e);

#endif
