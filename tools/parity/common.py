"""What every fixture script shares: where files go, how they are written, small seeded weights."""
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.torch import save_file

import diffusers
import transformers

diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
torch.set_grad_enabled(False)

OUT = Path(os.environ.get("PARITY_OUT", Path(__file__).resolve().parents[2] / "tests" / "fixtures"))

PINNED = {"diffusers": "0.42.1", "transformers": "5.23.0", "torch": "2.13.0"}


def check_versions():
    from importlib.metadata import version

    for name, wanted in PINNED.items():
        found = version(name).split("+")[0]
        if found != wanted:
            raise SystemExit(f"{name} is {found}, the fixtures are made with {wanted}")


def folder(*parts):
    path = OUT.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def save_tensors(path, tensors, metadata=None):
    """Tensors to one safetensors file: contiguous, detached, floats as float32, integers as int64."""
    plain = {}
    for name, t in tensors.items():
        t = torch.as_tensor(t).detach()
        if t.dtype in (torch.float64, torch.float16, torch.bfloat16):
            t = t.float()
        if t.dtype in (torch.int32, torch.uint8):
            t = t.long()
        plain[name] = t.contiguous().clone()
    save_file(plain, str(path), metadata=metadata)
    os.chmod(path, 0o644)


def save_json(path, value, compact=False):
    def default(v):
        if isinstance(v, (np.floating, np.integer)):
            return v.item()
        if isinstance(v, (np.ndarray, torch.Tensor)):
            return v.tolist()
        raise TypeError(type(v))

    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=None if compact else 1, default=default, ensure_ascii=True)
        f.write("\n")


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def randn(shape, seed, scale=1.0):
    return torch.randn(shape, generator=generator(seed)) * scale


def randomise(module, seed):
    """Keeps default initial weights, and moves what they leave trivial: affines away from 1, biases away from 0."""
    g = generator(seed)

    def normal(p, mean, std):
        p.copy_(mean + std * torch.randn(p.shape, generator=g))

    for _, m in sorted(module.named_modules()):
        if isinstance(m, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            if m.weight is not None:
                normal(m.weight, 1.0, 0.2)
                normal(m.bias, 0.0, 0.2)
        elif isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)):
            fan_in = m.weight[0].numel()
            normal(m.weight, 0.0, 0.8 * fan_in**-0.5)
            if m.bias is not None:
                normal(m.bias, 0.0, 0.1)
        elif isinstance(m, torch.nn.Embedding):
            normal(m.weight, 0.0, 0.5)
    return module.eval()


def rel_l2(a, b):
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())
