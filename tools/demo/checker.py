"""The checker: a small CNN that reads a picture's attributes, trained on rendered scenes only.

    python checker.py --hours 0.3             # writes --dir/checker.pt; prints how often each attribute is right

Pictures are read at 128x128 after blur, noise, JPEG-like shifts of light: what generated pictures differ by, so that
it judges the content and not the finish.
"""
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import common
import scenes
from muon import Muon

SIDE = 128
NAMES = list(scenes.ATTRIBUTES)


class Checker(nn.Module):
    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.layers = nn.ModuleList()
        for a, b in zip(widths, widths[1:]):
            self.layers.append(nn.Sequential(nn.Conv2d(a, b, 3, padding=1, stride=2 if a == 3 else 1), nn.BatchNorm2d(b),
                                             nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(),
                                             nn.MaxPool2d(2)))
        self.hidden = nn.Linear(128 * 4 * 4, 256)            # positions kept: ranges and counts need them
        self.heads = nn.ModuleList(nn.Linear(256 + 128, len(c)) for c in scenes.ATTRIBUTES.values())

    def forward(self, x):
        """x: [b][3][128][128] in [-1, 1]; a list of logits, one an attribute."""
        for layer in self.layers:
            x = layer(x)
        h = F.relu(self.hidden(x.flatten(1)))
        h = torch.cat([h, x.amax((2, 3))], 1)
        return [head(h) for head in self.heads]


def prepare(pictures):
    """uint8 [h][w][3] pictures of any size -> the checker's input."""
    out = [F.interpolate(torch.from_numpy(np.ascontiguousarray(p)).permute(2, 0, 1)[None].float(), (SIDE, SIDE),
                         mode="bilinear", antialias=True) for p in pictures]
    return torch.cat(out) / 127.5 - 1


def disturb(x, rng):
    if rng.random() < .5:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1) * (k := rng.random()) + x * (1 - k)
    x = x + torch.randn(x.size(0), x.size(1), 1, 1) * .03
    x = x * (1 + torch.randn(x.size(0), 1, 1, 1) * .04)
    low = F.interpolate(torch.randn(x.size(0), 3, 16, 16), x.shape[2:], mode="bilinear")
    return x + low * rng.random() * .05 + torch.randn_like(x) * rng.random() * .05


def draw(rng, n, allow=lambda s: True):
    picked = [scenes.sample_scene(rng, allow) for _ in range(n)]
    x = prepare([scenes.render(s, rng.getrandbits(32), SIDE, SIDE) for s in picked])
    return x, torch.tensor([s.labels() for s in picked])


class Batch:
    def __init__(self, n):
        self.n = n

    def __call__(self, rng):
        x, y = draw(rng, self.n, lambda s: not scenes.held_out(s))
        return disturb(x, rng), y


@torch.no_grad()
def right(model, n=600, seed=4242):
    """Share right by attribute on n pictures of held-out combinations, drawn at 256x256."""
    rng = random.Random(seed)
    model.eval()
    hits = torch.zeros(len(NAMES))
    for _ in range(n // 50):
        picked = [scenes.sample_scene(rng, scenes.held_out) for _ in range(50)]
        x = prepare([scenes.render(s, rng.getrandbits(32)) for s in picked])
        y = torch.tensor([s.labels() for s in picked])
        hits += torch.tensor([float((l.argmax(-1) == y[:, i]).sum()) for i, l in enumerate(model(x))])
    model.train()
    return dict(zip(NAMES, (hits / n).tolist()))


def work(args, rank, device):
    torch.manual_seed(args.seed)
    model = Checker()
    path = args.dir / "checker.pt"
    saved = None if args.fresh else common.load_checkpoint(path)
    if saved:
        model.load_state_dict(saved["model"])
    rng = random.Random(f"{args.seed} {rank} {saved['step'] if saved else 0}")
    opt = Muon(model.parameters(), lr=.01, adam_lr=1e-3, weight_decay=.01)
    params = list(model.parameters())
    clock, step, done = common.Clock(saved and saved["clock"]), saved["step"] if saved else 0, 0.0
    n = max(1, args.batch // common.workers())
    model.to(device)
    batches = iter(common.loader(common.Stream(Batch(n), rng.getrandbits(40)), device))
    while done < 1:
        x, y = (v.to(device) for v in next(batches))
        opt.set_rate(max(.01, 1 - done))
        logits = model(x)
        loss = sum(F.cross_entropy(l, y[:, i]) for i, l in enumerate(logits))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        done = common.average([p.grad for p in params], clock.here() / (args.hours * 3600))
        opt.step()
        step += 1
        if rank == 0 and step % 50 == 0:
            common.log(args.dir / "checker.log", step=step, minutes=clock.here() / 60, loss=float(loss))
    model.cpu()
    if rank == 0:
        common.log(args.dir / "checker.log", step=step, **(scores := right(model)), **clock.now())
        common.save_checkpoint(path, model=model.state_dict(), step=step, clock=clock.now(), scores=scores)


def load(folder):
    saved = common.load_checkpoint(folder / "checker.pt")
    if not saved:
        raise SystemExit(f"no {folder / 'checker.pt'}: run checker.py first")
    model = Checker()
    model.load_state_dict(saved["model"])
    return model.eval(), saved["scores"]


def main():
    p = common.arguments(__doc__, hours=0.3)
    p.add_argument("--batch", type=int, default=64)
    common.launch(work, p.parse_args())


if __name__ == "__main__":
    main()
