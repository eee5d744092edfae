"""What the training programs share: devices, GroupNorm with a cheap backward, EMA, checkpoints, clocks."""
import argparse
import copy
import json
import os
import random
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

DEFAULT_DIR = Path.home() / ".cache" / "tessera-demo"
MODEL_DIR = Path(__file__).resolve().parents[2] / "models" / "demo"


def arguments(doc, **defaults):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="checkpoints and cached data")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--threads", type=int, default=0, help="CPU threads of each worker; 0 is one (all for a single worker)")
    p.add_argument("--workers", type=int, default=0, help="processes; 0 is one for each core, or one with CUDA")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--fresh", action="store_true", help="ignore a checkpoint in --dir")
    if "hours" in defaults:
        p.add_argument("--hours", type=float, default=defaults["hours"], help="stop after so long")
    return p


def launch(work, args):
    """Runs work(args, rank, device) in args.workers processes of one thread each, or here if that is one.

    One thread a process beats one process of many threads on CPUs: no barrier after each op, where a busy
    machine makes all threads wait for the one that is not running.
    """
    args.dir.mkdir(parents=True, exist_ok=True)
    name = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    workers = args.workers or (1 if name == "cuda" else os.cpu_count())
    if workers == 1:
        if args.threads:
            torch.set_num_threads(args.threads)
        work(args, 0, torch.device(name))
        return
    meet = tempfile.mktemp(prefix="tessera-demo-")
    torch.multiprocessing.spawn(_worker, (work, args, workers, name, meet), nprocs=workers)


def _worker(rank, work, args, workers, name, meet):
    torch.set_num_threads(args.threads or 1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=workers)
    work(args, rank, torch.device(name))
    dist.destroy_process_group()


def workers():
    return dist.get_world_size() if dist.is_initialized() else 1


def average(tensors, number=0.0):
    """Replaces the tensors by their mean over the workers; returns the mean of `number`."""
    if not dist.is_initialized():
        return number
    flat = torch.cat([t.reshape(-1).float() for t in tensors] + [torch.tensor([float(number)])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for t in tensors:
        t.copy_(flat[at:at + t.numel()].view(t.shape))
        at += t.numel()
    return float(flat[-1])


class Stream(torch.utils.data.IterableDataset):
    """make(rng) for ever, each loader process with a generator of its own."""

    def __init__(self, make, seed):
        self.make, self.seed = make, seed

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed} {info.id if info else 0}")
        while True:
            yield self.make(rng)


def loader(dataset, device):
    """Iterates over the dataset: in this process on a CPU, which has nothing to spare, in all cores beside CUDA."""
    processes = os.cpu_count() - 1 if device.type == "cuda" else 0
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=processes)


def autocast(device):
    return torch.autocast(device.type, torch.bfloat16)


class _GroupNorm(torch.autograd.Function):
    """GroupNorm as one affine by channel; the backward is two sums by channel and one affine more."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        b, c = x.shape[:2]
        n = x[0, 0].numel() * (c // groups)
        v = x.flatten(2)
        s1 = v.sum(-1, dtype=torch.float32).view(b, groups, -1).sum(-1)
        s2 = (v * v).sum(-1, dtype=torch.float32).view(b, groups, -1).sum(-1)
        mean = s1 / n
        rstd = (s2 / n - mean * mean).clamp_min(0).add(eps).rsqrt()
        k = c // groups
        a = weight.float() * rstd.repeat_interleave(k, 1)                        # b, c
        d = bias.float() - a * mean.repeat_interleave(k, 1)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        shape = (b, c) + (1,) * (x.dim() - 2)
        return torch.addcmul(d.to(x.dtype).view(shape), x, a.to(x.dtype).view(shape))

    @staticmethod
    def backward(ctx, g):
        x, weight, mean, rstd = ctx.saved_tensors
        groups = ctx.groups
        b, c = x.shape[:2]
        k = c // groups
        n = x[0, 0].numel() * k
        sg = g.flatten(2).sum(-1).float()                                        # b, c
        sgx = (g * x).flatten(2).sum(-1).float()
        m, r = mean.repeat_interleave(k, 1), rstd.repeat_interleave(k, 1)
        xhat_g = r * (sgx - m * sg)                                              # sum of g * xhat by channel
        dweight, dbias = xhat_g.sum(0), sg.sum(0)
        w = weight.float()
        p = (w * sg).view(b, groups, k).sum(-1) / n
        q = (w * xhat_g).view(b, groups, k).sum(-1) / n
        p, q = p.repeat_interleave(k, 1), q.repeat_interleave(k, 1)
        shape = (b, c) + (1,) * (x.dim() - 2)
        # dx = r * (w g - p - xhat q) = (r w) g - (r r q) x + r (r m q - p)
        dx = torch.addcmul((r * (r * m * q - p)).to(x.dtype).view(shape), g, (r * w).to(x.dtype).view(shape))
        dx = torch.addcmul(dx, x, (-r * r * q).to(x.dtype).view(shape))
        return dx, dweight.to(weight.dtype), dbias.to(weight.dtype), None, None


class FastGroupNorm(nn.GroupNorm):
    def forward(self, x):
        return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)


def fast_group_norms(model):
    """Same parameters, same values to rounding; only the class changes, so saving is not affected."""
    for m in model.modules():
        if type(m) is nn.GroupNorm:
            m.__class__ = FastGroupNorm
    return model


class Ema:
    """An exponential mean of a model's weights; the decay warms up with the steps."""

    def __init__(self, model, decay):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, model):
        self.steps += 1
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], 1 - d)


def save_checkpoint(path, **state):
    tmp = Path(str(path) + ".new")
    torch.save(state, tmp)
    os.replace(tmp, path)


def load_checkpoint(path, device="cpu"):
    return torch.load(path, map_location=device, weights_only=True) if Path(path).exists() else None


class Clock:
    """Wall and CPU seconds of training, carried over restarts."""

    def __init__(self, before=None):
        self.before = before or {"wall": 0.0, "cpu": 0.0}
        self.t0, self.c0 = time.time(), time.process_time()

    def now(self):
        return {"wall": self.before["wall"] + time.time() - self.t0,
                "cpu": self.before["cpu"] + (time.process_time() - self.c0) * workers()}

    def here(self):
        return time.time() - self.t0


def log(path, **row):
    line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    print(line, flush=True)
    with open(path, "a") as f:
        f.write(line + "\n")
