/* LoRA files: low-rank changes of a model's layers (Hu et al. 2021, arXiv 2106.09685), and what LyCORIS and PEFT have made of
 * them (Yeh et al. 2023, arXiv 2309.14859; DoRA: Liu et al. 2024, arXiv 2402.09353).
 *
 * A module of such a file changes one parameter: W' = W + scale * factor * D, with factor = alpha / rank (or alpha / sqrt(rank)
 * where the file says rank-stabilised). The rank is read from the shapes, an absent alpha is the rank (of an adapter of PEFT's,
 * its default of 8); what has no rank has the factor 1. D is
 *
 *     up * down                 LoRA, LoCon; with a core between them that is the convolution (Tucker form)
 *     (a1 * b1) . (a2 * b2)     LoHa: element by element
 *     w1 (x) w2                 LoKr: Kronecker's product; each is whole, or a * b
 *     D                         the difference itself, of a weight, a bias or a norm
 *
 * and with a magnitude m (DoRA) W' is m * V / |V| of V = W + scale * factor * D, row by row, as PEFT has it; of a file of
 * LyCORIS' W + scale * (m * V / |V| - W), V = W + factor * D, by row or by channel of the input, as LyCORIS has it at a
 * scale of 1 (by channel AUTOMATIC1111 and ComfyUI too; by row ComfyUI divides by |W|). Files one behind the other change W
 * one after the other.
 *
 * Keys come as kohya's trainers write them ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", dots of the
 * layer's name turned into underscores, in diffusers' names or, for XL, in those of the LDM layout), as
 * diffusers and PEFT do ("unet.", "text_encoder.", "text_encoder_2.", or none for the U-Net; lora_A/lora_B,
 * lora.down/lora.up, to_q_lora.down/to_q_lora.up; alpha as a tensor or in the metadata), or as ComfyUI does
 * ("diffusion_model.", "text_encoders.clip_l.transformer."). An adapter that PEFT itself has saved is a
 * folder: adapter_model.safetensors, whose keys begin with "base_model.model." and say nothing of the part but
 * by the layer's name (a text encoder is the first one), and adapter_config.json with the alpha. Every tensor
 * of a file is used or named in an error, but for embeddings that a trainer has put beside it ("bundle_emb."), the projection of
 * a text encoder that has none (ComfyUI writes its difference from one), and what is named as in the LDM layout in a file that
 * names blocks of the U-Net as diffusers does, too (merged by a script; diffusers drops the former). Other kinds (OFT, IA3,
 * GLoRA, ...) are refused. Nothing in it is trusted. */
#ifndef TS_ENGINE_LORA_H
#define TS_ENGINE_LORA_H

#include "engine/tensors.h"
#include "engine/weights.h"

/* What the file is called in a LoRA's folder: as PEFT saves an adapter, with its configuration beside it, and as diffusers
 * does. Ends with NULL. */
extern const char *const ts_lora_stems[];
#define TS_ADAPTER_CONFIG "adapter_config.json"

typedef enum ts_lora_part { TS_LORA_UNET, TS_LORA_TEXT, TS_LORA_TEXT_2, TS_LORA_PARTS } ts_lora_part;

/* A matrix of a module: whole, or [rows][rank] a * [rank][columns] b, or with a core [rank][rank][k][k] between them, where
 * columns are the input's channels. NULL for what it has not. */
typedef struct ts_lora_matrix {
    const ts_file_tensor *whole, *a, *b, *core;
} ts_lora_matrix;

typedef enum ts_lora_kind { TS_LORA_PLAIN, TS_LORA_HADAMARD, TS_LORA_KRONECKER, TS_LORA_DIFFERENCE } ts_lora_kind;

typedef struct ts_lora_module {
    ts_lora_part part;
    const char *layer; /* the layer's name, its dots as underscores; with ".bias" behind it where it is that */
    const char *key;   /* of a tensor, as it is in the file: for messages */
    ts_lora_kind kind;
    ts_lora_matrix matrix[2]; /* one where the kind is PLAIN or DIFFERENCE */
    const ts_file_tensor *magnitude;  /* DoRA, or NULL */
    bool interpolated;                /* as LyCORIS' files have the magnitude */
    double factor; /* without the scale that a caller asks for */
    /* Of D, by ts_lora_measure. */
    int64_t rows, columns; /* columns: channels * k * k of a convolution */
    int64_t kernel;        /* k; 1: there is none; 0: the file does not say */
    int64_t rank;          /* 0: none */
} ts_lora_module;

typedef struct ts_lora ts_lora;

/* A file, or a folder with one. TS_ENOTFOUND, TS_EIO, TS_ENOMEM; TS_EFORMAT naming the key, TS_EUNSUPPORTED
 * for a known kind that is not offered. An open file is immutable: any thread may read it. */
ts_code ts_lora_open(const char *path, ts_lora **ret, ts_error *e);
/* The same from bytes of the caller's, which must outlive the result; config: the text of the adapter's
 * configuration, or NULL: it lies beside the path. */
ts_code ts_lora_parse(const char *path, const void *bytes, size_t size, const char *config, ts_lora **ret,
                      ts_error *e);
ts_code ts_lora_check(const ts_lora *l, ts_error *e); /* ts_tensors_check of it */
void ts_lora_free(ts_lora *l);                        /* NULL is fine */

const char *ts_lora_path(const ts_lora *l);
size_t ts_lora_count(const ts_lora *l);
const ts_lora_module *ts_lora_at(const ts_lora *l, size_t i); /* in order of part and layer */

/* One file of those that change a model, and how much. */
typedef struct ts_lora_scaled {
    const ts_lora *lora;
    double scale;
} ts_lora_scaled;

/* Fills rows, columns, kernel and rank. TS_EFORMAT naming the key where tensors are missing or do not fit together. */
ts_code ts_lora_measure(ts_lora_module *m, ts_error *e);

/* w[rows][columns], float32, as the module changes it, which ts_lora_measure has seen. by_row: the magnitude is one number a
 * row, else one a channel of the input. TS_ENOMEM. Any thread. */
ts_code ts_lora_apply(const ts_lora_module *m, double scale, bool by_row, float *w, ts_error *e);

/* Adds to `over`, a layer over `base` (ts_weights_over), each parameter of the part that any of the n files
 * changes: all of them in float32, whatever the parameter's type, and rounded once to what the kernel that wants
 * the parameter computes in. What that takes is copied from the files. layers: residual blocks of a level of the U-Net on
 * the way down, for the LDM layout's names. TS_EFORMAT naming file and key for a module that has no parameter
 * here or does not fit it, TS_ENOMEM. */
ts_code ts_lora_fuse(const ts_lora_scaled *loras, size_t n, ts_lora_part part, int layers,
                     const ts_weights *base, ts_weights *over, ts_error *e);

#endif
