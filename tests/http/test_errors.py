"""Requests with something wrong: the status, the error's shape, and the field that it names."""
import json

import pytest

from contract import DOCUMENT, check_error
from daemon import IMAGES

# What is wrong with a field, beside a good prompt -> the param that is named.
FIELDS = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": True}, "prompt"),
    ({"prompt": "x" * 100_000}, "prompt"),
    ({"negative_prompt": 5}, "negative_prompt"),
    ({"negative_prompt": "x" * 100_000}, "negative_prompt"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 11}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "2"}, "n"),
    ({"n": True}, "n"),
    ({"n": []}, "n"),
    ({"n": 1e300}, "n"),
    ({"n": 4294967297}, "n"),
    ({"size": "63x64"}, "size"),
    ({"size": "64x65"}, "size"),
    ({"size": "0x64"}, "size"),
    ({"size": "64"}, "size"),
    ({"size": "64x"}, "size"),
    ({"size": "64x64x64"}, "size"),
    ({"size": "-64x64"}, "size"),
    ({"size": " 64x64"}, "size"),
    ({"size": "64x64 "}, "size"),
    ({"size": "64X64"}, "size"),
    ({"size": "+64x64"}, "size"),
    ({"size": "99999999999999999999x64"}, "size"),
    ({"size": "4294967360x64"}, "size"),
    ({"size": "16384x64"}, "size"),
    ({"size": ""}, "size"),
    ({"size": "big"}, "size"),
    ({"size": 64}, "size"),
    ({"size": [64, 64]}, "size"),
    ({"width": 65, "height": 64}, "width"),
    ({"width": 64, "height": 65}, "height"),
    ({"width": 0, "height": 64}, "width"),
    ({"width": -8, "height": 64}, "width"),
    ({"width": 64, "height": 16384}, "height"),
    ({"width": 64, "height": 1e18}, "height"),
    ({"width": "64", "height": 64}, "width"),
    ({"width": 64.5, "height": 64}, "width"),
    ({"size": "64x64", "width": 64}, "width"),
    ({"size": "64x64", "width": 64, "height": 64}, "width"),
    ({"seed": -1}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 9007199254740994}, "seed"),
    ({"seed": 1e300}, "seed"),
    ({"seed": "18446744073709551616"}, "seed"),
    ({"seed": "-1"}, "seed"),
    ({"seed": "+1"}, "seed"),
    ({"seed": " 1"}, "seed"),
    ({"seed": "1 "}, "seed"),
    ({"seed": "0x10"}, "seed"),
    ({"seed": ""}, "seed"),
    ({"seed": "one"}, "seed"),
    ({"seed": True}, "seed"),
    ({"seed": []}, "seed"),
    ({"steps": 0}, "steps"),
    ({"steps": -3}, "steps"),
    ({"steps": 1001}, "steps"),
    ({"steps": 2.5}, "steps"),
    ({"steps": "20"}, "steps"),
    ({"steps": False}, "steps"),
    ({"guidance_scale": -0.1}, "guidance_scale"),
    ({"guidance_scale": 100.5}, "guidance_scale"),
    ({"guidance_scale": "5"}, "guidance_scale"),
    ({"guidance_scale": {}}, "guidance_scale"),
    ({"prompt": "a " * 601}, "prompt"),
    ({"negative_prompt": "a " * 601, "guidance_scale": 5}, "negative_prompt"),
    ({"emphasis": 1}, "emphasis"),
    ({"emphasis": "yes"}, "emphasis"),
    ({"prompt": "(a:2000)", "emphasis": True}, "prompt"),
    ({"prompt": "(" * 65, "emphasis": True}, "prompt"),
    ({"negative_prompt": "(" * 65, "emphasis": True, "guidance_scale": 5}, "negative_prompt"),
    ({"long_prompt": "cut"}, "long_prompt"),
    ({"long_prompt": True}, "long_prompt"),
    ({"clip_skip": -1}, "clip_skip"),
    ({"clip_skip": 0.5}, "clip_skip"),
    ({"clip_skip": "2"}, "clip_skip"),
    ({"clip_skip": 1000}, "clip_skip"),
    ({"guidance_rescale": -0.1}, "guidance_rescale"),
    ({"sampler": "ddim", "eta": 1.1}, "eta"),
    ({"sampler": "ddim", "eta": "0.5"}, "eta"),
    ({"guidance_rescale": 1.01}, "guidance_rescale"),
    ({"guidance_rescale": "0.7"}, "guidance_rescale"),
    ({"guidance_rescale": True}, "guidance_rescale"),
    ({"guidance_interval": 0.5}, "guidance_interval"),
    ({"guidance_interval": []}, "guidance_interval"),
    ({"guidance_interval": [0.5]}, "guidance_interval"),
    ({"guidance_interval": [0, 0.5, 1]}, "guidance_interval"),
    ({"guidance_interval": [-0.1, 1]}, "guidance_interval"),
    ({"guidance_interval": [0, 1.1]}, "guidance_interval"),
    ({"guidance_interval": [0.5, 0.5]}, "guidance_interval"),
    ({"guidance_interval": [1, 0]}, "guidance_interval"),
    ({"guidance_interval": [0, "1"]}, "guidance_interval"),
    ({"guidance_interval": [None, 1]}, "guidance_interval"),
    ({"guidance_interval": [True, 1]}, "guidance_interval"),
    ({"original_size": "0x64"}, "original_size"),
    ({"original_size": "64"}, "original_size"),
    ({"original_size": 64}, "original_size"),
    ({"original_size": "auto"}, "original_size"),
    ({"original_size": "100000x64"}, "original_size"),
    ({"target_size": "64x-1"}, "target_size"),
    ({"target_size": [64, 64]}, "target_size"),
    ({"crop": [0]}, "crop"),
    ({"crop": [0, 1, 2]}, "crop"),
    ({"crop": [-1, 0]}, "crop"),
    ({"crop": [0.5, 0]}, "crop"),
    ({"crop": ["0", "0"]}, "crop"),
    ({"crop": "0,0"}, "crop"),
    ({"crop": [0, 16385]}, "crop"),
    ({"sampler": "euler_ancestral_of_somewhere"}, "sampler"),
    ({"sampler": ""}, "sampler"),
    ({"sampler": 1}, "sampler"),
    ({"scheduler": "normalish"}, "scheduler"),
    ({"sampler": "ddim", "scheduler": "karras"}, "scheduler"),
    ({"sampler": "flow_euler"}, "sampler"),
    ({"scheduler": "sigmas"}, "scheduler"),
    ({"sigmas": 3}, "sigmas"),
    ({"sigmas": []}, "sigmas"),
    ({"sigmas": [0]}, "sigmas"),
    ({"sigmas": [1e-40], "sampler": "lms"}, "sigmas"),
    ({"size": "064x064"}, "size"),
    ({"sigmas": [3, 2, 2]}, "sigmas"),
    ({"sigmas": [3, 2, -1]}, "sigmas"),
    ({"sigmas": [3, 0, 0]}, "sigmas"),
    ({"sigmas": [3, "2"]}, "sigmas"),
    ({"sigmas": [1e300, 1]}, "sigmas"),
    ({"sigmas": list(range(130, 0, -1))}, "sigmas"),
    ({"sigmas": [3, 2], "steps": 3}, "steps"),
    ({"sigmas": [3, 2], "scheduler": "karras"}, "scheduler"),
    ({"sigmas": [3, 2], "timesteps": [3, 2]}, "timesteps"),
    ({"sigmas": [3, 2], "sampler": "ddim"}, "sigmas"),
    ({"timesteps": [1000, 2]}, "timesteps"),
    ({"timesteps": [500.5, 2]}, "timesteps"),
    ({"timesteps": [2, 500]}, "timesteps"),
    ({"timesteps": [500, 2], "sampler": "pndm"}, "timesteps"),
    ({"rng": "torch"}, "rng"),
    ({"rng": 1}, "rng"),
    ({"scheduler": 1}, "scheduler"),
    ({"parallel": 1}, "parallel"),
    ({"parallel": "pcpp"}, "parallel"),
    ({"parallel": []}, "parallel"),
    ({"parallel": {"mode": "fast"}}, "parallel.mode"),
    ({"parallel": {"mode": 1}}, "parallel.mode"),
    ({"parallel": {"devices": 0}}, "parallel.devices"),
    ({"parallel": {"devices": -1}}, "parallel.devices"),
    ({"parallel": {"devices": 1000}}, "parallel.devices"),
    ({"parallel": {"devices": 1.5}}, "parallel.devices"),
    ({"parallel": {"devices": "some"}}, "parallel.devices"),
    ({"parallel": {"devices": 3}}, "parallel.devices"),
    ({"parallel": {"partial": -0.1}}, "parallel.partial"),
    ({"parallel": {"partial": "most"}}, "parallel.partial"),
    ({"parallel": {"partial": True}}, "parallel.partial"),
    ({"parallel": {"warmup_steps": -1}}, "parallel.warmup_steps"),
    ({"parallel": {"warmup_steps": 1.5}}, "parallel.warmup_steps"),
    ({"parallel": {"warmup_steps": 100000}}, "parallel.warmup_steps"),
    ({"parallel": {"cfg_split": True}}, "parallel.cfg_split"),
    ({"parallel": {"cfg_split": "maybe"}}, "parallel.cfg_split"),
    ({"parallel": {"group_norm": "global"}}, "parallel.group_norm"),
    ({"parallel": {"speed": 1}}, "parallel.speed"),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"progress": True}, "progress"),
    ({"progress": True, "stream": False}, "progress"),
    ({"progress": "yes", "stream": True}, "progress"),
    ({"partial_images": 2}, "partial_images"),
    ({"partial_images": 4}, "partial_images"),
    ({"partial_images": -1}, "partial_images"),
    ({"partial_images": "1"}, "partial_images"),
    ({"response_format": "url"}, "response_format"),
    ({"response_format": "png"}, "response_format"),
    ({"response_format": 1}, "response_format"),
    ({"output_format": "jpeg"}, "output_format"),
    ({"output_format": "webp"}, "output_format"),
    ({"output_format": "gif"}, "output_format"),
    ({"output_format": 1}, "output_format"),
    ({"output_compression": 101}, "output_compression"),
    ({"output_compression": -1}, "output_compression"),
    ({"output_compression": "90"}, "output_compression"),
    ({"quality": 1}, "quality"),
    ({"background": True}, "background"),
    ({"style": []}, "style"),
    ({"moderation": 1}, "moderation"),
    ({"user": 1}, "user"),
    ({"on_disconnect": "continue"}, "on_disconnect"),
    ({"on_disconnect": True}, "on_disconnect"),
    ({"priority": 1}, "priority"),
    ({"priority": "high"}, "priority"),
    ({"deadline_ms": 1000}, "deadline_ms"),
    ({"model": 1}, "model"),
    ({"model": ""}, "model"),
    ({"nonsense": 1}, "nonsense"),
    ({"Prompt": "x"}, "Prompt"),
    ({"n ": 1}, "n "),
]

