"""torch_noise.safetensors: starting noise of PyTorch's CPU generator.

torch.randn takes three ways on the CPU: fewer than 16 elements (scalar Box-Muller in double, whose second
value the generator keeps for the next such draw), 16 and more (a run of uniforms turned pairwise, eight
apart), and the last 16 drawn again when the count is not a multiple of 16.
"""
import torch

import common

SEEDS = {"0": 0, "1": 1, "42": 42, "4294967301": 2**32 + 5, "9223372036854775807": 2**63 - 1,
         "18446744073709551615": 2**64 - 1}
SIZES = [(1, 1), (1, 3), (2, 2), (1, 5), (3, 3), (3, 5), (5, 7), (8, 8), (13, 17), (32, 32)]
SEQUENCES = {  # counts drawn one after another from one generator
    "small": [3, 5, 1, 1, 15, 4],
    "large": [16, 64, 17, 31, 100],
    "mixed": [3, 16, 1, 1, 20, 5, 256, 2, 700, 7],
    "pictures": [256, 256, 256, 256],
}


def main():
    tensors, cases = {}, []
    for label, seed in SEEDS.items():
        for h, w in SIZES:
            if seed > 42 and h * w > 300:
                continue
            name = f"seed{label}_{h}x{w}"
            tensors[name] = torch.randn(1, 4, h, w, generator=common.generator(seed))
            cases.append({"name": name, "seed": label, "height": h, "width": w})
    name = "seed42_64x64"
    tensors[name] = torch.randn(1, 4, 64, 64, generator=common.generator(42))
    cases.append({"name": name, "seed": "42", "height": 64, "width": 64})

    sequences = []
    for label, counts in SEQUENCES.items():
        for seed in (7, 1234567890123):
            g = common.generator(seed)
            names = []
            for i, count in enumerate(counts):
                names.append(f"seq_{label}_seed{seed}_{i}")
                tensors[names[-1]] = torch.randn(count, generator=g)
            sequences.append({"seed": str(seed), "counts": counts, "names": names})

    common.save_tensors(common.folder() / "torch_noise.safetensors", tensors)
    common.save_json(common.folder() / "torch_noise.json", {"cases": cases, "sequences": sequences})


if __name__ == "__main__":
    common.check_versions()
    main()
