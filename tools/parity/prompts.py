"""prompts.json, prompts.safetensors: what pipelines hand to the U-Net for prompts that ask for more than their words."""
import random

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import a1111
import common

SD1, XL = "pipeline_sd1", "pipeline_xl"
BASE = {"prompt": "a yellow sun over purple mountains, a lake at dawn", "negative": "blurry, low quality",
        "clip_skip": 0, "truncate": False, "emphasis": False, "embeddings": False, "chunks": 1}
CASES = [
    {"name": "sd1_skip_1", "folder": SD1, "clip_skip": 1},
    {"name": "sd1_skip_2", "folder": SD1, "clip_skip": 2},
    {"name": "xl_skip_0", "folder": XL},
    {"name": "xl_skip_1", "folder": XL, "clip_skip": 1},
    {"name": "sd1_truncate", "folder": SD1, "prompt": "the sea, the sun and the moon, " * 10, "truncate": True},
    {"name": "sd1_words", "folder": SD1, "embeddings": True, "prompt": "a <cat-toy> under a sun, easynegative, the One Word.",
     "negative": "easynegative"},
    {"name": "xl_words", "folder": XL, "embeddings": True, "prompt": "a xl-thing, under a sun", "negative": "houses xl-thing"},
    # These two are AUTOMATIC1111's way, as the rest of the file is diffusers'.
    {"name": "sd1_long", "folder": SD1, "prompt": "the sea, the sun and the moon, " * 8, "chunks": 2},
    {"name": "sd1_emphasis", "folder": SD1, "prompt": "a (lake:1.4) under [a ((yellow)) sun], (no:-0.5) houses",
     "negative": "((blurry)), \\(low\\) quality", "emphasis": True},
    {"name": "sd1_break", "folder": SD1, "prompt": "a (lake) BREAK (under a sun, BREAK dawn:0.8)", "emphasis": True,
     "chunks": 3},
    {"name": "xl_emphasis", "folder": XL, "prompt": "a (lake:1.4) under [a ((yellow)) sun], (no:0.2) houses",
     "emphasis": True},
    {"name": "xl_long_negative", "folder": XL, "negative": "the sea, the sun and the moon, " * 8, "chunks": 2},
]


def splits():
    """Prompts around the ends of chunks. A letter or a comma that stands alone is a token."""
    wanted = ["", "a", " ".join("a" * 75), " ".join("a" * 76), " ".join("a" * 150), " ".join("a" * 151)]
    for comma in (0, 30, 53, 54, 55, 56, 73, 74, 75, 76):
        wanted.append(" ".join("a" * comma + "," + "b" * (100 - comma)))
    wanted += [" ".join("a" * 74 + ",,," + "b" * 5), " ".join("a" * 60 + "," + "b" * 70 + "," + "c" * 10),
               " ".join("a" * 60 + "," + "b" * 5 + "," + "c" * 100), "a, b," * 60, "wow!" * 90]
    g = random.Random(7)
    for _ in range(30):
        wanted.append("".join(g.choice(["a ", "b ", "cat ", "the ", "sailboats ", ", ", ",", "! ", "é ", "4k "])
                              for _ in range(g.randrange(10, 200))))
    return wanted


# XL's size conditions: (height, width) in diffusers, "WxH" and [left, top] here.
PICTURE = {"prompt": "a yellow sun over purple mountains, a lake at dawn", "negative": "blurry, low quality",
           "folder": XL, "emphasis": False, "chunks": 1, "seed": 42, "guidance": 5.0, "steps": 4, "width": 96, "height": 64}
PICTURES = [
    {"name": "xl_sizes", "original_size": [512, 320], "crop": [24, 8], "target_size": [1024, 768]},
    {"name": "xl_original", "original_size": [256, 384]},
    {"name": "xl_crop", "crop": [0, 200]},
    {"name": "sd1_long_picture", "folder": SD1, "prompt": "the sea, the sun and the moon, " * 8, "chunks": 2},
    {"name": "xl_long_picture", "negative": "the sea, the sun and the moon, " * 16, "chunks": 4},
]


