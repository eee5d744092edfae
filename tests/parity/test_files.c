/* Single files in the LDM/SGM layout against the folders that they are made of, and folders of other tasks.
 */
#include "workshop.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>
#include "engine/checkpoint.h"
#include "engine/unet.h"
#include "kernels/convert.h"

/* Every parameter of the folder is there, under its name and with its bytes. */
static void same_weights(const ts_checkpoint *c, const char *component, const char *folder) {
    ts_error e = {0};
    ts_weights *have = NULL;
    must(ts_checkpoint_weights(c, component, &have, &e), &e);
    const ts_tensors *want = workshop_source(folder);
    for (size_t i = 0; i < ts_tensors_count(want); i++) {
        const ts_file_tensor *t = ts_tensors_at(want, i);
        if (strstr(t->name, "position_ids")) continue;
        const ts_param *p = ts_weights_find(have, t->name);
        if (!p && strncmp(t->name, "text_model.", 11)) { /* transformers 5 leaves it out */
            char *full = ts_format("text_model.%s", t->name);
            p = ts_weights_find(have, full);
            free(full);
        }
        if (!p) fail_msg("%s: no %s", component, t->name);
        size_t elements = 1;
        for (int k = 0; k < p->rank; k++) {
            assert_int_equal(p->shape[k], t->shape[k]);
            elements *= (size_t)p->shape[k];
        }
        assert_int_equal(p->dtype, t->dtype);
        assert_int_equal(elements, ts_file_tensor_elements(t));
        assert_memory_equal(p->data, t->data, t->bytes);
    }
    ts_weights_free(have);
}

static bool is_xl(const char *kind) {
    return !strcmp(json_text(workshop_case(kind), "pipeline"), "pipeline_xl");
}

static char *folder_of(const char *kind, const char *component) {
    const cJSON *c = workshop_case(kind);
    if (cJSON_HasObjectItem(c, component)) return ts_strdup(json_text(c, component));
    return ts_format("%s/%s", json_text(c, "pipeline"), component);
}

static void the_weights_are_those_of_the_folder(void **state) {
    const char *kind = *state;
    const bool xl = is_xl(kind);
    char *path = workshop_make(kind);
    ts_error e = {0};
    ts_checkpoint *c = NULL;
    must(ts_checkpoint_open(path, &c, &e), &e);
    assert_int_equal(ts_checkpoint_is_xl(c), xl);
    static const char *const components[] = {"unet", "vae", "text_encoder", "text_encoder_2"};
    for (int i = 0; i < (xl ? 4 : 3); i++) {
        char *folder = folder_of(kind, components[i]);
        same_weights(c, components[i], folder);
        free(folder);
    }
    ts_checkpoint_free(c);
    workshop_discard(path);
}

/* Numbers, or lists of them, of a config that the shapes tell. */
static void same_values(const cJSON *have, const cJSON *want, const char *const *keys) {
    for (; *keys; keys++) {
        const cJSON *a = cJSON_GetObjectItemCaseSensitive(have, *keys);
        const cJSON *b = cJSON_GetObjectItemCaseSensitive(want, *keys);
        /* One number in a folder may stand for all levels. */
        if (cJSON_IsArray(a) && cJSON_IsNumber(b)) a = a->child;
        if (!b || cJSON_IsNull(b)) continue; /* the default */
        if (!cJSON_Compare(a, b, true)) fail_msg("%s differs", *keys);
    }
}

/* How deep its attention is, which has more than one form. */
static void same_blocks(const cJSON *have, const cJSON *want) {
    ts_unet_config a, b;
    ts_error e = {0};
    must(ts_unet_config_read(have, &a, &e), &e);
    must(ts_unet_config_read(want, &b, &e), &e);
    assert_memory_equal(a.down_depth, b.down_depth, sizeof a.down_depth);
    assert_memory_equal(a.up_depth, b.up_depth, sizeof a.up_depth);
    assert_int_equal(a.mid, b.mid);
    assert_int_equal(a.mid_depth, b.mid_depth);
}

