"""Trains the U-Net and, with it, the text encoder on the latents that latents.py keeps.

    nice -n 19 python train_unet.py --hours 1.5            # resumes from --dir/unet.pt
    python train_unet.py --hours 1 --from-model            # goes on from models/demo without a checkpoint

v prediction with zero terminal SNR, no guidance for a tenth of the captions, EMA weights. Batches of --batch latents
of 256x256; for a growing share of the time (--wide, after the first quarter) of the larger sizes, as many as cost the
same, each size as often as there are latents of it. More of the steps are noisy ones (--early): those settle what
stands where. In a larger picture each thing has more latents, so that its place is settled at noisier steps still.
The learning rate falls to zero over the last part of the run (--cool).
"""
import json
import math
import random

import torch
from diffusers.models.attention_processor import AttnProcessor

import common
import models
import scenes
from muon import Muon
from train_text import tokenizer, tokens

NAMES = list(scenes.ATTRIBUTES)


class Data:
    """All latents of a run in memory, by size; new shards are found when `refresh` is called."""

    def __init__(self, folder, scale):
        self.folder, self.scale, self.seen = folder, scale, set()
        self.latents, self.labels = {}, {}

    def refresh(self):
        for path in sorted(self.folder.glob("latents-*x*/*.pt")):
            if path in self.seen:
                continue
            self.seen.add(path)
            shard = common.load_checkpoint(path)
            size = path.parent.name.split("-")[1]
            self.latents.setdefault(size, []).append(shard["latents"])
            self.labels.setdefault(size, []).append(shard["labels"])

    def batch(self, size, n, rng):
        """(latents scaled, scenes)."""
        z, scene = [], []
        for _ in range(n):
            shard = rng.randrange(len(self.latents[size]))
            i = rng.randrange(len(self.latents[size][shard]))
            z.append(self.latents[size][shard][i])
            values = [c[k] for c, k in zip(scenes.ATTRIBUTES.values(), self.labels[size][shard][i].tolist())]
            scene.append(scenes.Scene(*values))
        return torch.stack(z).float() * self.scale, scene