# What is not offered, as opposed to what is not understood.
NOT_OFFERED = [("output_format", "jpeg"), ("output_format", "webp"), ("response_format", "url"),
               ("partial_images", 2), ("scheduler", "karras"), ("priority", 1), ("deadline_ms", 1000)]

BODIES = {
    "nothing": b"",
    "blank": b"  \n",
    "not JSON": b"prompt=a",
    "cut off": b'{"prompt": "a lake"',
    "cut off in a string": b'{"prompt": "a lake',
    "bytes after it": b'{"prompt": "a lake"} x',
    "two of them": b'{"prompt": "a lake"}{"prompt": "b"}',
    "a trailing comma": b'{"prompt": "a lake",}',
    "single quotes": b"{'prompt': 'a lake'}",
    "a comment": b'{"prompt": "a lake" /* wet */}',
    "a byte-order mark": b'\xef\xbb\xbf{"prompt": "a lake"}',
    "a key twice": b'{"prompt": "a lake", "n": 1, "n": 2}',
    "the prompt twice": b'{"prompt": "a lake", "prompt": "b"}',
    "an infinite number": b'{"prompt": "a lake", "guidance_scale": 1e999}',
    "not a number": b'{"prompt": "a lake", "guidance_scale": NaN}',
    "leading zeros": b'{"prompt": "a lake", "n": 01}',
    "a plus sign": b'{"prompt": "a lake", "n": +1}',
    "a raw control character": b'{"prompt": "a\x01lake"}',
    "a raw line feed in a string": b'{"prompt": "a\nlake"}',
    "a zero byte": b'{"prompt": "a\x00lake"}',
    "an escaped zero": b'{"prompt": "a\\u0000lake"}',
    "UTF-8 that stops": b'{"prompt": "a \xc3"}',
    "a lone continuation byte": b'{"prompt": "a \x80"}',
    "an overlong form": b'{"prompt": "a \xc0\xaf"}',
    "a surrogate in UTF-8": b'{"prompt": "a \xed\xa0\x80"}',
    "beyond Unicode": b'{"prompt": "a \xf4\x90\x80\x80"}',
    "a lone escaped surrogate": b'{"prompt": "a \\ud800"}',
    "UTF-16": '{"prompt": "a lake"}'.encode("utf-16"),
    "an array": b'[{"prompt": "a lake"}]',
    "a string": b'"a lake"',
    "null": b"null",
    "a number": b"7",
    "too deep": b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}",
    "far too deep": b"[" * 100_000,
    "too many values": b'{"prompt": [' + b"0," * 20_000 + b"0]}",
}