static void the_sizes_are_read_from_the_shapes(void **state) {
    const char *kind = *state;
    static const char *const unet[] = {"block_out_channels",
                                       "layers_per_block",
                                       "down_block_types",
                                       "up_block_types",
                                       "in_channels",
                                       "out_channels",
                                       "cross_attention_dim",
                                       "use_linear_projection",
                                       "addition_embed_type",
                                       "addition_time_embed_dim",
                                       "projection_class_embeddings_input_dim",
                                       "time_cond_proj_dim",
                                       NULL};
    static const char *const vae[] = {"block_out_channels",
                                      "layers_per_block",
                                      "latent_channels",
                                      "use_post_quant_conv",
                                      "mid_block_add_attention",
                                      "scaling_factor",
                                      NULL};
    static const char *const text[] = {"hidden_size", "intermediate_size",       "num_hidden_layers",
                                       "hidden_act",  "max_position_embeddings", "vocab_size",
                                       NULL};
    static const char *const projected[] = {"hidden_size",
                                            "intermediate_size",
                                            "num_hidden_layers",
                                            "hidden_act",
                                            "max_position_embeddings",
                                            "vocab_size",
                                            "projection_dim",
                                            NULL};
    const struct {
        const char *component;
        const char *const *keys;
    } parts[] = {{"unet", unet}, {"vae", vae}, {"text_encoder", text}, {"text_encoder_2", projected}};
    char *path = workshop_make(kind);
    ts_error e = {0};
    ts_checkpoint *c = NULL;
    must(ts_checkpoint_open(path, &c, &e), &e);
    for (int i = 0; i < (is_xl(kind) ? 4 : 3); i++) {
        char *folder = folder_of(kind, parts[i].component), *name = ts_format("%s/config.json", folder);
        cJSON *want = fixture_json(name);
        same_values(ts_checkpoint_config(c, parts[i].component), want, parts[i].keys);
        if (i == 0) same_blocks(ts_checkpoint_config(c, parts[i].component), want);
        cJSON_Delete(want);
        free(name);
        free(folder);
    }
    ts_checkpoint_free(c);
    workshop_discard(path);
}

/* The folder's picture is held against diffusers in test_pictures.c; this one is the same to the bit. */
static void the_picture_is_that_of_the_folder(void **state) {
    const char *kind = *state;
    char *path = workshop_make(kind);
    const char *pipeline = json_text(workshop_case(kind), "pipeline");
    char *whole = workshop_folder(pipeline, is_xl(kind) ? "{\"_class_name\":\"StableDiffusionXLPipeline\"}"
                                                        : "{\"_class_name\":\"StableDiffusionPipeline\"}");
    workshop_swap(whole, "unet", json_text(workshop_case(kind), "unet"));
    studio folder = studio_open_with(whole, NULL, 1), file = folder;
    ts_error e = {0};
    file.model = NULL;
    must(ts_model_load(path, NULL, &file.model, &e), &e);
    assert_string_equal(ts_model_get_info(file.model)->id, kind);
    ts_shape shape = {.width = 64,
                      .height = 64,
                      .steps = 3,
                      .sampler = ts_sampler_find(folder.model->schedule.sampler),
                      .parallel = {.mode = TS_MODE_SINGLE},
                      .dtype = TS_F32,
                      .guided = ts_model_guides(file.model, 5)};
    ts_picture request = {.params.prompt = "a small red box", .params.seed = 7, .params.guidance_scale = 5};
    shot want = studio_shoot(folder, &shape, &request), have = studio_shoot(file, &shape, &request);
    assert_memory_equal(have.rgb, want.rgb, 64 * 64 * 3);
    assert_true(relative_l2(have.latents, want.latents) == 0);
    shot_free(want);
    shot_free(have);
    ts_group_close(file.group); /* both models' programs are the group's */
    ts_model_free(folder.model);
    ts_model_free(file.model);
    workshop_discard(path);
    workshop_discard_folder(whole);
}

static shot box(studio s) {
    ts_shape shape = {.width = 64,
                      .height = 64,
                      .steps = 1,
                      .sampler = ts_sampler_find(s.model->schedule.sampler),
                      .parallel = {.mode = TS_MODE_SINGLE},
                      .dtype = TS_F32};
    ts_picture request = {.params.prompt = "a box", .params.seed = 1, .params.guidance_scale = 1};
    return studio_shoot(s, &shape, &request);
}

/* F8_E4M3 towards zero, which is a number again when it is read. */
static unsigned char byte_of(float v) {
    const float small = fabsf(v) * 0x1p-120f;
    uint32_t u;
    memcpy(&u, &small, sizeof u);
    u >>= 20;
    return (unsigned char)((u > 0x7eu ? 0x7eu : u) | (v < 0 ? 0x80u : 0));
}