def brackets():
    """What emphasis is made of, well and badly."""
    wanted = ["", "a", "()", "[]", "(a)", "[a]", "(a:1.5)", "[a:1.5]", "(a:.5)", "(a:1.)", "(a:+2)", "(a:-0.5)", "(a: 1.2 )",
              "(a:)", "(a:.)", "(a:1.2.3)", "(a:1,3)", "a:1.3)", "a:1.3", "(a:1.3", "((a:1.3)", "((a:1.3))", "(a", "[a", "a)", "a]",
              "((a) [b] c", "[[a] (b) c", "(a [b) c] d", "[a (b] c) d", "\\(a\\)", "\\[a\\]", "a \\\\ b", "a \\b", "a\\", "(a\\)",
              "(\\(a\\):1.2)", "a (b)(c) d", "(a)(b:1.1)", "a BREAK b", "BREAK", "BREAK a", "a BREAK", "aBREAK b", "a BREAKb",
              "a_BREAK b", "éBREAK b", "BREAKé", "a,BREAK,b", "(a BREAK b)", "(a BREAK b:1.3)", "a BREAK BREAK b", "a (BREAK) b",
              "a BREAK BREAK", "BREAK BREAK", "a BREAK BREAK BREAK", "a break b", "BREAK:b", "a: b", "a (b:c:1.2) d", "(a:1e3)", "(é:1.2)", "(cat, sailboats:1.3), the 4k", "(((((a)))))",
              "[[[[[a]]]]]", "(a, b, c:1.2), " * 30, "a " * 70 + "(b, c c c c c c c c:1.3)", "a " * 75 + "BREAK b",
              "a " * 76 + "BREAK b", "(a:0)"]
    g = random.Random(11)
    for _ in range(120):
        wanted.append("".join(g.choice(["a", "b ", "cat", " ", ", ", "(", "(", ")", ")", "[", "]", ":1.3)", ":", "\\", "1.2",
                                        " BREAK ", "é", "the "]) for _ in range(g.randrange(3, 40))))
    return wanted


def make_embeddings():
    """The layouts that are published: a tensor under the word, with and without the dimension of one, emb_params, a pair."""
    def vectors(seed, *shape):
        return 0.5 * common.randn(shape, seed)
    where = common.folder("embeddings")
    common.save_tensors(where / "learned_embeds.safetensors", {"<cat-toy>": vectors(1, 3, 32)})
    save_file({"emb_params": vectors(2, 5, 32).half()}, str(where / "easyNegative.safetensors"))
    (where / "easyNegative.safetensors").chmod(0o644)
    common.save_tensors(where / "third.safetensors", {"one word": vectors(3, 32)})
    common.save_tensors(where / "xl-thing.safetensors", {"clip_l": vectors(4, 4, 32), "clip_g": vectors(5, 4, 48)})
    common.save_tensors(where / "wide.safetensors", {"too wide": vectors(6, 2, 1024)})


