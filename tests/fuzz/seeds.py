#!/usr/bin/env python3
"""Makes corpus/TARGET/*, what the fuzzers begin with: small good files, and some that are nearly good."""
import json
import pathlib
import struct

here = pathlib.Path(__file__).resolve().parent
fixtures = here.parent / "fixtures"


def put(target, name, data):
    folder = here / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def safetensors(header, data=b""):
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


put("safetensors", "two", safetensors(
    {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 1], 0, 8), "b": tensor("BF16", [3], 8, 14)},
    bytes(14)))
put("safetensors", "types", safetensors(
    {"h": tensor("F16", [1], 0, 2), "i": tensor("I64", [], 2, 10), "q": tensor("F4", [2], 10, 11),
     "e": tensor("F32", [0, 5], 11, 11)}, bytes(11)))
put("safetensors", "empty", safetensors({}))
put("safetensors", "hole", safetensors({"a": tensor("U8", [1], 1, 2)}, bytes(2)))

vocabulary = {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab": 4, "ab</w>": 5, "<|startoftext|>": 6, "<|endoftext|>": 7}
merges = "#version: 0.2\na b\na b</w>\n"
config = {"model_max_length": 77, "pad_token": "!", "bos_token": {"content": "<|startoftext|>", "normalized": True}}
added = {"<new>": 8}
whole = {"model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], "a b</w>"]},
         "added_tokens": [{"id": 7, "content": "<|endoftext|>", "special": True}]}
put("tokenizer", "files", "f" + "\0".join([json.dumps(vocabulary), merges, json.dumps(config), json.dumps(added),
                                           "ab aab <new>\0\u00c9\u4e00 it's 12"]))
put("tokenizer", "json", "j" + "\0".join([json.dumps(whole), "", "", "", "ab <|endoftext|> B!"]))

put("emphasis", "all", r"a (b:1.3) [c] ((d):-.5) \(e\] BREAK f:g) (h")

for name, letter, path in (("unet_sd1", "u", "pipeline_sd1/unet"), ("unet_xl", "u", "pipeline_xl/unet"),
                           ("vae", "v", "pipeline_xl/vae"), ("clip", "c", "pipeline_sd1/text_encoder"),
                           ("clip_2", "p", "pipeline_xl/text_encoder_2")):
    text = json.loads((fixtures / path / "config.json").read_text())
    put("config", name, letter + json.dumps(text, separators=(",", ":")))

for pipeline in "pipeline_sd1", "pipeline_xl":
    put("schedule", pipeline, (fixtures / pipeline / "scheduler" / "scheduler_config.json").read_bytes())
put("schedule", "edm", '{"_class_name":"EDMDPMSolverMultistepScheduler","sigma_min":0.002,"sigma_max":80,"sigma_data":0.5,'
    '"rho":7,"sigma_schedule":"exponential","prediction_type":"v_prediction","final_sigmas_type":"sigma_min"}')
put("schedule", "curves", '{"_class_name":"EulerDiscreteScheduler","timestep_type":"continuous","use_beta_sigmas":true,'
    '"prediction_type":"v_prediction","sigma_min":0.1,"sigma_max":9,"use_lu_lambdas":false}')
put("schedule", "vanishing", '{"num_train_timesteps": 9873, "rescale_betas_zero_snr": true}')
put("schedule", "infinity", '{"_class_name":"DPMSolverMultistepScheduler","lambda_min_clipped":-Infinity,'
    '"beta_schedule":"squaredcos_cap_v2","rescale_betas_zero_snr":true,"use_karras_sigmas":true}')

# Every tensor of the small models with none of its bytes: a dimension that nothing is read from is 0.
cases = {case["kind"]: case["tensors"] for case in json.loads((fixtures / "single_file.json").read_text())}
cases["sd2"] += [t for t in cases["sd1"] if not t["key"].startswith("cond_stage_model.")]
for kind, tensors in cases.items():
    keys = [t for t in tensors if not t["key"].endswith(".bias")]
    header, at = {}, 0
    for t in keys:
        shape = t["shape"]
        if len(shape) != 2:
            shape = [0 if i == len(shape) - 1 and len(shape) > 1 else n for i, n in enumerate(shape)]
        size = 2
        for n in shape:
            size *= n
        if size > 256:
            continue
        header[t["key"]] = tensor("F16", shape, at, at + size)
        at += size
    put("checkpoint", kind, safetensors(header, bytes(at)))
    if kind == "xl":
        edm = {**header, "edm_mean": tensor("F32", [1, 4, 1, 1], at, at + 16), "edm_std": tensor("F32", [4], at + 16, at + 32)}
        put("checkpoint", "edm", safetensors(edm, bytes(at + 32)))
        edm = {**header, "edm_vpred.sigma_max": tensor("F32", [], at, at + 4)}
        put("checkpoint", "edm_v", safetensors(edm, bytes(at) + b"\0\0\xf0\x42"))

q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
put("lora", "kohya", safetensors(
    {f"{q}.lora_down.weight": tensor("F16", [2, 32], 0, 128), f"{q}.lora_up.weight": tensor("F16", [32, 2], 128, 256),
     f"{q}.alpha": tensor("I64", [], 256, 264)}, bytes(264)))
p = "unet.down_blocks.0.resnets.0.conv1"
put("lora", "peft", safetensors(
    {"__metadata__": {"lora_adapter_metadata": json.dumps(
        {"unet.lora_alpha": 2, "unet.alpha_pattern": {"resnets.0.conv1": 3}, "unet.use_rslora": True})},
     f"{p}.lora_A.weight": tensor("F16", [1, 16, 3, 3], 0, 288), f"{p}.lora_B.weight": tensor("F16", [16, 1, 1, 1], 288, 320)},
    bytes(320)))
put("lora", "adapter", json.dumps(
    {"peft_type": "LORA", "lora_alpha": 3, "use_rslora": True, "use_dora": False, "init_lora_weights": True,
     "kasa_config": None, "alpha_pattern": {"attn1.to_q": 1}}))
put("lora", "list", '{"lora_alpha":null,"alpha_pattern":[1]}')
put("lora", "ldm", safetensors(
    {"lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight": tensor("F16", [1, 16, 3, 3], 0, 288),
     "lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight": tensor("F16", [16, 1, 1, 1], 288, 320)}, bytes(320)))

full = {"prompt": "a cat", "loras": [{"name": "kohya_sd1", "scale": 0.5}], "negative_prompt": "", "n": 2, "size": "64x64", "steps": 4, "seed": 7, "guidance_scale": 5,
        "stream": True, "progress": True, "response_format": "b64_json", "output_format": "png",
        "parallel": {"mode": "sync", "partial": 0.3, "warmup_steps": 1, "devices": 1, "group_norm": "stale"}}
put("request", "full", json.dumps(full))
put("request", "least", '{"prompt":"a"}')
put("request", "seed", '{"prompt":"\\ud83d\\ude00","seed":18446744073709551615,"width":72,"height":64}')

put("checkpoint", "beside", json.dumps(
    {"unet": {"attention_head_dim": 2, "norm_num_groups": 8, "sample_size": 16}, "vae": {"norm_num_groups": 4},
     "text_encoder": {"num_attention_heads": 2, "eos_token_id": 763}, "tokenizer": "tokenizer",
     "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}}, separators=(",", ":")))

put("form", "body", "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--B\r\n"
    "content-disposition:form-data;filename=\"q\\\"; name=y\";  name=b ; filename*=utf-8''z\r\nA: b\r\n\r\n\r\n--X-\r\n--B  \r\n"
    "Content-Disposition: form-data; name=\"c\"\r\n\r\n\r\n--B--\r\nend")

put("weights", "one", '{"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors"}}')
put("weights", "missing", '{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}')

for picture in (fixtures / "images").glob("*.png"):
    put("png", picture.stem, picture.read_bytes())

put("form", "edit", "prompt=a lake\nseed=5\nsteps=4\nstrength=0.5\nstream=true\nparallel[mode]=pcpp\nparallel[patches]=2\nimage=x\nmask=y\n")
put("form", "array", "image[]=x\nsigmas[]=14.6\nsigmas[]=1e-3\nsigmas[]=\nuser=null\na[b]=\"c\"\na[]=1\n[]=2\na[b][c]=[1]\n")