static void store(ts_dtype to, const float *from, size_t n, char *ret) {
    for (size_t i = 0; i < n; i++)
        if (to == TS_F64)
            memcpy(ret + 8 * i, &(double){(double)from[i]}, 8);
        else if (to == TS_F8_E4M3)
            ret[i] = (char)byte_of(from[i]);
        else if (to == TS_F8_E5M2) {
            uint16_t half;
            ts_convert(TS_F32, &from[i], TS_F16, &half, 1);
            ret[i] = (char)(half >> 8);
        } else
            ts_convert(TS_F32, &from[i], to, ret + ts_dtype_size(to) * i, 1);
}

/* All weights of sd1 in a type, or float32 of the values that they are then. */
static shot box_of(ts_dtype type, bool widened) {
    workshop_gather("sd1");
    for (size_t i = 0; i < workshop.count; i++) {
        ts_file_tensor *t = &workshop.tensors[i];
        const size_t n = ts_file_tensor_elements(t);
        float *values = ts_array0(float, n);
        char *stored = workshop_room(n * ts_dtype_size(type) + 1);
        assert_non_null(values);
        ts_file_tensor_to_f32(t, values);
        store(type, values, n, stored);
        t->dtype = type;
        t->bytes = n * ts_dtype_size(type);
        t->data = stored;
        if (widened) {
            char *wide = workshop_room(4 * n + 1);
            ts_convert(type, stored, TS_F32, wide, n);
            t->dtype = TS_F32;
            t->bytes = 4 * n;
            t->data = wide;
        }
        free(values);
    }
    char *path = workshop_write("typed");
    workshop_beside(workshop_case("sd1"), "typed");
    studio s = studio_open_with(path, NULL, 1);
    shot have = box(s);
    studio_close(s);
    workshop_discard(path);
    return have;
}

/* A script that merges stores what it has touched in another type than the rest: one of two that are computed
 * as one. */
static void keys_and_values_may_be_of_different_types(void **state) {
    (void)state;
    shot shots[2];
    for (int i = 0; i < 2; i++) {
        workshop_gather("sd1");
        for (size_t k = 0; k < workshop.count; k++) {
            ts_file_tensor *t = &workshop.tensors[k];
            const bool values =
                strstr(t->name, "to_v.weight") || strstr(t->name, "v_proj.") || strstr(t->name, ".attn_1.v.");
            if (!values && i == 0) continue;
            const size_t n = ts_file_tensor_elements(t);
            char *wide = workshop_room(4 * n + 1);
            ts_convert(t->dtype, t->data, TS_F32, wide, n);
            t->dtype = TS_F32;
            t->bytes = 4 * n;
            t->data = wide;
        }
        char *path = workshop_write("mixed");
        workshop_beside(workshop_case("sd1"), "mixed");
        studio s = studio_open_with(path, NULL, 1);
        shots[i] = box(s);
        studio_close(s);
        workshop_discard(path);
    }
    assert_true(relative_l2(shots[0].latents, shots[1].latents) == 0);
    shot_free(shots[0]);
    shot_free(shots[1]);
}

static void weights_of_a_type_are_their_values(void **state) {
    const ts_dtype type = *(const ts_dtype *)*state;
    shot have = box_of(type, false), want = box_of(type, true);
    assert_true(relative_l2(have.latents, want.latents) == 0);
    assert_memory_equal(have.rgb, want.rgb, 64 * 64 * 3);
    shot_free(have);
    shot_free(want);
}

/* In the model's place or in that of none, each time the same one. */
static void hold_replaced(const char *model, const char *vae, shot want, size_t parameters) {
    studio s = studio_open_with(model, vae, 1);
    assert_int_equal(ts_model_get_info(s.model)->parameters, parameters);
    shot have = box(s);
    assert_memory_equal(have.rgb, want.rgb, 64 * 64 * 3);
    shot_free(have);
    studio_close(s);
}

static void not_replaced(const char *model, const char *vae, const char *word) {
    ts_error e = {0};
    ts_model *m = NULL;
    assert_int_equal(ts_model_load(model, vae, &m, &e), TS_EFORMAT);
    assert_null(m);
    if (!strstr(e.message, word)) fail_msg("%s, not %s", e.message, word);
}