def chosen():
    """(field, text), the text several of the words that the contract has for it, in one."""
    for schema, inside in (("ImageRequest", ""), ("Parallel", "parallel.")):
        for name, what in DOCUMENT["components"]["schemas"][schema]["properties"].items():
            for kind in [what, *what.get("anyOf", [])]:
                words = [w for w in kind.get("enum", []) if isinstance(w, str)]
                for i in range(len(words)):
                    yield inside + name, "|".join(words[i:i + 2] if i + 1 < len(words) else words[i:] * 2)
                if len(words) > 2:
                    yield inside + name, "|".join(words)


CHOSEN = list(chosen())


def test_the_contract_has_words_to_choose_from():
    assert {"rng", "long_prompt", "scheduler", "on_disconnect", "parallel.mode", "parallel.devices", "parallel.partial",
            "parallel.group_norm", "parallel.cfg_split"} <= {name for name, _ in CHOSEN}


@pytest.mark.parametrize("name, text", CHOSEN, ids=[f"{n}={t}" for n, t in CHOSEN])
def test_several_words_in_one_are_no_word(server, name, text):
    """One of them once took the server down: what is found under no name is no place in a table."""
    field = name.split(".")[-1]
    fields = {"parallel": {field: text}} if "." in name else {field: text}
    check_error(server.post({"prompt": "a lake", **fields}), 400, name)
    assert server.get("/health").status == 200


