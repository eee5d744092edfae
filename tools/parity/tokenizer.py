"""tokenizer/: a small CLIP vocabulary in the three forms that model folders have, and what it makes of ~300 strings."""
import json
import shutil
from collections import Counter

import regex
from transformers import CLIPTokenizer

import common
from tokenizer_strings import STRINGS, TRAINING_TEXT

MERGES = 250
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes, in the order of CLIP's vocabulary ('!' is 0)."""
    keep = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {b: chr(b) for b in keep}
    extra = 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return table


def train():
    """Plain byte-pair encoding with '</w>' on a word's last symbol; ties go to the pair seen first."""
    alphabet = byte_alphabet()
    words = Counter()
    for word in regex.findall(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", TRAINING_TEXT.lower()):
        symbols = [alphabet[b] for b in word.encode()]
        words[tuple(symbols[:-1] + [symbols[-1] + "</w>"])] += 1
    merges = []
    while len(merges) < MERGES:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = max(pairs, key=pairs.get)
        merges.append(best)
        merged = Counter()
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i:i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += n
        words = merged
    symbols = list(alphabet.values())
    tokens = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges] + [BOS, EOS]
    return {t: i for i, t in enumerate(tokens)}, merges


def added(content, normalized=True):
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": normalized,
            "rstrip": False, "single_word": False}


def write_published(path, vocab, merges, pad, normalized=True):
    """The files of a model published before 2026."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (path / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    common.save_json(path / "tokenizer_config.json", {
        "add_prefix_space": False, "bos_token": added(BOS, normalized), "eos_token": added(EOS, normalized),
        "unk_token": added(EOS, normalized), "pad_token": pad, "do_lower_case": True, "errors": "replace",
        "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    plain = {k: v for k, v in added(BOS, normalized).items() if k != "__type"}
    common.save_json(path / "special_tokens_map.json", {
        "bos_token": plain, "eos_token": {**plain, "content": EOS}, "unk_token": {**plain, "content": EOS},
        "pad_token": pad})


def main():
    root = common.folder("tokenizer")
    vocab, merges = train()
    shutil.rmtree(root)
    write_published(root / "files", vocab, merges, EOS)
    write_published(root / "files_pad0", vocab, merges, "!")
    kinds = {"files": CLIPTokenizer.from_pretrained(root / "files"),
             "files_pad0": CLIPTokenizer.from_pretrained(root / "files_pad0")}
    CLIPTokenizer.from_pretrained(root / "files").save_pretrained(root / "json")
    kinds["json"] = CLIPTokenizer.from_pretrained(root / "json")

    def unpadded(kind, text):
        tokenizer = kinds[kind]
        found = tokenizer(text, padding="max_length", max_length=77, truncation=True)
        row, used = found["input_ids"], sum(found["attention_mask"])
        assert row[used:] == [tokenizer.pad_token_id] * (77 - used)
        return row[:used]

    cases, nul = [], []
    for text in STRINGS:
        row = unpadded("files", text)
        assert row == unpadded("json", text), text
        case = {"text": text, "ids": row, "untruncated": len(kinds["files"](text)["input_ids"])}
        other = unpadded("files_pad0", text)
        if other != row:  # a pad token of its own is a special token of its own: '!' in the text is it
            case["pad0_ids"] = other
        if "\0" in text:  # a JSON reader with NUL-terminated strings cannot carry it
            case["utf8_hex"] = case.pop("text").encode().hex()
        (nul if "\0" in text else cases).append(case)
    folders = {k: {"bos": t.bos_token_id, "eos": t.eos_token_id, "pad": t.pad_token_id, "size": len(t)}
               for k, t in kinds.items()}
    with open(root / "cases.json", "w", encoding="utf-8") as f:
        f.write(json.dumps({"length": 77, "folders": folders})[:-1] + ',\n"cases": [\n')
        f.write(",\n".join(json.dumps(c) for c in cases) + '\n],\n"nul_cases": ' + json.dumps(nul) + "}\n")
    print(f"tokenizer: {len(vocab)} entries, {len(cases)} strings, {folders}")


if __name__ == "__main__":
    common.check_versions()
    main()
