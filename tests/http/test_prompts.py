"""Prompts, and what a request says of how they are read."""
import concurrent.futures
import shutil

import pytest

from contract import check_error
from daemon import ROOT
from png import Png, largest_difference

FIXTURES = ROOT / "tests" / "fixtures"
XL = {"path": str(FIXTURES / "pipeline_xl")}


def made(daemon, **fields):
    """The picture and what its infotext says beside the prompts."""
    answer = daemon.post({"prompt": "a lake at dusk", "seed": 5, "guidance_scale": 6, **fields},
                         headers={"Accept": "image/png"})
    assert answer.status == 200, answer.body
    png = Png(answer.body)
    return png, dict(part.split(": ", 1) for part in png.text["parameters"].split("\n")[-1].split(", "))

def test_clip_skip_takes_the_text_from_an_earlier_layer(server):
    plain, said = made(server)
    assert "Clip skip" not in said
    assert made(server, clip_skip=0)[0].pixels == plain.pixels
    seen = {plain.pixels}
    for skip in (1, 2):
        png, said = made(server, clip_skip=skip)
        assert said["Clip skip"] == str(skip + 1)
        seen.add(png.pixels)
    assert len(seen) == 3

def test_pictures_of_one_batch_keep_their_own_clip_skip(start):
    daemon = start({"scheduler": {"max_batch": 3, "max_wait_ms": 3000}})
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda k: made(daemon, clip_skip=k)[0], range(3)))
    assert daemon.metrics()["tessera_batches_total"] == 1, "the three did not run as one batch"
    daemon.stop()
    lone = start({"scheduler": {"max_batch": 1}})
    for k in range(3):
        assert largest_difference(made(lone, clip_skip=k)[0], together[k]) <= 1


# ---- XL's sizes ----


@pytest.mark.parametrize("field, value", [("original_size", "64x64"), ("crop", [0, 8]), ("target_size", "64x64")])
def test_sizes_are_refused_by_other_models(server, field, value):
    check_error(server.post({"prompt": "a lake", field: value}), 400, field)


def test_xl_is_told_of_sizes_each_picture_of_its_own(start):
    requests = [{}, {"original_size": "32x64"}, {"crop": [16, 48]}, {"target_size": "256x128"}]
    daemon = start({"models": XL, "scheduler": {"max_batch": 4, "max_wait_ms": 3000}})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda fields: made(daemon, **fields), requests))
    assert daemon.metrics()["tessera_batches_total"] == 1, "the four did not run as one batch"
    assert len({png.pixels for png, _ in together}) == 4
    assert together[1][1]["Original size"] == "32x64"
    assert (together[2][1]["Crop left"], together[2][1]["Crop top"]) == ("16", "48")
    assert together[3][1]["Target size"] == "256x128"
    for fields, (png, _) in zip(requests, together):
        assert largest_difference(made(daemon, **fields)[0], png) <= 1
    # Its own size is what it is told of where nothing is said.
    plain = made(daemon, original_size="64x64", crop=[0, 0], target_size="64x64")[0]
    assert largest_difference(plain, together[0][0]) <= 1


# ---- long prompts ----

FITS = "a " * 75
LONG = FITS + "b"


def test_a_long_prompt_is_read_to_its_end(server):
    fits, long = made(server, prompt=FITS)[0].pixels, made(server, prompt=LONG)[0].pixels
    assert long == made(server, prompt=LONG, long_prompt="chunk")[0].pixels
    assert len({fits, long, made(server, prompt=FITS + "c")[0].pixels}) == 3
    cut, said = made(server, prompt=LONG, long_prompt="truncate")
    assert cut.pixels == fits and said["Long prompt"] == "truncate"


def test_a_long_negative_prompt_is_read_to_its_end(server):
    assert made(server, negative_prompt=LONG)[0].pixels != made(server, negative_prompt=FITS)[0].pixels
    cut = made(server, negative_prompt=LONG, long_prompt="truncate")[0]
    assert cut.pixels == made(server, negative_prompt=FITS)[0].pixels


def test_all_tokens_are_counted(server):
    def tokens(**fields):
        return server.pictures(**fields)["usage"]["input_tokens"]
    assert tokens(prompt="a " * 40) == 42
    assert tokens(prompt="a " * 100) == 104
    assert tokens(prompt="a " * 100, long_prompt="truncate") == 77


