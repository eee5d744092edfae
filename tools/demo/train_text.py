"""A head start for the text encoder: it learns to name the caption's attributes before the U-Net ever sees it.

    python train_text.py --steps 400          # minutes on one core; writes --dir/text.pt

Cross-attention reads single positions, so each position after the end of the text, and the end itself, must know
every attribute: linear heads read them there. The heads are thrown away; training goes on jointly with the U-Net.
"""
import random
import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTokenizer

import bpe
import common
import models
import scenes


def tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        bpe.write(folder)
        return CLIPTokenizer.from_pretrained(folder)


def tokens(tok, texts):
    return tok(texts, padding="max_length", truncation=True, max_length=models.MAX_TOKENS,
               return_tensors="pt").input_ids


def main():
    p = common.arguments(__doc__)
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--batch", type=int, default=48)
    args = p.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads or 1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tok, text = tokenizer(), models.text_encoder()
    heads = nn.ModuleList(nn.Linear(models.TEXT_WIDTH, len(c)) for c in scenes.ATTRIBUTES.values())
    params = [*text.parameters(), *heads.parameters()]
    opt = torch.optim.AdamW(params, lr=1e-3, betas=(.9, .98), weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-3, args.steps, pct_start=.15)
    clock = common.Clock()
    for step in range(1, args.steps + 1):
        batch = [scenes.sample_scene(rng) for _ in range(args.batch)]
        ids = tokens(tok, [scenes.caption(s, rng) for s in batch])
        labels = torch.tensor([s.labels() for s in batch])
        with torch.autocast("cpu", torch.bfloat16):
            h = text(input_ids=ids).last_hidden_state
        after = (ids == models.VOCABULARY - 1).float()
        pick = torch.multinomial(after, 2, replacement=True)                 # the end, or a position after it
        h = h.float()[torch.arange(len(batch))[:, None], pick]
        loss = sum(F.cross_entropy(head(h).flatten(0, 1), labels[:, i].repeat_interleave(2))
                   for i, head in enumerate(heads)) / len(heads)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        schedule.step()
        if step % 20 == 0 or step == args.steps:
            right = [float((head(h[:, 0]).argmax(-1) == labels[:, i]).float().mean()) for i, head in enumerate(heads)]
            common.log(args.dir / "text.log", step=step, loss=float(loss), right=min(right), **clock.now())
    common.save_checkpoint(args.dir / "text.pt", text=text.state_dict(), clock=clock.now())


if __name__ == "__main__":
    main()
