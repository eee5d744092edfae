"""Makes every fixture again, in the order in which they lean on each other: python generate.py [name ...]"""
import importlib
import sys
import time

import common

ORDER = ["noise", "samplers", "samplers_begin", "samplers_placed", "samplers_momentum", "samplers_shift", "tokenizer", "text_encoders", "unets", "vae", "blocks",
         "pipelines", "distilled", "edits", "edm", "loras", "images", "prompts", "torch_files", "ranks", "single_file", "safetensors_cases"]


def main():
    common.check_versions()
    for name in sys.argv[1:] or ORDER:
        start = time.time()
        importlib.import_module(name).main()
        print(f"-- {name}: {time.time() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