def test_texts_of_unequal_length_do_not_share_a_batch(start):
    lone = start({"scheduler": {"max_batch": 1}})
    for requests, batches in (([{}, {"prompt": LONG}], 2), ([{"negative_prompt": LONG}, {"prompt": LONG}], 1)):
        daemon = start({"scheduler": {"max_batch": 2, "max_wait_ms": 3000}})
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda fields: made(daemon, **fields)[0], requests))
        assert daemon.metrics()["tessera_batches_total"] == batches
        for fields, png in zip(requests, together):
            assert largest_difference(made(lone, **fields)[0], png) <= 1


def test_the_operator_says_how_long_a_prompt_may_be(start):
    daemon = start({"limits": {"max_prompt_chunks": 2}})
    assert daemon.post({"prompt": "a " * 150}).status == 200
    check_error(daemon.post({"prompt": "a " * 151}), 400, "prompt")
    check_error(daemon.post({"prompt": "a", "negative_prompt": "a " * 151}), 400, "negative_prompt")
    assert daemon.post({"prompt": "a " * 151, "long_prompt": "truncate"}).status == 200


# ---- emphasis ----


def test_emphasis_is_what_one_asks_for(server):
    plain, said = made(server, prompt="a (lake:1.4) at dusk")
    assert said["Emphasis"] == "None"
    strong, said = made(server, prompt="a (lake:1.4) at dusk", emphasis=True)
    assert said["Emphasis"] == "Original"
    weak = made(server, prompt="a [lake] at dusk", emphasis=True)[0]
    bare, said = made(server, prompt="a lake at dusk")
    assert "Emphasis" not in said
    assert len({plain.pixels, strong.pixels, weak.pixels, bare.pixels}) == 4
    for prompt in ("a lake at dusk", "a (lake:1.0) at dusk", "a (lake at dusk:1)"):
        assert made(server, prompt=prompt, emphasis=True)[0].pixels == bare.pixels
    assert made(server, prompt="(a \\(lake\\) at dusk:1)", emphasis=True)[0].pixels == \
        made(server, prompt="a (lake) at dusk")[0].pixels


def test_emphasis_in_the_negative_prompt(server):
    def negative(text, **fields):
        return made(server, negative_prompt=text, **fields)[0].pixels
    assert len({negative("trees"), negative("(trees)"), negative("(trees)", emphasis=True)}) == 3


def test_break_begins_another_chunk(server):
    def tokens(**fields):
        return server.pictures(emphasis=True, **fields)["usage"]["input_tokens"]
    assert tokens(prompt="a b") == 4 and tokens(prompt="a BREAK b") == 6
    assert tokens(prompt="a BREAK b", long_prompt="truncate") == 4


# ---- textual inversion ----


def test_embeddings_lie_in_folders_too(start, tmp_path):
    for name, folder in (("easyNegative", "sd/deep"), ("learned_embeds", "sd"), ("third", ".hidden")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(FIXTURES / "embeddings" / f"{name}.safetensors", tmp_path / folder)
    (tmp_path / "sd" / "round").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sd" / "back").symlink_to(tmp_path)
    daemon = start({"models": {"embeddings_folder": str(tmp_path)}})
    assert daemon.get("/v1/models").json()["data"][0]["tessera"]["embeddings"] == ["easyNegative", "<cat-toy>"]


def test_embeddings_are_used_by_name(start, server):
    daemon = start({"models": {"embeddings_folder": str(FIXTURES / "embeddings")}})
    assert daemon.get("/v1/models").json()["data"][0]["tessera"]["embeddings"] == ["easyNegative", "<cat-toy>", "one word"]
    for fields in ({"prompt": "a <cat-toy> at dusk"}, {"negative_prompt": "easynegative"}, {"prompt": "one word"}):
        assert made(daemon, **fields)[0].pixels != made(server, **fields)[0].pixels
    for fields in ({"prompt": "a lake"}, {"prompt": "not easynegatives"}, {"negative_prompt": "<cat>"}):
        assert made(daemon, **fields)[0].pixels == made(server, **fields)[0].pixels
    assert made(daemon, prompt="One  WORD")[0].pixels == made(daemon, prompt="one word")[0].pixels
    assert daemon.pictures(prompt="a <cat-toy>")["usage"]["input_tokens"] == 2 + 1 + 3
    assert server.get("/v1/models").json()["data"][0]["tessera"]["embeddings"] == []


def test_xl_takes_pairs(start):
    daemon = start({"models": {**XL, "embeddings_folder": str(FIXTURES / "embeddings")}})
    assert daemon.get("/v1/models").json()["data"][0]["tessera"]["embeddings"] == ["xl-thing"]
    assert made(daemon, prompt="xl-thing")[0].pixels != made(daemon, prompt="xl-thin")[0].pixels