def load_embeddings(pipe, folder):
    """diffusers finds a word's first vector whatever its capitals, but the others only as it is written: all in lower case."""
    where = common.folder("embeddings")
    if folder == SD1:
        pipe.load_textual_inversion(load_file(where / "learned_embeds.safetensors"))
        pipe.load_textual_inversion({"easynegative": load_file(where / "easyNegative.safetensors")["emb_params"].float()})
        pipe.load_textual_inversion(load_file(where / "third.safetensors"))
    else:
        pair = load_file(where / "xl-thing.safetensors")
        pipe.load_textual_inversion({"xl-thing": pair["clip_l"]}, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
        pipe.load_textual_inversion({"xl-thing": pair["clip_g"]}, text_encoder=pipe.text_encoder_2,
                                    tokenizer=pipe.tokenizer_2)


def load(folder):
    cls = StableDiffusionPipeline if folder == SD1 else StableDiffusionXLPipeline
    pipe = cls.from_pretrained(common.folder(folder))
    if not hasattr(pipe.text_encoder, "text_model"):
        # Since transformers 5 there is no such layer, but diffusers still looks for the norm in it.
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe


def runs(case, text):
    return a1111.parse(text) if case["emphasis"] else [(text, 1.0)]


def embed_chunks(pipe, case):
    found, xl = {}, case["folder"] == XL
    parts = [(pipe.tokenizer, pipe.text_encoder)] + ([(pipe.tokenizer_2, pipe.text_encoder_2)] if xl else [])
    for field, text, pooled in (("prompt", "prompt_embeds", "pooled"), ("negative", "negative_embeds", "negative_pooled")):
        columns = []
        for tokenizer, encoder in parts:
            chunks = a1111.split(tokenizer, runs(case, case[field]))
            chunks += [[]] * (case["chunks"] - len(chunks))
            z, p = a1111.encode(tokenizer, encoder, chunks, xl)
            columns.append(z)
            if p is not None:
                found[pooled] = p
        found[text] = torch.cat(columns, -1)
    return found


def embed(pipe, case):
    if case["chunks"] > 1 or case["emphasis"]:
        return embed_chunks(pipe, case)
    found = pipe.encode_prompt(case["prompt"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                               negative_prompt=case["negative"], clip_skip=case["clip_skip"])
    return dict(zip(("prompt_embeds", "negative_embeds", "pooled", "negative_pooled"), found))


def paint(pipe, case):
    """The pipeline's last latents, of noise that the CPU's generator makes of the seed."""
    arguments = {"prompt": case["prompt"], "negative_prompt": case["negative"]}
    if case["folder"] == XL:
        swapped = {name: tuple(reversed(case[name])) if name in case else None
                   for name in ("original_size", "crop", "target_size")}
        arguments |= {"original_size": swapped["original_size"], "target_size": swapped["target_size"],
                      "crops_coords_top_left": swapped["crop"] or (0, 0)}
    if case["chunks"] > 1 or case["emphasis"]:
        found = embed_chunks(pipe, case)
        arguments |= {"prompt": None, "negative_prompt": None, "prompt_embeds": found["prompt_embeds"],
                      "negative_prompt_embeds": found["negative_embeds"]}
        if case["folder"] == XL:
            arguments |= {"pooled_prompt_embeds": found["pooled"],
                          "negative_pooled_prompt_embeds": found["negative_pooled"]}
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=case["steps"], guidance_scale=case["guidance"], height=case["height"],
                width=case["width"], generator=common.generator(case["seed"]), output_type="latent", **arguments).images


def check_parser():
    """The examples in the web UI's own documentation."""
    for text, wanted in (("normal text", [("normal text", 1)]), ("(unbalanced", [("unbalanced", 1.1)]),
                         ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
                         ("\\(literal\\]", [("(literal]", 1)]), ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
                         ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                          [("a ", 1), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.5 * 1.1),
                           (", sun, ", 1.1), ("sky", 1.1 ** 4), (".", 1.1)])):
        found = a1111.parse(text)
        assert [f[0] for f in found] == [w[0] for w in wanted], (text, found)
        assert all(abs(f[1] - w[1]) < 1e-9 for f, w in zip(found, wanted)), (text, found)


def main():
    check_parser()
    make_embeddings()
    pipes, tensors, cases = {f: load(f) for f in (SD1, XL)}, {}, []
    for case in CASES:
        case = {**BASE, **case}
        if case["embeddings"]:
            load_embeddings(pipes[case["folder"]], case["folder"])
        found = embed(pipes[case["folder"]], case)
        print(case["name"], {k: f"{tuple(v.shape)} {v.std():.2f}" for k, v in found.items()})
        tensors.update({f"{case['name']}.{k}": v for k, v in found.items()})
        cases.append(case)
    tokenizers = {name: CLIPTokenizer.from_pretrained(common.folder("tokenizer") / name) for name in ("files", "files_pad0")}
    found = []
    for name, tokenizer in tokenizers.items():
        for emphasis, prompts in ((False, splits()), (True, brackets() if name == "files" else [])):
            for prompt in prompts:
                chunks = a1111.split(tokenizer, runs({"emphasis": emphasis}, prompt))
                if len(chunks) > 32:
                    continue
                entry = {"tokenizer": name, "prompt": prompt, "emphasis": emphasis,
                         "chunks": [[i for i, _ in c] for c in chunks]}
                if emphasis:
                    entry["weights"] = [[w for _, w in c] for c in chunks]
                found.append(entry)
    print(len(found), "splits", [len(f["chunks"]) for f in found])
    common.save_json(common.folder() / "prompt_splits.json", {"splits": found}, compact=True)

    pictures = [{**PICTURE, **p} for p in PICTURES]
    for picture in pictures:
        tensors[f"{picture['name']}.latents"] = paint(pipes[picture["folder"]], picture)
    common.save_tensors(common.folder() / "prompts.safetensors", tensors)
    common.save_json(common.folder() / "prompts.json", {"cases": cases, "pictures": pictures})


if __name__ == "__main__":
    common.check_versions()
    main()
