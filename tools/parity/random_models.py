"""Makes a diffusers folder with random weights: random_models.py KIND FOLDER [--small]

KIND is sd15, sd21 (v prediction) or sdxl. Full-size ones have the published shapes (1.07, 1.29 and 3.47 thousand million
parameters: 2, 3 and 7 GB); small ones have the same parts. Weights are float16 values of the size that trained layers
have (README.md, "Choices"), seeded by their names; they are drawn and written one after another, in shards, so that memory
stays below 1 GB.
"""
import argparse
import json
import math
import shutil
import struct
import zlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import common
import text_models
import unet_models
import vae_models

ROOT = Path(__file__).resolve().parents[2]
SHARD_BYTES = 2 * 10**9
KINDS = "sd15", "sd21", "sdxl"
SMALL_NAME = {"sd15": "sd1", "sd21": "sd2", "sdxl": "xl"}  # in the modules of the fixtures

UNETS = {
    "sd15": dict(cross_attention_dim=768, attention_head_dim=8, sample_size=64),
    "sd21": dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True, sample_size=96),
    "sdxl": dict(cross_attention_dim=2048, attention_head_dim=[5, 10, 20], use_linear_projection=True, sample_size=128,
                 block_out_channels=(320, 640, 1280), transformer_layers_per_block=[1, 2, 10],
                 down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                 addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816),
}
VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
           up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=512)
IDS = dict(vocab_size=49408, bos_token_id=49406, eos_token_id=49407)
CLIP_L = dict(IDS, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
              hidden_act="quick_gelu", projection_dim=768)
CLIP_H = dict(IDS, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu",
              projection_dim=512)
CLIP_BIG_G = dict(IDS, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
                  hidden_act="gelu", projection_dim=1280)
BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000, steps_offset=1,
             timestep_spacing="leading")
SCHEDULERS = {
    "sd15": ("DDIMScheduler", dict(BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type="epsilon")),
    "sd21": ("DDIMScheduler", dict(BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")),
    "sdxl": ("EulerDiscreteScheduler", dict(BETAS, prediction_type="epsilon", interpolation_type="linear")),
}


def models(kind, small):
    """The model of each part, without weights."""
    xl = kind == "sdxl"
    scaling = 0.13025 if xl else 0.18215
    name = SMALL_NAME[kind]
    if small:
        unet, vae = {**unet_models.BASE, **unet_models.KINDS[name]}, vae_models.CONFIG
        texts = [text_models.KINDS["sd1" if xl else name][1], text_models.KINDS["xl2"][1]]
        texts = [{**text_models.COMMON, **t, "eos_token_id": 763} for t in texts]
    else:
        unet, vae, texts = UNETS[kind], VAE, [CLIP_H if kind == "sd21" else CLIP_L, CLIP_BIG_G]
    with torch.device("meta"):
        found = {"unet": UNet2DConditionModel(**unet), "vae": AutoencoderKL(**{**vae, "scaling_factor": scaling}),
                 "text_encoder": CLIPTextModel(CLIPTextConfig(**texts[0]))}
        if xl:
            found["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**texts[1]))
    return found


def scales(model):
    """Of each parameter: mean and standard deviation."""
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            found[f"{name}.weight"], found[f"{name}.bias"] = (1, 0.2), (0, 0.2)
        elif isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)):
            std = 0.8 * m.weight[0].numel() ** -0.5
            if name.endswith(("attn1.to_q", "attn1.to_k")):
                std *= 2
            elif name.endswith("attn1.to_out.0"):
                std *= 1.5
            found[f"{name}.weight"], found[f"{name}.bias"] = (0, std), (0, 0.1)
        elif isinstance(m, torch.nn.Embedding):
            found[f"{name}.weight"] = 0, 0.5
    return found


def write_shard(path, part, names, shapes, scale):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        size = 2 * math.prod(shapes[name])
        header[name] = {"dtype": "F16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            mean, std = scale[name]
            drawn = torch.randn(shapes[name], generator=common.generator(zlib.crc32(f"{part}/{name}".encode())))
            file.write(drawn.mul_(std).add_(mean).half().numpy().tobytes())


def write_weights(folder, part, model):
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    shapes = {name: t.shape for name, t in model.state_dict().items()}
    shards, full = [[]], 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if full + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            full = 0
        shards[-1].append(name)
        full += size
    scale = scales(model)
    if len(shards) == 1:
        write_shard(folder / f"{stem}.safetensors", part, shards[0], shapes, scale)
        return
    files = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards):
        write_shard(folder / file, part, names, shapes, scale)
    total = sum(2 * math.prod(s) for s in shapes.values())
    common.save_json(folder / f"{stem}.safetensors.index.json", {
        "metadata": {"total_size": total}, "weight_map": {n: f for f, names in zip(files, shards) for n in names}})


def write_tokenizer(folder, small, pad_zero):
    if small:
        fixtures = ROOT / "tests" / "fixtures" / "tokenizer"
        shutil.copytree(fixtures / ("files_pad0" if pad_zero else "files"), folder, dirs_exist_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in "vocab.json", "merges.txt":
        shutil.copy(ROOT / "data" / "clip" / name, folder)
    common.save_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "!" if pad_zero else "<|endoftext|>"})


def make(kind, folder, small, say=print):
    """The index is written last: a folder that has one is complete."""
    folder = Path(folder)
    xl = kind == "sdxl"
    index = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
             "_diffusers_version": common.PINNED["diffusers"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "scheduler": ["diffusers", SCHEDULERS[kind][0]]}
    for part, model in models(kind, small).items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        config = model.config
        (config.save_pretrained if part.startswith("text") else model.save_config)(folder / part)
        write_weights(folder / part, part, model)
        say(f"{folder / part}: {unet_models.parameters(model) / 1e6:.1f} million parameters")
        index[part] = ["transformers" if part.startswith("text") else "diffusers", type(model).__name__]
    write_tokenizer(folder / "tokenizer", small, kind == "sd21")
    if xl:
        write_tokenizer(folder / "tokenizer_2", small, True)
        index |= {"tokenizer_2": index["tokenizer"], "force_zeros_for_empty_prompt": True}
    else:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    (folder / "scheduler").mkdir(exist_ok=True)
    name, config = SCHEDULERS[kind]
    common.save_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": name, **config})
    common.save_json(folder / "model_index.json", index)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("kind", choices=KINDS)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--small", action="store_true")
    args = ap.parse_args()
    common.check_versions()
    make(args.kind, args.folder, args.small)
