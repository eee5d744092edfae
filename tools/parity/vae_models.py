"""A small random AutoencoderKL with the published shape: four levels, 8x, attention in the middle."""
from diffusers import AutoencoderKL

import common
import unet_models

CONFIG = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (8, 16, 16, 24),
          "layers_per_block": 1, "norm_num_groups": 4, "act_fn": "silu", "sample_size": 64,
          "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def make(seed, **extra):
    return unet_models.round_to_half(common.randomise(AutoencoderKL(**{**CONFIG, **extra}), seed))
