"""Small random U-Nets of the published kinds. Weights are float16 values, so that files are half the size and exact."""
import json

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import common

C, D = "CrossAttnDownBlock2D", "DownBlock2D"
U, V = "CrossAttnUpBlock2D", "UpBlock2D"
BASE = {"in_channels": 4, "out_channels": 4, "norm_num_groups": 8, "sample_size": 16, "act_fn": "silu",
        "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
        "mid_block_scale_factor": 1, "downsample_padding": 1}
FOLDERS = {"sd1": "pipeline_sd1/unet", "sd2": "unet_sd2", "xl": "pipeline_xl/unet",
           "lcm": "unet_lcm", "ssd": "unet_ssd", "tiny": "unet_tiny"}
KINDS = {
    "sd1": {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "down_block_types": (C, C, C, D),
            "up_block_types": (V, U, U, U), "attention_head_dim": 2, "cross_attention_dim": 32},
    "sd2": {"block_out_channels": (16, 16, 24), "layers_per_block": 1, "down_block_types": (C, C, D),
            "up_block_types": (V, U, U), "attention_head_dim": (2, 4, 3), "cross_attention_dim": 32,
            "use_linear_projection": True},
    "xl": {"block_out_channels": (16, 16, 32), "layers_per_block": 2, "down_block_types": (D, C, C),
           "up_block_types": (U, U, V), "attention_head_dim": (1, 2, 4), "cross_attention_dim": 80,
           "use_linear_projection": True, "transformer_layers_per_block": (1, 1, 2),
           "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
           "projection_class_embeddings_input_dim": 88},
    # As LCM_Dreamshaper_v7, which is told the guidance scale.
    "lcm": {"block_out_channels": (16, 16, 32), "layers_per_block": 1, "down_block_types": (C, C, D),
            "up_block_types": (V, U, U), "attention_head_dim": 2, "cross_attention_dim": 32, "time_cond_proj_dim": 12},
    # As SSD-1B: XL's, with blocks of its own number after each resnet and no attention in the middle.
    "ssd": {"block_out_channels": (8, 16, 16), "layers_per_block": 2, "down_block_types": (D, C, C),
            "up_block_types": (U, U, V), "attention_head_dim": (1, 2, 2), "cross_attention_dim": 80,
            "use_linear_projection": True, "transformer_layers_per_block": (1, (2, 1), (1, 2)),
            "reverse_transformer_layers_per_block": ((2, 1, 3), (1, 2, 1), 1), "mid_block_type": "UNetMidBlock2D",
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 88},
    # As BK-SDM-Tiny.
    "tiny": {"block_out_channels": (16, 16, 24), "layers_per_block": 1, "down_block_types": (C, C, C),
             "up_block_types": (U, U, U), "attention_head_dim": 2, "cross_attention_dim": 32, "mid_block_type": None},
}


def round_to_half(module):
    for p in module.parameters():
        p.copy_(p.half().float())
    return module


def make(kind, seed):
    """Self-attention is made sharper than a random one, so that what a window leaves out can be seen."""
    model = common.randomise(UNet2DConditionModel(**BASE, **KINDS[kind]), seed)
    for name, m in model.named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_k")):
            m.weight.mul_(2.0)
        elif name.endswith("attn1.to_out.0"):
            m.weight.mul_(1.5)
    return round_to_half(model)


def save(model, path, bare=False):
    """In float16. bare: only the config keys that files of 2022 have, so that a reader's defaults are tested."""
    state = model.state_dict()
    model.half().save_pretrained(path)
    model.float().load_state_dict(state)
    if bare:
        file = path / "config.json"
        config = json.loads(file.read_text())
        known = {*BASE, *KINDS["sd1"], "_class_name", "_diffusers_version"}
        common.save_json(file, {k: v for k, v in config.items() if k in known})


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def condition(kind, batch, seed, tokens=77):
    """Random text states, and for XL what text_time adds."""
    dim = KINDS[kind]["cross_attention_dim"]
    found = {"encoder_hidden_states": common.randn((batch, tokens, dim), seed)}
    if "time_cond_proj_dim" in KINDS[kind]:
        found["guidance"] = torch.tensor([7.5, -0.5])[:batch] * 1000
    if "addition_embed_type" in KINDS[kind]:
        found["text_embeds"] = common.randn((batch, 40), seed + 1)
        found["time_ids"] = torch.tensor([[512., 512., 0., 0., 512., 512.], [512., 768., 8., 16., 384., 640.]])[:batch]
    return found


def call(model, sample, t, cond):
    extra = {k: cond[k] for k in ("text_embeds", "time_ids") if k in cond}
    told = None
    if "guidance" in cond:
        told = StableDiffusionPipeline.get_guidance_scale_embedding(
            None, cond["guidance"] / 1000, model.config.time_cond_proj_dim).to(sample.dtype)
    return model(sample, t, cond["encoder_hidden_states"], timestep_cond=told, added_cond_kwargs=extra or None).sample
