"""ranks.safetensors: patch-parallel denoising on n ranks, simulated with diffusers' own U-Net.

Every rank is a thread that runs the whole U-Net on its rows. The layers that look beyond their rows are
replaced: 3x3 convolutions, down- and upsampling, GroupNorm, self-attention. A layer posts what it computed
under its name; in a synchronous evaluation it waits for its peers and reads theirs of this evaluation, in
an asynchronous one it reads what they posted in the evaluation before. Written from the definitions of the
method alone (docs/ARCHITECTURE.md), to be held against the engine.
"""
import functools
import math
import threading

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D

import common
import samplers


class Plan:
    """Rows of every level by rank: the deepest level's as evenly as they go, the first ranks one more."""

    def __init__(self, height, width, levels, n):
        self.n = n
        self.heights, self.widths = [height], [width]
        for _ in range(levels - 1):
            self.heights.append((self.heights[-1] + 1) // 2)
            self.widths.append((self.widths[-1] + 1) // 2)
        deepest = self.heights[-1]
        if deepest < n:
            raise ValueError(f"{deepest} rows at the deepest level cannot make {n} patches")
        self.deepest = [deepest // n + (i < deepest % n) for i in range(n)]
        bounds = [sum(self.deepest[:i]) for i in range(n + 1)]
        self.bounds = [[min(b << (levels - 1 - level), self.heights[level]) for b in bounds]
                       for level in range(levels)]

    def rows(self, level, rank):
        return self.bounds[level][rank], self.bounds[level][rank + 1]


class Exchange:
    """What was posted in this evaluation and in the one before, by layer and rank."""

    def __init__(self, n):
        self.n, self.barrier = n, threading.Barrier(n, timeout=120)
        self.now, self.before = {}, {}

    def post(self, name, rank, value):
        self.now.setdefault(name, [None] * self.n)[rank] = value

    def fresh(self, name):
        self.barrier.wait()
        return self.now[name]

    def stale(self, name):
        return self.before[name]

    def end_evaluation(self):
        self.before, self.now = self.now, {}


class Ranks:
    """A U-Net whose layers know about ranks. settings: ranks, mode, partial, group_norm."""

    def __init__(self, unet, height, width, settings):
        self.unet, self.settings, self.n = unet, settings, settings["ranks"]
        self.naive = settings["mode"] == "naive"
        self.levels = len(unet.config.block_out_channels)
        self.plan = Plan(height, width, self.levels, self.n)
        self.exchange, self.local = Exchange(self.n), threading.local()
        self.synchronous = True
        self.raised = []  # how many variances came out too low, by layer and rank
        self.patched = []
        for name, module in unet.named_modules():
            method = self.replacement(name, module)
            if method:
                module.forward = functools.partial(method, name, module, self.level_of(name))
                self.patched.append(module)

    def close(self):
        for module in self.patched:
            del module.forward

    def level_of(self, name):
        parts = name.split(".")
        if parts[0] == "down_blocks":
            return int(parts[1])
        if parts[0] == "up_blocks":
            return self.levels - 1 - int(parts[1])
        return self.levels - 1 if parts[0] == "mid_block" else 0

    def replacement(self, name, module):
        if isinstance(module, Downsample2D):
            return self.downsample
        if isinstance(module, Upsample2D):
            return self.upsample
        if isinstance(module, torch.nn.GroupNorm):
            return self.group_norm
        if isinstance(module, Attention) and name.endswith("attn1"):
            return self.self_attention
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) and "samplers" not in name:
            return self.convolution
        return None

    # What a layer reads of its peers: this evaluation's in a synchronous one (or where `always_fresh`), else the last's.
    def peers(self, name, value, always_fresh=False):
        self.exchange.post(name, self.local.rank, value)
        if self.synchronous or always_fresh:
            return self.exchange.fresh(name)
        return self.exchange.stale(name)

    def halo(self, name, x, above, below, always_fresh=False):
        """The neighbours' edge rows; zeros at the picture's edge, and everywhere in naive mode."""
        rank = self.local.rank
        zeros = torch.zeros_like(x[:, :, :1])
        if self.naive:
            return zeros, zeros
        found = self.peers(name, x, always_fresh)
        up = found[rank - 1][:, :, -1:] if above and rank > 0 else zeros
        down = found[rank + 1][:, :, :1] if below and rank + 1 < self.n else zeros
        return up, down

    def convolution(self, name, m, level, x):
        up, down = self.halo(name, x, True, True, always_fresh=name == "conv_in")
        return F.conv2d(torch.cat([up, x, down], 2), m.weight, m.bias, padding=(0, 1))

    def downsample(self, name, m, level, x, *_args, **_kwargs):
        up, _ = self.halo(name, x, True, False)
        first, last = self.plan.rows(level + 1, self.local.rank)
        parts = [up, x]
        if x.shape[2] < 2 * (last - first):  # an odd height ends in the picture's padding
            parts.append(torch.zeros_like(up))
        out = F.conv2d(torch.cat(parts, 2), m.conv.weight, m.conv.bias, stride=2, padding=(0, 1))
        assert out.shape[2] == last - first
        return out

    def upsample(self, name, m, level, x, *_args, **_kwargs):
        up, down = self.halo(name, x, True, True)
        first, last = self.plan.rows(level - 1, self.local.rank)
        width = self.plan.widths[level - 1]
        big = x.repeat_interleave(2, 2)[:, :, :last - first]
        big = torch.cat([up, big, down], 2).repeat_interleave(2, 3)[:, :, :, :width]
        return F.conv2d(big, m.conv.weight, m.conv.bias, padding=(0, 1))

    def group_norm(self, name, m, level, x):
        rank = self.local.rank
        grouped = x.reshape(x.shape[0], m.num_groups, -1)
        count = grouped.shape[2]
        own = (grouped.double().mean(2), grouped.double().square().mean(2), count)

        def pooled(parts):
            total = sum(c for _, _, c in parts)
            return sum(a * c for a, _, c in parts) / total, sum(b * c for _, b, c in parts) / total

        mode = self.settings["group_norm"]
        least = torch.zeros_like(own[0])
        if self.naive:
            mean, square = own[:2]
        else:
            found = self.peers(name, own, always_fresh=mode == "sync")
            if self.synchronous or mode == "sync":
                mean, square = pooled(found)
            elif mode == "local":
                mean, square = own[:2]
            elif mode == "stale":
                mean, square = pooled([own if i == rank else part for i, part in enumerate(found)])
            elif mode == "corrected":
                mean, square = pooled(found)
                mean = mean + (own[0] - found[rank][0])
                square = square + (own[1] - found[rank][1])
                known, known_square = pooled([own if i == rank else part for i, part in enumerate(found)])
                least = 0.75 * (known_square - known.square())
            else:
                raise ValueError(mode)
        variance = square - mean.square()
        low = variance < least
        self.raised.append(int(low.sum()))
        variance = torch.where(low, least, variance)
        mean, scale = mean.float(), (variance + m.eps).rsqrt().float()
        normal = ((grouped - mean[:, :, None]) * scale[:, :, None]).reshape(x.shape)
        return normal * m.weight[None, :, None, None] + m.bias[None, :, None, None]

    def self_attention(self, name, m, level, x, *_args, **_kwargs):
        rank, width = self.local.rank, self.plan.widths[level]
        q, k, v = m.to_q(x), m.to_k(x), m.to_v(x)
        if not self.naive:
            found = self.peers(name, (k, v))
            first, last = (row * width for row in self.plan.rows(level, rank))
            tokens = self.plan.heights[level] * width
            if self.synchronous or self.settings["partial"] == "all":
                low, high = 0, tokens
            else:
                window = math.ceil(self.settings["partial"] * (last - first))
                low, high = max(0, first - window), min(tokens, last + window)
            k, v = (torch.cat([own if i == rank else part[j] for i, part in enumerate(found)], 1)[:, low:high]
                    for j, own in ((0, k), (1, v)))
        q, k, v = (t.unflatten(2, (m.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return m.to_out[0](out)

    def evaluate(self, sample, t, ehs, synchronous):
        """One U-Net evaluation of the whole picture's sample, rank by rank at the same time."""
        self.synchronous = synchronous
        outputs, errors = [None] * self.n, []

        def work(rank):
            try:
                self.local.rank = rank
                first, last = self.plan.rows(0, rank)
                with torch.no_grad():
                    outputs[rank] = self.unet(sample[:, :, first:last], t, ehs).sample
            except Exception as e:  # a rank that fails must not leave its peers waiting
                errors.append(e)
                self.exchange.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.n)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        if errors:
            raise errors[0]
        self.exchange.end_evaluation()
        return torch.cat(outputs, 2)


def denoise(evaluate, scheduler, noise, ehs, steps, guidance, rescale=0.0, interval=(0.0, 1.0), parts=None):
    """DDIM with guidance; evaluate(sample of two, t, ehs, index of the evaluation). parts: the rows that each have
    their own standard deviation for the guidance rescale; without, all of the picture."""
    guider = ClassifierFreeGuidance(guidance, rescale, start=interval[0], stop=interval[1])
    scheduler.set_timesteps(steps)
    latents, trace = noise * scheduler.init_noise_sigma, []
    for index, t in enumerate(scheduler.timesteps):
        out = evaluate(torch.cat([latents, latents]), t, ehs, index)
        without, with_text = out.chunk(2)
        guider.set_state(step=index, num_inference_steps=steps, timestep=t)
        guided = torch.cat([guider.forward(with_text[:, :, a:b], without[:, :, a:b]).pred
                            for a, b in parts or [(0, None)]], 2)
        latents = scheduler.step(guided, t, latents).prev_sample
        trace.append(latents)
    return trace


def run(unet, scheduler, noise, ehs, case):
    ranks = Ranks(unet, noise.shape[2], noise.shape[3], case)
    try:
        always = case["mode"] == "sync"
        parts = [ranks.plan.rows(0, i) for i in range(ranks.n)] if case["mode"] == "naive" else None
        trace = denoise(lambda x, t, e, i: ranks.evaluate(x, t, e, always or i <= case["warmup"]),
                        scheduler, noise, ehs, case["steps"], case["guidance"], parts=parts,
                        **{k: case[k] for k in ("rescale", "interval") if k in case})
    finally:
        ranks.close()
    return trace, ranks


def make_scheduler():
    return DDIMScheduler(**samplers.make_config("ddim", "scaled_linear", "leading", "epsilon", False))


def open_model(path):
    return UNet2DConditionModel.from_pretrained(path).eval()
