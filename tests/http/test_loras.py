"""LoRA files: fused at the start, and by name in a request."""
import concurrent.futures
import json
import shutil
import struct
import subprocess

import openai
import pytest

import contract
import test_edits as edits
from contract import check_error
from daemon import PROGRAM, ROOT, Daemon, model
from png import Png
from test_images import picture

LORAS = ROOT / "tests" / "fixtures" / "loras"
REQUEST = {"prompt": "a lake at dawn", "seed": 7}


def generate(folder, *options):
    """The same picture without a server."""
    out = folder / "out.png"
    subprocess.run([PROGRAM, "generate", "--model", model(), "--prompt", REQUEST["prompt"], "--seed", "7", "--steps", "2",
                    "--size", "64x64", "--devices", "cpu:2", "--dtype", "f32", "-o", str(out), *options], check=True,
                   stderr=subprocess.DEVNULL)
    return Png(out.read_bytes())


def test_a_lora_of_the_configuration_is_in_every_picture(start, tmp_path):
    file = LORAS / "kohya_sd1.safetensors"
    fused = start({"models": {"lora": f"{file}:0.5"}})
    made = picture(fused.pictures(**REQUEST))
    assert made.pixels == generate(tmp_path, "--lora", f"{file}:0.5").pixels
    assert made.pixels != generate(tmp_path).pixels
    assert made.text["parameters"].startswith("a lake at dawn <lora:kohya_sd1:0.5>\n")


