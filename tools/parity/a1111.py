"""How AUTOMATIC1111's web UI reads a prompt (its defaults), written from what it does: emphasis, chunks, mean."""
import re

import torch

BREAK = object()
CHUNK, BACKTRACK = 75, 20
WEIGHT = re.compile(r":\s*([+-]?[.0-9]+)\s*\)")
FACTORS = {"(": 1.1, "[": 1 / 1.1}


def parse(text):
    """[(text, weight) or BREAK, ..]: what stands in brackets, as far as they close, and to the end where they do not."""
    runs, opened, at = [], {"(": [], "[": []}, 0

    def close(kind, factor):
        for run in runs[opened[kind].pop():]:
            if run is not BREAK:
                run[1] *= factor

    while at < len(text):
        c, weight = text[at], WEIGHT.match(text, at)
        step = 1
        if c == "\\":
            if text[at + 1:at + 2] in ("\\", "(", ")", "[", "]") and at + 1 < len(text):
                runs.append([text[at + 1], 1.0])
                step = 2
        elif c in "([":
            opened[c].append(len(runs))
        elif weight and opened["("] and number(weight[1]) is not None:
            close("(", number(weight[1]))
            step = len(weight[0])
        elif c == ")" and opened["("]:
            close("(", FACTORS["("])
        elif c == "]" and opened["["]:
            close("[", FACTORS["["])
        else:
            step = len(re.match(r"[^\\()\[\]:]*", text[at:])[0]) or 1
            for i, part in enumerate(re.split(r"\s*\bBREAK\b\s*", text[at:at + step])):
                runs += ([BREAK] if i else []) + [[part, 1.0]]
        at += step
    for kind in "([":
        for start in opened[kind]:
            for run in runs[start:]:
                if run is not BREAK:
                    run[1] *= FACTORS[kind]
    merged = []
    for run in runs:
        if merged and BREAK not in (run, merged[-1]) and run[1] == merged[-1][1]:
            merged[-1][0] += run[0]
        else:
            merged.append(run)
    return [run if run is BREAK else tuple(run) for run in merged]


def number(text):
    try:
        return float(text)
    except ValueError:  # "1.2.3": the web UI raises; here it is text
        return None


def split(tokenizer, runs):
    """[[(id, weight), ..], ..], at most 75 a chunk, without begin, end and padding."""
    comma = tokenizer.get_vocab().get(",</w>")
    chunks, here = [], []
    for run in runs:
        if run is BREAK:
            chunks.append(here)
            here = []
            continue
        for i in tokenizer(run[0], add_special_tokens=False)["input_ids"] if run[0] else []:
            if len(here) == CHUNK:
                commas = [k for k, (token, _) in enumerate(here) if token == comma]
                cut = CHUNK
                if i != comma and commas and CHUNK - commas[-1] <= BACKTRACK:
                    cut = commas[-1] + 1
                chunks.append(here[:cut])
                here = here[cut:]
            here.append((i, run[1]))
    return chunks + ([here] if here or not chunks else [])


def frame(tokenizer, chunk, weights=False):
    if weights:
        return [1.0] + [w for _, w in chunk] + [1.0] * (CHUNK + 1 - len(chunk))
    ids = [tokenizer.bos_token_id] + [i for i, _ in chunk] + [tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (CHUNK + 2 - len(ids))


def encode(tokenizer, encoder, chunks, xl):
    """The text of all chunks one behind the other, and the pooled text of the first, or None."""
    text, pooled = [], None
    for chunk in chunks:
        out = encoder(torch.tensor([frame(tokenizer, chunk)]), output_hidden_states=True)
        z = out.hidden_states[-2] if xl else out.last_hidden_state
        weights = torch.tensor([frame(tokenizer, chunk, weights=True)])
        mean = z.mean()
        z = z * weights[..., None]
        text.append(z * (mean / z.mean()))
        if pooled is None:
            pooled = getattr(out, "text_embeds", None)
    return torch.cat(text, 1), pooled
