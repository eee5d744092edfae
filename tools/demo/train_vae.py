"""Trains the autoencoder on crops of freshly drawn scenes.

    nice -n 19 python train_vae.py --hours 0.5            # resumes from --dir/vae.pt
    python train_vae.py --hours 0.5 --decoder-only        # the latents, and so the U-Net, stay valid

Without --decoder-only the latents change: remove --dir/latents* and train the U-Net anew.

The loss is L1, L1 of the differences to the neighbours at three scales (edges), and a small KL term. A fresh run
begins with three latent channels held to the picture's own light and colours, shrunk eight times: left alone, the
latents stay colourless for long. The learning rate falls to zero over the run's --hours.
"""
import math
import random

import numpy as np
import torch
import torch.nn.functional as F

import common
import models
import scenes
from muon import Muon


def batch(rng, size, n, crops=2):
    """n crops of `size` from n / crops fresh pictures, [-1, 1]."""
    out = []
    for _ in range(max(1, n // crops)):
        w, h = rng.choice(((256, 256),) * 6 + ((384, 256), (256, 384), (512, 512)))
        if size > 256:
            w, h = size, size
        p = scenes.render(scenes.sample_scene(rng), rng.getrandbits(32), w, h)
        for _ in range(crops if n >= crops else n):
            # Crops favour the middle of the height: edges, objects and their mirror images are there.
            y = min(max(int(rng.gauss(.5, .26) * (h - size)), 0), h - size)
            x = rng.randint(0, w - size)
            c = p[y:y + size, x:x + size]
            out.append(c[:, ::-1] if rng.random() < .5 else c)
    x = torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


class Crops:
    """Makes batches of the shape that the training's phase asks for."""

    def __init__(self, shapes, phase):
        self.shapes, self.phase = shapes, phase

    def __call__(self, rng):
        return batch(rng, *self.shapes[self.phase.value])


def edges(d):
    return (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()


def opponent(x):
    """Light, blue to red, magenta to green, at a latent's size and about its spread."""
    r, g, b = F.avg_pool2d(x, 8).unbind(1)
    return torch.stack([(r + g + b) * .5, (r - b) * 1.2, (g - (r + b) / 2) * 3], 1)


def loss_of(vae, x, kl_weight, decoder_only, hint):
    with torch.set_grad_enabled(not decoder_only):
        q = vae.encode(x).latent_dist
        z = q.sample()
    y = vae.decode(z).sample
    d = y.float() - x
    loss = d.abs().mean() + .5 * (d * d).mean().sqrt()
    e = d
    for weight in (.5, .3, .2):
        loss = loss + weight * edges(e)
        e = F.avg_pool2d(e, 2)
    kl = 0.5 * (q.mean.float() ** 2 + q.var.float() - 1 - q.logvar.float()).mean()
    if hint > 0:
        loss = loss + hint * (q.mean[:, :3].float() - opponent(x)).abs().mean()
    return loss + kl_weight * kl, (d * d).mean(), kl


@torch.no_grad()
def psnr(vae, device, n=24, size=256):
    """Over n held-out pictures."""
    rng = random.Random(99)
    total = 0.0
    for i in range(n):
        p = scenes.render(scenes.sample_scene(rng, scenes.held_out), 10_000_000 + i, size, size)
        x = torch.from_numpy(p).permute(2, 0, 1)[None].float().to(device) / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        total += 10 * math.log10(4 / float(((x - y) ** 2).mean()))
    return total / n


@torch.no_grad()
def normalise(vae, device, n=96):
    """Gives each latent channel zero mean and unit variance over the data, folded into the 1x1 convolutions on both
    sides: the pictures stay the same, and the U-Net's noise is spread evenly over the channels."""
    rng = random.Random(7)
    z = []
    for i in range(n):
        x = torch.from_numpy(scenes.render(scenes.sample_scene(rng), i)).permute(2, 0, 1)[None].float()
        z.append(vae.encode(x.to(device) / 127.5 - 1).latent_dist.mode())
    z = torch.cat(z)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    a, b = vae.quant_conv, vae.post_quant_conv
    a.weight[:4] /= std.view(-1, 1, 1, 1)
    a.bias[:4] = (a.bias[:4] - mean) / std
    a.bias[4:] -= 2 * std.log()
    b.bias += (b.weight[:, :, 0, 0] @ mean)
    b.weight *= std.view(1, -1, 1, 1)
    return mean.tolist(), std.tolist()


def train(args, rank, device):
    torch.manual_seed(args.seed)
    vae = models.autoencoder()
    path = args.dir / "vae.pt"
    saved = None if args.fresh else common.load_checkpoint(path)
    step = 0
    if saved:
        vae.load_state_dict(saved["ema"])
        step = saved["step"]
    elif args.from_model:
        from diffusers import AutoencoderKL
        vae = AutoencoderKL.from_pretrained(common.MODEL_DIR / "vae", torch_dtype=torch.float32)
    else:
        # Almost no noise in the latents at first: with the usual unit variance colour drowns in it for long.
        with torch.no_grad():
            vae.quant_conv.weight[4:] = 0
            vae.quant_conv.bias[4:] = -5
    rng = random.Random(f"{args.seed} {step} {rank}")
    torch.manual_seed(rng.getrandbits(40))
    clock = common.Clock(saved and saved["clock"])
    vae = common.fast_group_norms(vae).to(device, memory_format=torch.channels_last)
    ema = common.Ema(vae, .998)
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    params = [q for q in vae.parameters() if q.requires_grad]
    opt = Muon(params, lr=args.lr, adam_lr=1e-3)
    first, mean, early = step, 0.0, step == 0                # small crops at first: more steps
    n = max(2, args.batch // common.workers())
    done = 0.0
    phase = torch.multiprocessing.Value("i", 0)              # loader processes see it change
    shapes = ((args.size // 2, n, 2), (args.size, n, 2), (256, max(1, n // 4), 1))
    crops = iter(common.loader(common.Stream(Crops(shapes, phase), rng.getrandbits(40)), device))
    while done < 1:
        phase.value = 2 if done > 1 - args.whole else 0 if early and done < .3 else 1
        x = next(crops).to(device, memory_format=torch.channels_last)
        rate = min(1, (step - first + 1) / 15) * (.5 * (1 + math.cos(math.pi * done)) + .005)
        opt.set_rate(rate)
        with common.autocast(device):
            loss, mse, kl = loss_of(vae, x, args.kl, args.decoder_only, max(0, 1 - done / .3) if early else 0)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        done = common.average([q.grad for q in params], clock.here() / (args.hours * 3600))
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        if rank:
            continue
        ema.update(vae)
        mean += float(mse)
        if step % 50 == 0:
            common.log(args.dir / "vae.log", step=step, minutes=clock.here() / 60, rate=rate, loss=float(loss),
                       kl=float(kl), psnr_crops=10 * math.log10(4 * 50 / mean))
            mean = 0.0
        if step % 300 == 0:
            common.save_checkpoint(path, ema=ema.model.state_dict(), step=step, clock=clock.now(), psnr=0.0)
    if rank:
        return
    if not args.decoder_only:
        normalise(ema.model, device)
    value = psnr(ema.model, device)
    common.save_checkpoint(path, ema=ema.model.state_dict(), step=step, clock=clock.now(), psnr=value)
    common.log(args.dir / "vae.log", step=step, held_out_psnr=value, **clock.now())


def main():
    p = common.arguments(__doc__, hours=0.5)
    p.add_argument("--batch", type=int, default=8, help="crops of a step, over all workers")
    p.add_argument("--size", type=int, default=128, help="crop size")
    p.add_argument("--whole", type=float, default=.2, help="the last share of the time, on whole pictures of 256²")
    p.add_argument("--lr", type=float, default=.01)
    p.add_argument("--kl", type=float, default=5e-5)
    p.add_argument("--decoder-only", action="store_true")
    p.add_argument("--from-model", action="store_true", help="start from models/demo when there is no checkpoint")
    common.launch(train, p.parse_args())


if __name__ == "__main__":
    main()
