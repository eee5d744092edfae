#!/usr/bin/env python3
"""Makes data/clip from open_clip_torch's bpe_simple_vocab_16e6.txt.gz: clip_vocabulary.py FILE.gz OUT-FOLDER

The vocabulary follows from the merges (Radford et al. 2021): 256 bytes, 256 bytes that end a word, each merge, and
the two special tokens; CLIP uses the first 48894 merges of the file.
"""
import gzip
import json
import pathlib
import sys

MERGES = 49152 - 256 - 2


def alphabet():
    """Printable stand-ins for the 256 bytes, in CLIP's order."""
    keep = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(256 - len(keep))]


def main():
    source, out = sys.argv[1], pathlib.Path(sys.argv[2])
    lines = gzip.open(source).read().decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1:MERGES + 1]]
    assert len(merges) == MERGES and all(len(m) == 2 for m in merges)
    symbols = alphabet()
    tokens = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens) == 49408
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (out / "vocab.json").write_text(text + "\n", "utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")


if __name__ == "__main__":
    main()
