"""The demo model's vocabulary: byte-level BPE in CLIP's format, trained on the captions and a list of common words.

    python bpe.py OUT_FOLDER        writes vocab.json, merges.txt and the transformers files; checks them

1024 entries: 256 byte symbols, the same with </w>, 510 merges, <|startoftext|>, <|endoftext|>. Any UTF-8 text has
an encoding, since every byte has a symbol.
"""
import json
import random
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import regex

import models
import scenes

SPLIT = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
START, END = "<|startoftext|>", "<|endoftext|>"

# Words outside the domain, so that free text does not fall apart into single letters.
COMMON = """
the of and to in is it you that he was for on are with as his they be at one have this from or had by but what some
we can out other were all there when up use your how said an each she which do their time if will way about many
then them write would like so these her long make thing see him two has look more day could go come did number sound
no most people my over know water than call first who may down side been now find any new work part take get place
made live where after back little only round man year came show every good me give our under name very through just
form sentence great think say help low line differ turn cause much mean before move right boy old too same tell does
set three want air well also play small end put home read hand port large spell add even land here must big high such
follow act why ask men change went light kind off need house picture try us again animal point mother world near
build self earth father head stand own page should country found answer school grow study still learn plant cover
food sun four between state keep eye never last let thought city tree cross farm hard start might story saw far sea
draw left late run while press close night real life few north open seem together next white children begin got walk
example ease paper group always music those both mark often letter until mile river car feet care second book carry
took science eat room friend began idea fish mountain stop once base hear horse cut sure watch color colour face wood
main enough plain girl usual young ready above ever red list though feel talk bird soon body dog family direct pose
leave song measure door product black short class wind question happen complete ship area half rock order fire south
problem piece told knew pass since top whole king space heard best hour better true during hundred five remember step
early hold west ground interest reach fast sing listen six table travel less morning ten simple several toward war
lay against pattern slow center love person money serve appear road map rain rule govern pull cold notice voice unit
power town fine certain fly fall lead cry dark machine note wait plan figure star box noun field rest correct able
pound done beauty drive stood contain front teach week final gave green oh quick develop ocean warm free minute strong
special mind behind clear tail produce fact street inch multiply nothing course stay wheel full force blue object
decide surface deep moon island foot system busy test record boat common gold possible plane stead dry wonder laugh
thousand ago ran check game shape hot miss brought heat snow tire bring yes distant fill east paint language among
castle forest desert beach tower bridge garden flower cat photo portrait drawing style realistic beautiful bright
cloud cloudy storm fog mist sky winter summer spring autumn hill valley village purple pink brown grey gray
""".split()


def byte_symbols():
    """GPT-2's printable stand-in for each byte, in its order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = plain + [b for b in range(256) if b not in plain]
    return {b: chr(b) if b in plain else chr(256 + i - len(plain)) for i, b in enumerate(order)}


BYTES = byte_symbols()


def words(text):
    text = " ".join(unicodedata.normalize("NFC", text).split()).lower()
    return SPLIT.findall(text)


def symbols(word):
    s = [BYTES[b] for b in word.encode()]
    return tuple(s[:-1] + [s[-1] + "</w>"])


def merge_pair(word, pair):
    out, i = [], 0
    while i < len(word):
        if word[i:i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def train(size):
    """The merges, the most frequent pair first; ties go to the smaller pair, so that runs agree."""
    rng = random.Random(5)
    counts = Counter()
    for _ in range(4000):
        counts.update(words(scenes.caption(scenes.sample_scene(rng, lambda s: True), rng)))
    for word in COMMON:
        counts[word] += 6
    table = {w: symbols(w) for w in counts}
    merges = []
    while len(merges) < size - 2 * 256 - 2:
        pairs = Counter()
        for w, s in table.items():
            for pair in zip(s, s[1:]):
                pairs[pair] += counts[w]
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        table = {w: merge_pair(s, best) for w, s in table.items()}
    return merges


def vocabulary(merges):
    base = list(BYTES.values())
    return {t: i for i, t in enumerate(base + [b + "</w>" for b in base] + [a + b for a, b in merges] + [START, END])}


def encode(text, vocab, merges):
    """The plain definition of CLIP's encoding, without padding: what transformers must agree with."""
    rank = {p: i for i, p in enumerate(merges)}
    ids = []
    for word in words(text):
        if word in (START, END):
            ids.append(vocab[word])
            continue
        s = symbols(word)
        while len(s) > 1:
            pair = min(zip(s, s[1:]), key=lambda p: rank.get(p, len(rank)))
            if pair not in rank:
                break
            s = merge_pair(s, pair)
        ids += [vocab[t] for t in s]
    return [vocab[START]] + ids[:models.MAX_TOKENS - 2] + [vocab[END]]


def write(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = train(models.VOCABULARY)
    vocab = vocabulary(merges)
    assert len(vocab) == models.VOCABULARY
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": models.MAX_TOKENS, "do_lower_case": True,
         "add_prefix_space": False, "errors": "replace", **special}, indent=2) + "\n")
    return vocab, merges


def check(folder, vocab, merges):
    from transformers import CLIPTokenizer
    tok = CLIPTokenizer.from_pretrained(folder)
    rng = random.Random(6)
    texts = [scenes.caption(scenes.sample_scene(rng, lambda s: True), rng) for _ in range(300)]
    texts += ["", "  A   café\tnaïve\n", "日本の湖 🌅🏔", "It's 1234 o'clock, we'll see... <|endoftext|> x", "e\u0301tude",
              "ÀÉÎ õ ß", "x" * 300, "!?$%&/()=", "the quick brown fox doesn't jump"]
    longest = 0
    for text in texts:
        ours, theirs = encode(text, vocab, merges), tok(text, truncation=True, max_length=models.MAX_TOKENS).input_ids
        assert ours == theirs, (text, ours, theirs)
        longest = max(longest, len(ours)) if texts.index(text) < 300 else longest
    unknown = [w for w in {w for t in texts[:300] for w in words(t)} if len(encode(w, vocab, merges)) > 3]
    print(f"{len(texts)} texts agree with transformers; longest caption {longest} tokens; "
          f"caption words of several tokens: {sorted(unknown)}")


if __name__ == "__main__":
    check(sys.argv[1], *write(sys.argv[1]))
