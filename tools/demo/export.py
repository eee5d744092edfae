"""Writes models/demo/: a diffusers folder of StableDiffusionPipeline in float16.

    python export.py [--dir CHECKPOINTS] [--out FOLDER]

What has no checkpoint is taken from models/demo as it is, or is random where there is none yet.

The model card (README.md) is written by hand beside it and not touched.
"""
import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

import bpe
import common
import models


def networks(folder):
    """(vae, text encoder, unet) in float32 from the checkpoints' EMA weights."""
    vae, text, unet = models.autoencoder(), models.text_encoder(), models.unet()
    if (common.MODEL_DIR / "unet" / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(common.MODEL_DIR / "vae", torch_dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(common.MODEL_DIR / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(common.MODEL_DIR / "unet", torch_dtype=torch.float32)
    state = common.load_checkpoint(folder / "vae.pt")
    if state:
        vae.load_state_dict(state["ema"])
    latents = folder / "latents.json"
    if latents.exists():
        vae.register_to_config(scaling_factor=json.loads(latents.read_text())["scaling_factor"])
    state = common.load_checkpoint(folder / "unet.pt") or common.load_checkpoint(folder / "text.pt")
    if state:
        text.load_state_dict(state["text"])
        if "unet" in state:
            unet.load_state_dict(state["unet"])
    return vae, text, unet


def write(folder, out):
    out = Path(out)
    vae, text, unet = networks(folder)
    bpe.write(out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    pipe = StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet,
                                   scheduler=models.scheduler(), safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(out, safe_serialization=True)
    for extra in (out / "tokenizer").iterdir():               # as published models have it: vocab.json + merges.txt
        extra.unlink()
    bpe.write(out / "tokenizer")
    for f in out.rglob("config.json"):                        # diffusers notes where a network came from
        f.write_text("".join(l for l in f.read_text().splitlines(True) if '"_name_or_path"' not in l))
    for f in out.rglob("*.safetensors"):
        f.chmod(0o644)
    megabytes = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    print(f"{out}: {megabytes:.1f} MB")
    assert megabytes <= 40


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--dir", type=Path, default=common.DEFAULT_DIR)
    p.add_argument("--out", type=Path, default=common.MODEL_DIR)
    a = p.parse_args()
    write(a.dir, a.out)
