"""torch/: what torch.save writes, and the same tensors from the safetensors library.

The embeddings of `prompts.py` and two of the LoRAs of `loras.py` again, as the web UI and the libraries of that time saved
them; a folder whose weights are a .bin; and files of which each part is refused.
"""
import collections
import io
import zipfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import common


def save(path, value, **options):
    """torch.save with a fixed name inside, so that a second run gives the same bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    path.write_bytes(buffer.getvalue())


def state():
    base = common.randn((6, 4), 1)
    module = torch.nn.Module()
    module.weights = torch.nn.ParameterDict({"*": torch.nn.Parameter(common.randn((2, 3), 2))})
    return collections.OrderedDict([
        ("f32", base), ("view.rows", base[2:5]), ("view.one", base[3, 1]), ("f16", common.randn((3, 2, 1, 1), 3).half()),
        ("bf16", common.randn((5,), 4).bfloat16()), ("scalar", torch.tensor(2.5)), ("empty", torch.zeros(0, 5)),
        ("parameter", torch.nn.Parameter(common.randn((2, 2), 5))), ("strided.one", base[:, :1][:1]),
        ("i64", torch.arange(7)), ("f64", torch.zeros(2, dtype=torch.float64)), ("flag", torch.tensor([True, False])),
        ("nested", {"a": common.randn((2,), 6), "b": {"c": common.randn((1, 2), 7)}, 5: torch.zeros(1), "n": 3}),
        ("list", [torch.zeros(1)]), ("module", module.weights), ("é", common.randn((1,), 8))])


def flat(value, prefix=""):
    for name, v in value.items():
        if isinstance(v, torch.nn.ParameterDict):
            v = dict(v.items())
        if isinstance(v, dict):
            yield from flat({k: each for k, each in v.items() if isinstance(k, str)}, f"{prefix}{name}.")
        elif isinstance(v, torch.Tensor):
            yield prefix + name, v.detach().contiguous().clone()


def embeddings(where):
    """As the web UI saves them, as its predecessor did, as diffusers did, and a pair."""
    old = common.folder("embeddings")
    easy = load_file(old / "easyNegative.safetensors")["emb_params"]
    save(where / "easyNegative.pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": easy}, "name": "another name",
                                     "step": 7500, "sd_checkpoint": None, "sd_checkpoint_name": "x"})
    third = load_file(old / "third.safetensors")["one word"]
    save(where / "one word.pt", {"string_to_token": {"*": torch.tensor(265)},
                                 "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(third[None])})})
    save(where / "learned_embeds.bin", {k: v for k, v in load_file(old / "learned_embeds.safetensors").items()})
    save(where / "xl-thing.pt", load_file(old / "xl-thing.safetensors"))
    # Not read: a .pt of that name is there.
    save(where / "easyNegative.bin", {"easyNegative": torch.zeros(1, 32)})


def loras(where):
    """As diffusers saved them before safetensors, and as peft did."""
    old = common.folder("loras")
    save(where / "old.bin", load_file(old / "old_sd1.safetensors"))
    folder = common.folder("torch", "loras", "adapter")
    save(folder / "adapter_model.bin", load_file(old / "adapter_unet" / "adapter_model.safetensors"))
    (folder / "adapter_config.json").write_bytes((old / "adapter_unet" / "adapter_config.json").read_bytes())
    # Alphas that are numbers of Python's, and one that is another object.
    kohya = load_file(old / "kohya_sd1.safetensors")
    stems = [k[:-6] for k, v in kohya.items() if k.endswith(".alpha") and v != len(kohya[k[:-6] + ".lora_down.weight"])][:2]
    state = {k: v for k, v in kohya.items() if k.split(".")[0] in stems}
    alphas = [k for k in state if k.endswith(".alpha")]
    numbers = {k: float(state[k]) if i else int(state[k]) for i, k in enumerate(alphas)}
    assert {type(v) for v in numbers.values()} == {int, float} and all(numbers[k] == state[k] for k in numbers)
    save(where / "numbers.pt", {**state, **numbers})
    save(common.folder("torch", "refused") / "strange_alpha.pt", {**state, next(iter(numbers)): complex(1, 2)})
    # Two modules that are views of one storage: more than the file has bytes.
    one = torch.zeros(64, 8)
    save(common.folder("torch", "refused") / "shared_lora.pt", {f"lora_unet_{layer}.lora_{side}.weight": value for layer in "ab"
                                                               for side, value in (("up", one), ("down", one.view(8, 64)))})


def strided(where):
    """Tensors that do not lie row by row, and the same in order."""
    g = torch.Generator().manual_seed(3)
    grid = torch.randn(3, 4, 5, 2, generator=g)
    views = {"turned": grid[0, 0].t(), "channels_last": grid.contiguous(memory_format=torch.channels_last),
             "permuted": grid.permute(3, 1, 0, 2), "every_other": grid[:, ::2], "column": grid[..., 1],
             "half": grid.half().transpose(0, 2), "behind": torch.arange(12)[5:].view(7, 1).expand(7, 1),
             "whole": torch.arange(24).reshape(2, 12).t()}
    assert sum(not v.is_contiguous() for v in views.values()) == 7
    save(where / "strided.pt", {"state_dict": {"state_dict": views, "step": 3}})
    save_file({k: v.contiguous() for k, v in views.items()}, where / "strided.safetensors")
    (where / "strided.safetensors").chmod(0o644)


class OfArray:
    """A tensor as PyTorch once saved those of some devices, of a numpy array."""

    def __reduce__(self):
        return torch._utils._rebuild_device_tensor_from_numpy, (np.ones(3, np.float32), torch.float32, "cpu", False)


class Unknown:
    """The same around a function that nobody here knows."""

    def __reduce__(self):
        return torch._tensor._rebuild_from_type_v2, (torch.zeros, torch.Tensor, (2,), {})


def made_otherwise(where):
    """Tensors that other functions than the usual one make: some are read, the others are not to be overlooked."""
    attributed, inner = common.randn((3, 4), 9), torch.nn.Parameter(common.randn((2, 2), 10).half())
    attributed.note, inner.note = "a", "b"
    plain = {"attributed": attributed, "attributed.turned": attributed.t(), "inner": inner,
             "f8": common.randn((2, 5), 11).to(torch.float8_e4m3fn), "f8_5": common.randn((7,), 12).to(torch.float8_e5m2),
             "u16": torch.arange(3).to(torch.uint16)}
    plain["attributed.turned"].note = "c"
    others = {"array": np.ones(2, np.float32), "sparse": torch.eye(2).to_sparse(), "of_array": OfArray(), "unknown": Unknown(),
              "quantised": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.quint8)}
    save(where / "otherwise.pt", {**plain, **others})
    save_file({k: v.detach().contiguous().clone() for k, v in plain.items()}, where / "otherwise.safetensors")
    (where / "otherwise.safetensors").chmod(0o644)


def refused(where):
    save(where / "repeated.pt", {"a": torch.arange(2.0).expand(3, 2)})
    save(where / "list.pt", [torch.zeros(2)])
    save(where / "alone.pt", torch.zeros(2))
    save(where / "old.pt", {"a": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(where / "packed.pt", "w", zipfile.ZIP_DEFLATED) as to, zipfile.ZipFile(where / "repeated.pt") as of:
        for name in of.namelist():
            to.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), of.read(name), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(where / "big.pt", "w") as to, zipfile.ZipFile(where / "list.pt") as of:
        for name in of.namelist():
            to.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), b"big" if name.endswith("byteorder") else of.read(name))
    with zipfile.ZipFile(where / "other.zip", "w") as to:
        to.writestr(zipfile.ZipInfo("a/b", (2020, 1, 1, 0, 0, 0)), b"c")


def main():
    where = common.folder("torch")
    value = state()
    save(where / "state.pt", {"epoch": 3, "state_dict": value, "optimizer": {"x": torch.zeros(3)}})
    save(where / "protocol4.pt", value, pickle_protocol=4)
    save_file(dict(flat(value)), str(where / "state.safetensors"))
    (where / "state.safetensors").chmod(0o644)
    folder = common.folder("torch", "component")
    save(folder / "diffusion_pytorch_model.bin", value)
    strided(where)
    made_otherwise(where)
    refused(common.folder("torch", "refused"))
    embeddings(common.folder("torch", "embeddings"))
    loras(common.folder("torch", "loras"))