def train(args, rank, device):
    torch.manual_seed(args.seed)
    unet, text = models.unet(), models.text_encoder()
    path = args.dir / "unet.pt"
    saved = None if args.fresh else common.load_checkpoint(path)
    step = 0
    if saved:
        unet.load_state_dict(saved["raw_unet"])
        text.load_state_dict(saved["raw_text"])
        step = saved["step"]
    elif args.from_model:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel
        unet = UNet2DConditionModel.from_pretrained(common.MODEL_DIR / "unet", torch_dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(common.MODEL_DIR / "text_encoder", dtype=torch.float32)
    else:
        head_start = common.load_checkpoint(args.dir / "text.pt")
        if head_start:
            text.load_state_dict(head_start["text"])
    rng = random.Random(f"{args.seed} {step} {rank}")
    torch.manual_seed(rng.getrandbits(40))
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())             # its backward is twice as fast as the fused one's
    unet = common.fast_group_norms(unet).to(device, memory_format=torch.channels_last)
    text = text.to(device)
    both = torch.nn.ModuleList([unet, text])
    ema = common.Ema(both, args.ema) if rank == 0 else None
    if saved and ema:
        ema.model[0].load_state_dict(saved["unet"])
        ema.model[1].load_state_dict(saved["text"])
        ema.steps = step
    params = list(both.parameters())
    opt = Muon(params, lr=args.lr, adam_lr=args.adam_lr, weight_decay=.01, adam=text.parameters())
    if saved and args.keep_optimizer and "opt" in saved:
        opt.load_state_dict(saved["opt"])
    tok = tokenizer()
    scale = json.loads((args.dir / "latents.json").read_text())["scaling_factor"]
    data = Data(args.dir, scale)
    data.refresh()
    alphas = scheduler_alphas().to(device)
    clock = common.Clock(saved and saved["clock"])
    samples = saved["samples"] if saved else 0
    n = max(1, args.batch // common.workers())
    first, done, mean, count, saved_at = step, 0.0, 0.0, 0, 0.0
    while done < 1:
        wide = [s for s in sorted(data.latents) if s != "256x256"]
        share = args.wide * min(1, max(0, (done - args.wide_from) / .1))
        # Every worker takes the same size in a step, so that none waits for the other.
        common_rng = random.Random(f"{args.seed} {step}")
        size = "256x256"
        if wide and common_rng.random() < share:
            size = common_rng.choices(wide, [len(data.latents[s]) for s in wide])[0]
        area = math.prod(int(v) for v in size.split("x")) / 65536
        z, scene = data.batch(size, max(1, round(n / area)), rng)
        z = z.to(device)
        captions = ["" if rng.random() < .1 else scenes.caption(s, rng, drop=.1) for s in scene]
        ids = tokens(tok, captions).to(device)
        # One step from each of len(scene) equal parts: batches then differ less in how noisy they are.
        u = (torch.arange(len(scene), device=device) + torch.rand(len(scene), device=device)) / len(scene)
        t = (u ** (args.early / area ** .5) * 1000).long().clamp(0, 999)
        noise = torch.randn_like(z)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * z + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * z
        with common.autocast(device):
            h = text(input_ids=ids).last_hidden_state
            v = unet(noisy.contiguous(memory_format=torch.channels_last), t, h).sample
        loss = ((v.float() - target) ** 2).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        grads = [p.grad for p in params if p.grad is not None]
        done = common.average(grads, clock.here() / (args.hours * 3600))
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        cool = min(1, max(0, (1 - done) / args.cool))
        opt.set_rate(min(1, (step - first + 1) / 40) * (.5 - .5 * math.cos(math.pi * cool)) + 1e-3)
        opt.step()
        step += 1
        samples += len(scene) * common.workers()
        if step % 200 == 0:
            data.refresh()
        if rank:
            continue
        ema.update(both)
        mean, count = mean + float(loss), count + 1
        if step % 25 == 0:
            common.log(args.dir / "unet.log", step=step, minutes=clock.here() / 60, done=done, samples=samples,
                       loss=mean / count, rate=opt.param_groups[0]["lr"])
            mean, count = 0.0, 0
        if clock.here() - saved_at > args.save_every * 60 or done >= 1:
            saved_at = clock.here()
            common.save_checkpoint(path, unet=ema.model[0].state_dict(), text=ema.model[1].state_dict(),
                                   raw_unet=unet.state_dict(), raw_text=text.state_dict(), step=step,
                                   opt=opt.state_dict(), clock=clock.now(), samples=samples)


def scheduler_alphas():
    """Cumulative alphas of the exported scheduler, zero terminal SNR included."""
    return models.scheduler().alphas_cumprod


def main():
    p = common.arguments(__doc__, hours=1.5)
    p.add_argument("--batch", type=int, default=32, help="latents of a step, over all workers")
    p.add_argument("--lr", type=float, default=.01, help="of the weight matrices (Muon)")
    p.add_argument("--adam-lr", type=float, default=6e-4, help="of all else, the text encoder included")
    p.add_argument("--ema", type=float, default=.998)
    p.add_argument("--early", type=float, default=.8, help="below 1: more of the noisy steps")
    p.add_argument("--wide", type=float, default=.4, help="share of steps on larger sizes, late in the run")
    p.add_argument("--wide-from", type=float, default=.25)
    p.add_argument("--cool", type=float, default=.5, help="last share of the run, in which the rate falls")
    p.add_argument("--save-every", type=float, default=4, help="minutes")
    p.add_argument("--keep-optimizer", action="store_true")
    p.add_argument("--from-model", action="store_true")
    common.launch(train, p.parse_args())


if __name__ == "__main__":
    main()
