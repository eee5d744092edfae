"""text_encoders/ and the pipelines' text encoders: the three kinds, the ids that went in and what came out."""
import torch
from safetensors import safe_open
from transformers import CLIPTokenizer

import common
import text_models

PROMPTS = ["a cat sitting on a red chair", "", "A snowy field at night under a white moon; three sailboats, 4k!!",
           "a <|endoftext|> b", "the sea and the sun and the moon " * 30]
FOLDERS = [  # io file, kind, folder
    ("sd1", "sd1", "text_encoders/sd1"), ("sd1", "sd1", "pipeline_sd1/text_encoder"),
    ("sd1", "sd1", "pipeline_xl/text_encoder"), ("sd2", "sd2", "text_encoders/sd2"),
    ("xl2", "xl2", "pipeline_xl/text_encoder_2"),
]
LEGACY = {"pipeline_sd1/text_encoder"}


def main():
    tokenizers = {k: CLIPTokenizer.from_pretrained(common.folder("tokenizer") / k) for k in ("files", "files_pad0")}
    cases = []
    for name, kind, where in FOLDERS:
        path = common.folder(where)
        legacy = where in LEGACY
        model = text_models.make(kind, seed=100)
        model.save_pretrained(path)
        if legacy:
            text_models.to_legacy(path)
        pad = "files" if kind == "sd1" else "files_pad0"
        ids = tokenizers[pad](PROMPTS, padding="max_length", max_length=77, truncation=True,
                              return_tensors="pt")["input_ids"]
        out = model(ids, output_hidden_states=True)
        tensors = {"input_ids": ids, "last_hidden_state": out.last_hidden_state,
                   "hidden_states_m2": out.hidden_states[-2]}
        if kind == "xl2":
            tensors["text_embeds"] = out.text_embeds
        else:
            tensors["pooler_output"] = out.pooler_output
        common.save_tensors(common.folder("text_encoders") / f"{name}.safetensors", tensors)
        with safe_open(path / "model.safetensors", "pt") as f:
            keys = sorted(f.keys())
        cases.append({"folder": where, "io": f"{name}.safetensors", "tokenizer": pad, "class": type(model).__name__, "first_key": keys[0], "keys": len(keys)})
        print(where, keys[:2], {k: f"{v.float().std():.2f}" for k, v in tensors.items()})
    common.save_json(common.folder("text_encoders") / "cases.json", {"prompts": PROMPTS, "cases": cases})


if __name__ == "__main__":
    common.check_versions()
    main()