/* An autoencoder alone in a file, in each of its three layouts, or in diffusers' folder. */
static void an_autoencoder_can_be_replaced(void **state) {
    (void)state;
    static const size_t skip[] = {0, sizeof "first_stage_model." - 1};
    char *folder = parity_path("pipeline_sd1"), *xl = parity_path("pipeline_xl");
    char *file = parity_path("pipeline_sd1/vae/diffusion_pytorch_model.safetensors");
    char *vae = parity_path("pipeline_sd1/vae"), *unet = parity_path("pipeline_sd1/unet");
    char *unet_file = parity_path("pipeline_sd1/unet/diffusion_pytorch_model.safetensors");
    studio s = studio_open_with(folder, NULL, 1);
    const size_t parameters = ts_model_get_info(s.model)->parameters;
    shot want = box(s);
    studio_close(s);
    hold_replaced(folder, file, want, parameters);
    hold_replaced(folder, vae, want, parameters);
    for (int i = 0; i < 2; i++) {
        workshop_gather("sd1");
        workshop_sift("first_stage_model.", true);
        for (size_t k = 0; k < workshop.count; k++) workshop.tensors[k].name += skip[i];
        char *path = workshop_write("vae");
        hold_replaced(folder, path, want, parameters);
        unlink(path);
        free(path);
    }
    /* A checkpoint without one. (The small model's sizes are not the published ones'; what lies beside says
     * so.) */
    workshop_gather("sd1");
    workshop_sift("first_stage_model.", false);
    char *path = workshop_write("none");
    workshop_beside(workshop_case("sd1"), "none");
    hold_replaced(path, vae, want, parameters);
    not_replaced(path, NULL, "no autoencoder");
    workshop_discard(path);
    /* Or with no more than the remains of one. */
    workshop_gather("sd1");
    workshop_sift("first_stage_model.decoder.", false);
    workshop_sift("first_stage_model.encoder.", false);
    path = workshop_write("remains");
    workshop_beside(workshop_case("sd1"), "remains");
    hold_replaced(path, vae, want, parameters);
    workshop_discard(path);
    not_replaced(xl, file, "other sizes");
    not_replaced(folder, unet_file, "no autoencoder");
    not_replaced(folder, unet, "UNet2DConditionModel");
    free(folder), free(xl), free(file), free(vae), free(unet), free(unet_file);
    shot_free(want);
}

/* Older scripts gave the names of newer libraries to the attention's matrices. */
static void attention_of_an_autoencoder_has_two_names(void **state) {
    (void)state;
    static const char *const names[][2] = {
        {"q.", "to_q."}, {"k.", "to_k."}, {"v.", "to_v."}, {"proj_out.", "to_out.0."}};
    char *folder = parity_path("pipeline_sd1"), *renamed[64];
    studio s = studio_open_with(folder, NULL, 1);
    shot want = box(s);
    int n = 0;
    studio_close(s);
    workshop_gather("sd1");
    for (size_t i = 0; i < workshop.count; i++) {
        const char *name = workshop.tensors[i].name, *at = strstr(name, ".mid.attn_1.");
        for (int k = 0; at && k < 4; k++) {
            const char *rest = at + strlen(".mid.attn_1.");
            if (strncmp(rest, names[k][0], strlen(names[k][0])) != 0) continue;
            assert_true(n < 64);
            workshop.tensors[i].name = renamed[n++] =
                ts_format("%.*s%s%s", (int)(rest - name), name, names[k][1], rest + strlen(names[k][0]));
        }
    }
    assert_int_equal(n, 16);
    char *path = workshop_write("renamed");
    workshop_beside(workshop_case("sd1"), "renamed");
    s = studio_open_with(path, NULL, 1);
    shot have = box(s);
    assert_memory_equal(have.rgb, want.rgb, 64 * 64 * 3);
    shot_free(have);
    shot_free(want);
    studio_close(s);
    workshop_discard(path);
    while (n) free(renamed[--n]);
    free(folder);
}

/* A checkpoint of which somebody has cut off what makes latents of pictures, and an autoencoder that does
 * without the convolutions around the latent. */
static void an_autoencoder_may_have_no_encoder_or_convolutions(void **state) {
    (void)state;
    char *folder = parity_path("pipeline_sd1");
    ts_error e = {0};
    ts_model *m = NULL;
    workshop_gather("sd1");
    workshop_sift("first_stage_model.encoder.", false);
    char *path = workshop_write("decoder");
    workshop_beside(workshop_case("sd1"), "decoder");
    must(ts_model_load(path, NULL, &m, &e), &e);
    ts_model_free(m);
    workshop_discard(path);
    workshop_gather("sd1");
    workshop_sift("first_stage_model.", true);
    workshop_sift("first_stage_model.post_quant_conv.", false);
    path = workshop_write("vae");
    must(ts_model_load(folder, path, &m, &e), &e);
    assert_true(m->vae.quant && !m->vae.post_quant);
    ts_model_free(m);
    unlink(path);
    free(path);
    free(folder);
}