@pytest.mark.parametrize("fields, param", FIELDS, ids=[json.dumps(f)[:60] for f, _ in FIELDS])
def test_a_bad_field_is_named(server, fields, param):
    answer = server.post({"prompt": "a lake", **fields})
    check_error(answer, 400, param)


def test_a_missing_prompt_is_named(server):
    check_error(server.post({}), 400, "prompt")
    check_error(server.post({"n": 1}), 400, "prompt")


@pytest.mark.parametrize("field, value", NOT_OFFERED)
def test_what_is_not_offered_says_so(server, field, value):
    check_error(server.post({"prompt": "a lake", field: value}), 400, field, "unsupported")


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_not_strict_json_is_400(server, name):
    check_error(server.post(BODIES[name]), 400)


def test_no_body_at_all_is_400(server):
    check_error(server.request("POST", IMAGES, headers={"Content-Type": "application/json"}), 400)


def test_an_unknown_model_is_404_and_named(server):
    check_error(server.post({"prompt": "a lake", "model": "no-such-model"}), 404, "model", "not_found")
    check_error(server.get("/v1/models/no-such-model"), 404)


@pytest.mark.parametrize("fields, param", [({"n": 2}, "n"), ({"stream": True}, "stream")])
def test_accept_png_is_one_picture(server, fields, param):
    check_error(server.post({"prompt": "a lake", **fields}, headers={"Accept": "image/png"}), 400, param)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                                  "application/jsonl", "application/octet-stream"])
def test_another_content_type_is_415(server, kind):
    check_error(server.post({"prompt": "a lake"}, headers={"Content-Type": kind}), 415)


def test_a_body_over_the_limit_is_413(server):
    body = b'{"prompt": "' + b"x" * 2_000_000 + b'"}'
    check_error(server.post(body), 413)


def test_a_chunked_body_over_the_limit_is_413(server):
    def pieces():
        for _ in range(40):
            yield b"x" * 65536
    answer = server.request("POST", IMAGES, body=pieces(), headers={"Content-Type": "application/json"})
    check_error(answer, 413)


def test_a_body_at_the_limit_is_read(start):
    daemon = start({"server": {"body_limit": 2048}})
    body = b'{"prompt": "a lake"}'
    assert daemon.post(body.ljust(2048)).status == 200
    check_error(daemon.post(body.ljust(2049)), 413)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/images", "/v1/images/generations/", "/v1/images/generations/x",
                                  "/V1/models", "/health/", "/healthz", "/openapi.yml", "/v1/models/a/b",
                                  "/v1/images/variations", "//health"])
def test_an_unknown_path_is_404(server, path):
    check_error(server.get(path), 404)


@pytest.mark.parametrize("method, path, allow", [
    ("GET", IMAGES, {"POST"}), ("PUT", IMAGES, {"POST"}), ("DELETE", IMAGES, {"POST"}), ("PATCH", IMAGES, {"POST"}),
    ("POST", "/health", {"GET", "HEAD"}), ("DELETE", "/v1/models", {"GET", "HEAD"}),
    ("POST", "/metrics", {"GET", "HEAD"}), ("PUT", "/openapi.yaml", {"GET", "HEAD"}),
    ("BREW", "/health", {"GET", "HEAD"})])
def test_another_method_is_405_and_says_which(server, method, path, allow):
    answer = server.request(method, path)
    check_error(answer, 405)
    said = {m.strip() for m in answer.headers["allow"].split(",")}
    assert "OPTIONS" in said or said == allow or said == allow - {"HEAD"}


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/openapi.yaml"])
def test_head_is_get_without_the_body(server, path):
    get, head = server.get(path), server.request("HEAD", path)
    assert head.status == get.status == 200 and head.body == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["x-request-id"]


def test_a_query_does_not_hide_a_path(server):
    assert server.get("/health?verbose=1").status == 200


def test_after_all_of_this_it_still_makes_pictures(server):
    assert server.pictures(seed=1)["data"][0]["seed"] == 1
    assert server.get("/health").json()["status"] == "ok"
