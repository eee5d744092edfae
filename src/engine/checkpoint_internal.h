/* What checkpoint.c opens and checkpoint_config.c reads. */
#ifndef TS_ENGINE_CHECKPOINT_INTERNAL_H
#define TS_ENGINE_CHECKPOINT_INTERNAL_H

#include "engine/checkpoint.h"
#include "engine/tensors.h"

typedef enum checkpoint_kind { CHECKPOINT_SD1, CHECKPOINT_SD2, CHECKPOINT_XL } checkpoint_kind;

struct ts_checkpoint {
    char *path, *folder; /* the folder that the file is in */
    ts_tensors *file;
    checkpoint_kind kind;
    bool vae;                    /* there is one in it */
    bool sgm;                    /* 2.x whose text encoder is named as in XL's files (sd-turbo) */
    int unet_layers, vae_levels; /* what the names depend on */
    cJSON *config;               /* {component: config} */
    cJSON *beside;               /* NAME.json, or NULL */
    char *beside_path;
};

/* Prefixes of the components' keys by kind. */
#define CHECKPOINT_UNET "model.diffusion_model."
#define CHECKPOINT_VAE  "first_stage_model."
const char *checkpoint_text_prefix(const ts_checkpoint *c, int encoder);
bool checkpoint_text_is_openclip(checkpoint_kind kind, int encoder);

/* Fills config, unet_layers and vae_levels from the shapes. TS_EFORMAT naming what is missing, TS_ENOMEM. */
ts_code checkpoint_configure(ts_checkpoint *c, ts_error *e);

#endif