def test_a_lora_of_another_model_ends_the_start(tmp_path):
    run = subprocess.run([PROGRAM, "--model", model(), "--lora", str(LORAS / "sgm_xl.safetensors"), "--listen",
                          "127.0.0.1:0"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "sgm_xl.safetensors" in run.stderr and "no such layer" in run.stderr


def test_a_scale_that_cannot_be_is_refused_with_its_line(tmp_path):
    file = tmp_path / "conf"
    file.write_text(f"[models]\npath = {model()}\nlora = a.safetensors:1e9\n")
    run = subprocess.run([PROGRAM, "--config", str(file), "--check-config"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and f"{file}:3" in run.stderr, run.stderr


# ---- by name in a request ----


@pytest.fixture(scope="module")
def offering(tmp_path_factory):
    """A daemon with a folder of LoRAs, some of which are none."""
    folder = tmp_path_factory.mktemp("loras")
    for file in LORAS.iterdir():
        (shutil.copytree if file.is_dir() else shutil.copy)(file, folder / file.name)
    (folder / "empty").mkdir()
    shutil.copytree(LORAS / "adapter_text", folder / "kohya_sd1")  # the file has the name
    (folder / "broken.safetensors").write_bytes(b"no header")
    (folder / "readme.txt").write_text("not a LoRA")
    (folder / "a:b.safetensors").write_bytes(b"")
    (folder / "folder.safetensors").mkdir()
    shutil.copytree(LORAS / "adapter_text", folder / "style.pt")
    with Daemon(tmp_path_factory.mktemp("offering"), {"models": {"lora_folder": folder}}) as daemon:
        daemon.loras = folder
        yield daemon


def test_the_loras_of_the_folder_are_listed(offering, server):
    answer = offering.get("/v1/loras").json()
    contract.check("LoraList", answer)
    assert [v["id"] for v in answer["data"]] == sorted([f.stem for f in LORAS.iterdir()] + ["broken", "style.pt"])
    assert server.get("/v1/loras").json() == {"object": "list", "data": []}


def test_a_name_too_long_for_a_file_is_of_no_lora(offering):
    for length in 243, 244, 255:
        answer = offering.post({**REQUEST, "loras": [{"name": "x" * length}]})
        assert answer.status == 404 and answer.json()["error"]["param"] == "loras", answer.body


def test_a_lora_of_a_request_is_in_its_pictures_alone(offering, tmp_path):
    plain = picture(offering.pictures(**REQUEST))
    answer = offering.pictures(**REQUEST, loras=[{"name": "kohya_sd1", "scale": 0.5}])
    made = picture(answer)
    contract.check("ImageResponse", answer)
    assert answer["tessera"]["loras"] == [{"name": "kohya_sd1", "scale": 0.5}]
    assert made.text["parameters"].startswith("a lake at dawn <lora:kohya_sd1:0.5>\n")
    assert made.pixels == generate(tmp_path, "--lora", f"{LORAS}/kohya_sd1.safetensors:0.5").pixels
    again = offering.pictures(**REQUEST)
    assert picture(again).pixels == plain.pixels != made.pixels
    assert "loras" not in again["tessera"]


def test_an_adapter_that_peft_has_saved_is_a_folder(offering, tmp_path):
    made = picture(offering.pictures(**REQUEST, loras=[{"name": "adapter_unet", "scale": 0.5}]))
    assert made.pixels == generate(tmp_path, "--lora", f"{LORAS}/adapter_unet:0.5").pixels != generate(tmp_path).pixels


def test_an_adapter_whose_alpha_is_changed_is_another(offering):
    name, folder = {"loras": [{"name": "trained"}]}, offering.loras / "trained"
    shutil.copytree(LORAS / "adapter_text", folder)
    before = picture(offering.pictures(**REQUEST, **name)).pixels
    config = (folder / "adapter_config.json").read_text()
    (folder / "new").write_text(config.replace('"lora_alpha": 4', '"lora_alpha": 9'))
    (folder / "new").rename(folder / "adapter_config.json")
    assert picture(offering.pictures(**REQUEST, **name)).pixels != before
    (folder / "adapter_config.json").write_text(" " * (1 << 20) + config)
    error = check_error(offering.post({**REQUEST, **name}), 400, "loras", "invalid_value")
    assert str(offering.loras) not in error["message"]
    shutil.rmtree(folder)
    check_error(offering.post({**REQUEST, **name}), 404, "loras", "not_found")


@pytest.mark.parametrize("path", ["adapter_text", "adapter_text/", "adapter_text/adapter_model.safetensors"])
def test_an_adapter_is_called_like_its_folder(tmp_path, path):
    assert "<lora:adapter_text:0.5>" in generate(tmp_path, "--lora", f"{LORAS}/{path}:0.5").text["parameters"]


@pytest.mark.parametrize("name, same", [("old", "old_sd1.safetensors"), ("adapter", "adapter_unet")])
def test_files_of_torch_are_loras_too(start, tmp_path, name, same):
    torch = LORAS.parent / "torch" / "loras"
    daemon = start({"models": {"lora_folder": str(torch)}})
    assert [each["id"] for each in daemon.get("/v1/loras").json()["data"]] == ["adapter", "numbers", "old"]
    made = picture(daemon.pictures(**REQUEST, loras=[{"name": name, "scale": 0.5}]))
    assert made.pixels == generate(tmp_path, "--lora", f"{LORAS}/{same}:0.5").pixels
    path = next(torch.glob(f"{name}*"))
    by_path = generate(tmp_path, "--lora", f"{path}:0.5")
    assert made.pixels == by_path.pixels and f"<lora:{name}:0.5>" in by_path.text["parameters"]


def tensors(path, **named):
    """A safetensors file of float32: {name: (shape, values)}."""
    header, data = {}, b""
    for name, (shape, values) in named.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += struct.pack(f"<{len(values)}f", *values)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_the_projection_of_the_text_can_be_changed(tmp_path):
    """The one weight that is read on the host."""
    def made(name, up):
        tensors(tmp_path / name, **{"lora_te2_text_projection.lora_down.weight": ([2, 48], [0.1] * 96),
                                    "lora_te2_text_projection.lora_up.weight": ([40, 2], [up] * 80)})
        return generate(tmp_path, "--lora", str(tmp_path / name), "--model", str(LORAS.parent / "pipeline_xl")).pixels
    plain = generate(tmp_path, "--model", str(LORAS.parent / "pipeline_xl")).pixels
    assert made("none.safetensors", 0) == plain != made("some.safetensors", 0.3)


def test_a_form_names_loras_too(offering):
    form = [("image", edits.picture()), *edits.BASE]
    made = edits.post(offering, [*form, ("loras[]", "kohya_sd1:0.5"), ("loras[]", "old_sd1")])
    plain = edits.post(offering, form)
    assert made.status == plain.status == 200, (made.body, plain.body)
    assert made.json()["tessera"]["loras"] == [{"name": "kohya_sd1", "scale": 0.5}, {"name": "old_sd1", "scale": 1}]
    assert picture(made.json()).pixels != picture(plain.json()).pixels


def test_a_form_names_loras_as_openais_client_writes_objects(offering):
    form = [("image", edits.picture()), *edits.BASE]
    listed = edits.post(offering, [*form, ("loras[]", "kohya_sd1:0.5"), ("loras[]", "old_sd1")])
    made = edits.post(offering, [*form, ("loras[][name]", "kohya_sd1"), ("loras[][scale]", "0.5"),
                                 ("loras[][name]", "old_sd1"), ("loras[][scale]", "1")])
    assert made.status == 200, made.body
    assert made.json()["data"][0]["b64_json"] == listed.json()["data"][0]["b64_json"]
    with openai.OpenAI(base_url=offering.url + "/v1", api_key="none", max_retries=0) as client:
        theirs = client.images.edit(image=edits.picture(), prompt="a lake", input_fidelity="high", extra_body={
            "seed": 5, "steps": 4, "loras": [{"name": "kohya_sd1", "scale": 0.5}, {"name": "old_sd1", "scale": 1}]})
    assert theirs.data[0].b64_json == made.json()["data"][0]["b64_json"]
    for fields in ([("loras[][name]", "old_sd1"), ("loras[]", "old_sd1")], [("loras[x][name]", "old_sd1")],
                   [("loras[][]", "old_sd1")], [("loras[][scale]", "1")],
                   [("loras[][name]", "kohya_sd1"), ("loras[][name]", "old_sd1"), ("loras[][scale]", "1")]):
        assert edits.post(offering, [*form, *fields]).status == 400, fields


def test_a_lora_may_be_called_like_a_number(start, tmp_path):
    for name in ("2024", "true", "1e5", "x" * 200):
        shutil.copy(LORAS / "kohya_sd1.safetensors", tmp_path / f"{name}.safetensors")
    daemon = start({"models": {"lora_folder": tmp_path}})
    for name in ("2024", "true", "1e5", "x" * 200):
        answer = edits.post(daemon, [("image", edits.picture()), *edits.BASE, ("loras[]", name)])
        assert answer.status == 200, answer.body
        assert answer.json()["tessera"]["loras"] == [{"name": name, "scale": 1}]


def test_two_loras_in_any_order_are_the_same(offering):
    both = [{"name": "old_sd1", "scale": -0.5}, {"name": "peft_sd1"}]
    one, other = (picture(offering.pictures(**REQUEST, loras=loras)) for loras in (both, both[::-1]))
    assert one.pixels == other.pixels
    assert one.text["parameters"].startswith("a lake at dawn <lora:old_sd1:-0.5> <lora:peft_sd1:1>\n")
    assert one.pixels != picture(offering.pictures(**REQUEST, loras=both[:1])).pixels


def test_requests_with_and_without_loras_at_once_are_what_they_are_alone(offering):
    sets = [[], [{"name": "kohya_sd1"}], [{"name": "old_sd1"}], [{"name": "kohya_sd1", "scale": 0.25}]]
    alone = [picture(offering.pictures(**REQUEST, loras=loras)).pixels for loras in sets]
    assert len(set(alone)) == len(sets)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda loras: offering.pictures(**REQUEST, loras=loras), sets * 3))
    assert [picture(a).pixels for a in answers] == alone * 3


def test_a_file_that_takes_anothers_place_is_used(offering):
    name = {"loras": [{"name": "changing"}]}
    pixels = []
    for file in "kohya_sd1", "old_sd1":
        shutil.copy(LORAS / f"{file}.safetensors", offering.loras / "new")
        (offering.loras / "new").rename(offering.loras / "changing.safetensors")
        pixels.append(picture(offering.pictures(**REQUEST, **name)).pixels)
    (offering.loras / "changing.safetensors").unlink()
    assert pixels[0] != pixels[1]
    assert pixels[1] == picture(offering.pictures(**REQUEST, loras=[{"name": "old_sd1"}])).pixels
    check_error(offering.post({**REQUEST, **name}), 404, "loras", "not_found")


def test_without_memory_for_idle_ones_each_request_makes_its_own(start):
    daemon = start({"models": {"lora_folder": LORAS, "lora_memory": 0}})
    fields = {**REQUEST, "loras": [{"name": "kohya_sd1"}]}
    assert picture(daemon.pictures(**fields)).pixels == picture(daemon.pictures(**fields)).pixels


@pytest.mark.parametrize("loras", [5, "kohya_sd1", {"name": "kohya_sd1"}, ["a:b"], ["kohya_sd1:11"], ["kohya_sd1:"], [{"name": "kohya_sd1:1"}], [[]], [{}], [None], [{"name": 5}],
                                   [{"name": ""}], [{"name": "."}], [{"name": "../kohya_sd1"}], [{"name": "a/b"}],
                                   [{"name": "x" * 256}], [{"name": "a\nb"}], [{"name": "kohya_sd1", "scale": 11}],
                                   [{"name": "kohya_sd1", "scale": "1"}], [{"name": "kohya_sd1", "weight": 1}],
                                   [{"name": "kohya_sd1"}] * 2, [{"name": "kohya_sd1"}] * 5], ids=str)
def test_what_is_no_list_of_loras_is_refused(offering, loras):
    check_error(offering.post({**REQUEST, "loras": loras}), 400, "loras", "invalid_value")


@pytest.mark.parametrize("name", ["missing", "kohya_sd1.safetensors", "folder", "readme.txt"])
def test_an_unknown_lora_is_404(offering, name):
    check_error(offering.post({**REQUEST, "loras": [{"name": name}]}), 404, "loras", "not_found")


@pytest.mark.parametrize("name, word", [("broken", "broken"), ("sgm_xl", "no such layer")])
def test_a_lora_that_cannot_be_used_fails_its_request_alone(offering, name, word):
    error = check_error(offering.post({**REQUEST, "loras": [{"name": name}]}), 400, "loras")
    assert word in error["message"] and str(offering.loras) not in error["message"]
    assert offering.post(REQUEST).status == 200


def test_a_server_without_a_folder_offers_none(server):
    check_error(server.post({**REQUEST, "loras": [{"name": "kohya_sd1"}]}), 400, "loras", "unsupported")
    assert server.post({**REQUEST, "loras": []}).status == 200
