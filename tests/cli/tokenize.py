#!/usr/bin/env python3
"""`tesserad tokenize` prints the ids that transformers gives. Usage: tokenize.py TESSERAD FIXTURES. TAP on stdout."""
import json
import pathlib
import subprocess
import sys

program, fixtures = sys.argv[1], pathlib.Path(sys.argv[2])
cases = json.loads((fixtures / "tokenizer" / "cases.json").read_text("utf-8"))


def tokenize(model, text):
    done = subprocess.run([program, "tokenize", "--model", str(fixtures / model)], input=text.encode(),
                          capture_output=True, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


number = 0


def claim(name, holds):
    global number
    number += 1
    print(f"{'ok' if holds else 'not ok'} {number} - {name}")


# Longer texts are cut in the fixture, never here.
whole = [c for c in cases["cases"] if c["untruncated"] <= cases["length"]]
for escaped in True, False:
    lines = "".join(json.dumps(c["text"], ensure_ascii=escaped) + "\n" for c in whole)
    status, out, _ = tokenize("pipeline_xl", lines)
    have = [json.loads(line) for line in out.splitlines()]
    how = "escaped" if escaped else "as UTF-8"
    claim(f"the ids of {len(whole)} strings, {how}", status == 0 and len(have) == len(whole) and
          all(h["tokenizer"] == c["ids"] for h, c in zip(have, whole)))
    claim(f"and of the second encoder, {how}", len(have) == len(whole) and
          all(h["tokenizer_2"] == c.get("pad0_ids", c["ids"]) for h, c in zip(have, whole)))

nul = [c for c in cases["nul_cases"] if c["untruncated"] <= cases["length"]]
lines = "".join(json.dumps(bytes.fromhex(c["utf8_hex"]).decode()) + "\n" for c in nul)
status, out, _ = tokenize("pipeline_sd1", lines)
claim("a NUL is a character like another", status == 0 and bool(nul) and
      [json.loads(line) for line in out.splitlines()] == [{"tokenizer": c["ids"]} for c in nul])

status, out, _ = tokenize("pipeline_sd1", json.dumps("a " * 200))
claim("nothing is cut off", status == 0 and len(json.loads(out)["tokenizer"]) == 202)

status, out, err = tokenize("pipeline_sd1", '"a"\n7\n')
claim("what is no JSON string is named by its line", status == 1 and out.count("\n") == 1 and "line 2" in err)

status, out, err = tokenize("no_such_model", "")
claim("a model that is not there is an error", status == 1 and out == "" and "no_such_model" in err)
print(f"1..{number}")
