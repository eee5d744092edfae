"""A picture that fails: the client hears why, is not asked to try again, and nobody else notices."""
import json
import pathlib
import shutil
import struct
import time

import openai
import pytest

import contract
from contract import check_error
from daemon import Daemon, SLOW, model, receive


def spoil(folder, tensor, component="unet"):
    """Writes NaN over a tensor."""
    file = next(pathlib.Path(folder, component).glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    size = struct.unpack_from("<Q", data)[0]
    begin, end = json.loads(data[8:8 + size])[tensor]["data_offsets"]
    # All ones is NaN in every floating-point format.
    data[8 + size + begin:8 + size + end] = b"\xff" * (end - begin)
    file.write_bytes(data)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A daemon with a good model and one whose every picture stops being finite."""
    folder = tmp_path_factory.mktemp("two")
    broken = folder / "broken"
    shutil.copytree(model(), broken)
    spoil(broken, "conv_out.bias")
    with Daemon(folder / "daemon", {"models": {"path": [model(), broken]}}) as daemon:
        yield daemon


def test_both_models_are_listed_and_the_first_is_the_default(two):
    ids = [m["id"] for m in two.get("/v1/models").json()["data"]]
    assert ids == [pathlib.Path(model()).name, "broken"]
    assert two.pictures()["tessera"]["model"] == ids[0] == two.pictures(model=ids[0])["tessera"]["model"]
    assert two.get("/v1/models/broken").json()["id"] == "broken"


def test_a_picture_that_stops_being_finite_is_a_500_that_says_when(two):
    answer = two.post({"prompt": "a lake", "model": "broken", "steps": 3})
    error = check_error(answer, 500, None, "non_finite")
    assert "1 of 3" in error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_so_is_one_that_its_autoencoder_spoils(start, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model(), broken)
    spoil(broken, "decoder.conv_out.bias", "vae")
    daemon = start({"models": {"path": broken}})
    error = check_error(daemon.post({"prompt": "a lake"}), 500, None, "non_finite")
    assert "decoded" in error["message"]


def test_openai_client_does_not_try_again(two):
    before = two.metric("tessera_requests_accepted_total")
    with openai.OpenAI(base_url=two.url + "/v1", api_key="none", max_retries=2) as client:
        with pytest.raises(openai.InternalServerError):
            client.images.generate(prompt="a lake", model="broken")
    assert two.metric("tessera_requests_accepted_total") == before + 1


def test_in_a_stream_it_is_an_error_event_and_openai_client_raises(two):
    events = two.events(model="broken", progress=True)
    assert events[-1] == (None, None) and events[-2][0] == "error"
    contract.check("Error", events[-2][1])
    assert events[-2][1]["error"]["type"] == "server_error"
    with openai.OpenAI(base_url=two.url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIError):
            list(client.images.generate(prompt="a lake", model="broken", stream=True))


def test_afterwards_the_other_model_makes_its_pictures(two):
    good = two.pictures(seed=3)["data"]
    assert two.post({"prompt": "a lake", "model": "broken"}).status == 500
    assert two.pictures(seed=3)["data"] == good


def test_failures_are_counted_apart(two):
    before = two.metrics()
    two.post({"prompt": "a lake", "model": "broken"})
    after = two.metrics()
    for name, more in (("failed", 1), ("accepted", 1), ("completed", 0), ("cancelled", 0)):
        name = f"tessera_requests_{name}_total"
        assert after[name] == before[name] + more, name


def test_a_model_file_that_shrinks_fails_the_requests_of_its_model_alone(start, tmp_path):
    folder = tmp_path / "shrinking"
    shutil.copytree(model(), folder)
    file = next((folder / "unet").glob("*.safetensors"))
    daemon = start({"models": {"path": [model(), folder]}})
    good = daemon.pictures(seed=3)["data"]
    # Nothing of this one has been read but its header: weights are read when a program is compiled.
    with file.open("r+b") as f:
        f.truncate(file.stat().st_size // 2)
    for _ in range(2):  # the second time there is nothing left to read
        error = check_error(daemon.post({"prompt": "a lake", "model": "shrinking"}), 500, None, "io_error")
        assert f"unet/{file.name} " in error["message"] and str(tmp_path) not in error["message"]
        assert daemon.get("/v1/models").status == 200
    assert f"unet/{file.name} " in daemon.log_text(), "the log does not say why"
    assert daemon.pictures(seed=3)["data"] == good


def test_a_stream_that_is_cut_by_the_end_of_the_server_says_so(start):
    daemon = start({"server": {"drain_timeout": 0}})
    with daemon.begin(stream=True, steps=900, size="256x256", parallel={"mode": "single"}) as s:
        daemon.wait_for(lambda: daemon.metric("tessera_pictures_running") == 1, "it does not run")
        begin = time.monotonic()
        daemon.terminate()
        body = receive(s).partition(b"\r\n\r\n")[2]
        assert daemon.wait(20 * SLOW) == 0
    assert time.monotonic() - begin < 8 * SLOW
    # Chunked: the event is in one piece, for it is small.
    data = [line for line in body.split(b"\n") if line.startswith(b"data: {")]
    assert b"event: error\n" in body and "error" in json.loads(data[-1][6:])


def test_a_folder_that_is_no_model_is_named_and_ends_the_start(tmp_path):
    for name, damage in {
        "no index": lambda f: (f / "model_index.json").unlink(),
        "no weights": lambda f: next((f / "unet").glob("*.safetensors")).unlink(),
        "cut off": lambda f: (lambda w: w.write_bytes(w.read_bytes()[:-100]))(next((f / "vae").glob("*.safetensors"))),
        "no JSON": lambda f: (f / "unet" / "config.json").write_text("{"),
        "an unknown value": lambda f: (f / "unet" / "config.json").write_text(
            (f / "unet" / "config.json").read_text().replace('"silu"', '"tanh"')),
    }.items():
        folder = tmp_path / name
        shutil.copytree(model(), folder)
        damage(folder)
        daemon = Daemon(tmp_path / (name + " daemon"), {"models": {"path": folder}})
        assert daemon.wait(60 * SLOW) > 0, name
        assert str(folder) in daemon.log_text(), (name, daemon.log_text())
