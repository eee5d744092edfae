"""Small random CLIP text encoders, used alone and in the whole pipelines."""
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import common

COMMON = {"vocab_size": 764, "max_position_embeddings": 77, "num_attention_heads": 4, "attention_dropout": 0.0}
KINDS = {
    # as published for SD 1.x: eos_token_id 2 stands for "the largest id of the row"
    "sd1": (CLIPTextModel, {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "projection_dim": 32,
                            "hidden_act": "quick_gelu", "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
    "sd2": (CLIPTextModel, {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "projection_dim": 32,
                            "hidden_act": "gelu", "bos_token_id": 762, "eos_token_id": 763, "pad_token_id": 0}),
    "xl2": (CLIPTextModelWithProjection,
            {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 3, "projection_dim": 40,
             "hidden_act": "gelu", "bos_token_id": 762, "eos_token_id": 763, "pad_token_id": 0}),
}


def make(kind, seed):
    cls, config = KINDS[kind]
    return common.randomise(cls(CLIPTextConfig(**COMMON, **config)), seed)


def to_legacy(path):
    """Renames a saved folder's keys to what was published before 2026, position_ids included."""
    import torch

    name = str(path / "model.safetensors")
    tensors = {k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v
               for k, v in load_file(name).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    save_file(tensors, name, metadata={"format": "pt"})