/* CLIP's own vocabulary comes with the program: ids that transformers gives with
 * openai/clip-vit-large-patch14. */
static void a_file_without_a_tokenizer_has_that_of_clip(void **state) {
    (void)state;
    static const struct {
        const char *kind;
        int encoder;
        int32_t pad;
    } encoders[] = {{"sd1", 0, 49407}, {"sd2", 0, 0}, {"xl", 0, 49407}, {"xl", 1, 0}};
    static const int32_t cat[] = {49406, 320, 1125, 539, 320, 2368, 49407};
    for (size_t i = 0; i < sizeof encoders / sizeof *encoders; i++) {
        workshop_gather(encoders[i].kind);
        char *path = workshop_write(encoders[i].kind);
        ts_error e = {0};
        ts_checkpoint *c = NULL;
        ts_tokenizer *t = NULL;
        must(ts_checkpoint_open(path, &c, &e), &e);
        must(ts_checkpoint_tokenizer(c, encoders[i].encoder, &t, &e), &e);
        int32_t ids[77];
        int count;
        must(ts_tokenizer_encode(t, "a photo of a cat", 16, 77, ids, &count, NULL, &e), &e);
        assert_int_equal(count, 7);
        assert_memory_equal(ids, cat, sizeof cat);
        for (int k = count; k < 77; k++) assert_int_equal(ids[k], encoders[i].pad);
        assert_int_equal(ts_tokenizer_size(t), 49408);
        ts_tokenizer_free(t);
        ts_checkpoint_free(c);
        workshop_discard(path);
    }
}

static void a_ckpt_has_its_name_and_what_lies_beside_without_the_extension(void **state) {
    (void)state;
    char *path = workshop_make("sd1"), *other = ts_format("%s/sd1.ckpt", workshop.folder);
    ts_model *m = NULL;
    ts_error e = {0};
    assert_int_equal(rename(path, other), 0);
    must(ts_model_load(other, NULL, &m, &e), &e);
    assert_string_equal(ts_model_get_info(m)->id, "sd1");
    ts_model_free(m);
    assert_int_equal(rename(other, path), 0);
    workshop_discard(path);
    free(other);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    workshop_open(argc, argv);
    static const char *const kinds[] = {"sd1", "sd2", "xl", "lcm", "ssd", "tiny"};
    test_list tests = {0};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        test_add(&tests, the_weights_are_those_of_the_folder, kinds[i], 0, "%s: the weights are the folder's",
                 kinds[i]);
        test_add(&tests, the_sizes_are_read_from_the_shapes, kinds[i], 0, "%s: sizes from shapes", kinds[i]);
        if (i != 1)
            test_add(&tests, the_picture_is_that_of_the_folder, kinds[i], 0,
                     "%s: the picture is the folder's", kinds[i]);
    }
    test_add(&tests, keys_and_values_may_be_of_different_types, NULL, 0,
             "keys and values may be of different types");
    for (int type = TS_F32; type < TS_DTYPE_COUNT; type++)
        test_add(&tests, weights_of_a_type_are_their_values, &(ts_dtype){(ts_dtype)type}, sizeof(ts_dtype),
                 "weights of %s are their values", ts_dtype_name((ts_dtype)type));
    test_add(&tests, an_autoencoder_can_be_replaced, NULL, 0, "an autoencoder can be replaced");
    test_add(&tests, a_file_without_a_tokenizer_has_that_of_clip, NULL, 0,
             "a file without a tokenizer has CLIP's");
    test_add(&tests, attention_of_an_autoencoder_has_two_names, NULL, 0,
             "attention of an autoencoder has two names");
    test_add(&tests, an_autoencoder_may_have_no_encoder_or_convolutions, NULL, 0,
             "an autoencoder may have no encoder or convolutions");
    test_add(&tests, a_ckpt_has_its_name_and_what_lies_beside_without_the_extension, NULL, 0,
             "a ckpt has its name and what lies beside without the extension");
    int failed = test_run(&tests, "files");
    workshop_close();
    return failed;
}
