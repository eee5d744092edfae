"""Draws scenes and keeps their latents for the U-Net's training.

    python latents.py --size 256x256 --count 8000         # adds shards to --dir/latents-256x256

A shard holds the posterior means (float16) and the scenes' labels; captions are made anew whenever a latent is used.
Only combinations of attributes that are not held out. The first run fixes the scaling factor in --dir/latents.json;
after the encoder is trained further, remove both.
"""
import json
import random

import torch

import common
import models
import scenes

SHARD = 250                                                  # scenes in a file


class Pictures(torch.utils.data.Dataset):
    def __init__(self, jobs):
        self.jobs = jobs

    def __len__(self):
        return len(self.jobs)

    def __getitem__(self, i):
        return torch.from_numpy(scenes.render(*self.jobs[i]))


def encode(vae, pictures, device):
    x = torch.stack(pictures).permute(0, 3, 1, 2)
    x = x.to(device, memory_format=torch.channels_last).float() / 127.5 - 1
    with torch.no_grad(), common.autocast(device):
        return vae.encode(x).latent_dist.mode()


def work(args, rank, device):
    width, height = (int(v) for v in args.size.split("x"))
    vae = models.autoencoder()
    saved = common.load_checkpoint(args.dir / "vae.pt")
    if saved:
        vae.load_state_dict(saved["ema"])
    else:
        from diffusers import AutoencoderKL
        vae = AutoencoderKL.from_pretrained(common.MODEL_DIR / "vae", torch_dtype=torch.float32)
    vae = common.fast_group_norms(vae).to(device, memory_format=torch.channels_last).eval()
    folder = args.dir / f"latents-{args.size}"
    folder.mkdir(parents=True, exist_ok=True)
    size = min(SHARD, args.count)
    step = max(1, 4 * 65536 // (width * height))
    for shard in range(rank, -(-args.count // size), common.workers()):
        path = folder / f"{args.first + shard:04d}.pt"
        if path.exists():
            continue
        rng = random.Random(f"{args.size} {args.first + shard}")
        picked = [scenes.sample_scene(rng) for _ in range(size)]
        jobs = [(s, rng.getrandbits(32), width, height) for s in picked]
        pictures, out = [], []
        for picture in common.loader(Pictures(jobs), device):
            pictures.append(picture)
            if len(pictures) == step or len(out) * step + len(pictures) == size:
                out.append(encode(vae, pictures, device).to("cpu", torch.float16))
                pictures = []
        z = torch.cat(out)
        common.save_checkpoint(path, latents=z, labels=torch.tensor([s.labels() for s in picked]))
        if rank == 0:
            print(path.name, float(z.float().std()), flush=True)
    if rank == 0 and not (args.dir / "latents.json").exists():
        if args.scale:
            scale = args.scale
        else:
            scale = 1 / float(z.float().std())
        (args.dir / "latents.json").write_text(json.dumps({"scaling_factor": round(scale, 4)}) + "\n")


def main():
    p = common.arguments(__doc__)
    p.add_argument("--size", default="256x256")
    p.add_argument("--count", type=int, default=8000)
    p.add_argument("--first", type=int, default=0, help="number of the first shard")
    p.add_argument("--scale", type=float, default=0, help="keep this scaling factor (going on from models/demo)")
    common.launch(work, p.parse_args())


if __name__ == "__main__":
    main()
