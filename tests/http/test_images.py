"""POST /v1/images/generations: what comes back when everything is right."""
import concurrent.futures
import http.client
import json
import subprocess
import time

import pytest

import contract
from daemon import ANSWER_S, IMAGES
from png import Png, largest_difference


def picture(answer, k=0):
    return Png.of_base64(answer["data"][k]["b64_json"])


def curl(*arguments):
    return subprocess.run(["curl", "-sS", "--max-time", str(ANSWER_S), *arguments], check=True,
                          capture_output=True).stdout


# ---- the three kinds of answer, with curl ----


def test_curl_gets_json_with_a_picture(server, tmp_path):
    out = curl(server.url + IMAGES, "-H", "Content-Type: application/json", "-D", str(tmp_path / "headers"),
               "-d", '{"prompt": "a lake at dawn", "size": "64x64", "seed": 7, "steps": 2}')
    headers = (tmp_path / "headers").read_text().lower()
    assert "200 ok" in headers and "x-request-id: " in headers
    body = json.loads(out)
    contract.check("ImageResponse", body)
    assert abs(body["created"] - time.time()) < 600
    assert body["size"] == "64x64" and body["data"][0]["seed"] == 7
    assert (picture(body).width, picture(body).height) == (64, 64)


def test_curl_gets_the_picture_itself_for_accept_png(server, tmp_path):
    file = tmp_path / "picture.png"
    headers = curl(server.url + IMAGES, "-H", "Content-Type: application/json", "-H", "Accept: image/png",
                   "-d", '{"prompt": "a lake", "width": 96, "height": 64, "seed": 11}', "-o", str(file), "-D", "-")
    headers = headers.decode().lower()
    assert "content-type: image/png" in headers and "x-tessera-seed: 11\r\n" in headers
    png = Png(file.read_bytes())
    assert (png.width, png.height) == (96, 64)


def test_curl_gets_events_for_stream(server):
    out = curl("-N", server.url + IMAGES, "-H", "Content-Type: application/json",
               "-d", '{"prompt": "a lake", "size": "64x64", "steps": 3, "stream": true, "progress": true}').decode()
    names = [line[7:] for line in out.splitlines() if line.startswith("event: ")]
    assert names[-1] == "image_generation.completed"
    assert names.count("image_generation.progress") >= 1
    assert out.endswith("data: [DONE]\n\n")


def test_the_png_answer_is_the_picture_of_the_json_answer(server):
    fields = {"prompt": "a lake", "seed": 5, "size": "64x64", "steps": 2}
    png = server.post(fields, headers={"Accept": "image/png"})
    assert png.status == 200
    assert Png(png.body).pixels == picture(server.pictures(**fields)).pixels


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, image/png;q=0.5",
                                    "text/html, */*;q=0.1", "image/png;q=0", "image/png;Q=0.0",
                                    "image/png; level=1 ;q=0.4, application/json"])
def test_other_accepts_get_json(server, accept):
    answer = server.post({"prompt": "a lake"}, headers={"Accept": accept})
    contract.check("ImageResponse", answer.json())


def test_numbers_are_told_as_they_were_asked_for(server):
    asked = {"guidance_scale": 7.123456789, "guidance_rescale": 0.1234567891234, "guidance_interval": [0.1, 0.98765432101],
             "parallel": {"partial": 0.333333333333}}
    answer = server.post({"prompt": "a lake", **asked}).json()
    told = answer["tessera"]
    assert [told[k] for k in list(asked)[:3]] == list(asked.values())[:3]
    assert told["partial"] == asked["parallel"]["partial"]
    text = Png.of_base64(answer["data"][0]["b64_json"]).text["parameters"]
    for number in ("7.123456789,", "0.1234567891234,", "0.1-0.98765432101,", "0.333333333333"):
        assert number in text, text


def test_a_prompt_as_long_as_a_body_is_made_and_told(start):
    daemon = start({"server": {"body_limit": 4_000_000}, "limits": {"max_prompt_bytes": 1_000_000}})
    prompt, negative = "lake " * 190_000, "trees " * 160_000
    answer = daemon.post({"prompt": prompt, "negative_prompt": negative, "long_prompt": "truncate"}, headers={"Accept": "image/png"})
    assert answer.status == 200, answer.body[:300]
    text = Png(answer.body).text["parameters"]
    assert text.startswith(prompt) and negative in text


# ---- seeds and batches ----


def test_the_same_seed_gives_the_same_bytes(server):
    first, again = (server.pictures(seed=123)["data"][0] for _ in range(2))
    assert first == again


def test_another_seed_or_prompt_gives_another_picture(server):
    one = picture(server.pictures(seed=1))
    assert picture(server.pictures(seed=2)).pixels != one.pixels
    assert picture(server.pictures(seed=1, prompt="a desert")).pixels != one.pixels


def test_without_a_seed_each_picture_is_another_and_can_be_made_again(server):
    first, second = server.pictures(), server.pictures()
    assert first["data"][0]["seed"] != second["data"][0]["seed"]
    again = server.pictures(seed=first["data"][0]["seed"])
    assert again["data"] == first["data"]


def test_n_pictures_have_the_seeds_that_follow_and_are_the_pictures_they_would_be_alone(server):
    together = server.pictures(n=4, seed=40, guidance_scale=5)
    contract.check("ImageResponse", together)
    assert [d["seed"] for d in together["data"]] == [40, 41, 42, 43]
    for k in range(4):
        alone = picture(server.pictures(seed=40 + k, guidance_scale=5))
        # float32: a batch may round differently, by the last bit of a pixel at most.
        assert largest_difference(picture(together, k), alone) <= 1


def test_pictures_of_one_batch_keep_their_own_prompt_seed_and_guidance(start):
    """Three requests that can run as one do, and each gets its own picture."""
    daemon = start({"scheduler": {"max_batch": 4, "max_wait_ms": 3000}})
    requests = [{"prompt": "a lake", "seed": 1, "guidance_scale": 2.0},
                {"prompt": "a desert at noon", "seed": 2, "guidance_scale": 7.5, "negative_prompt": "trees"},
                {"prompt": "snow", "seed": 1, "guidance_scale": 4.0},
                {"prompt": "a lake", "seed": 1, "guidance_scale": 9.0}]
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda r: picture(daemon.pictures(**r)), requests))
    metrics = daemon.metrics()
    assert metrics["tessera_pictures_total"] == 4
    assert metrics["tessera_batches_total"] == 1, "the four did not run as one batch"
    different = {t.pixels for t in together}
    assert len(different) == len(requests)
    daemon.stop()
    lone = start({"scheduler": {"max_batch": 1}})
    for request, made in zip(requests, together):
        assert largest_difference(picture(lone.pictures(**request)), made) <= 1


@pytest.mark.parametrize("seed, echoed", [(0, 0), (9007199254740992, 9007199254740992), ("17", 17),
                                          ("9007199254740993", "9007199254740993"),
                                          ("18446744073709551615", "18446744073709551615")])
def test_seeds_come_back_exactly(server, seed, echoed):
    body = server.pictures(seed=seed)
    assert body["data"][0]["seed"] == echoed and body["tessera"]["seed"] == echoed
    png = server.post({"prompt": "a lake", "seed": seed}, headers={"Accept": "image/png"})
    assert png.headers["x-tessera-seed"] == str(seed)


# ---- fields ----


def test_size_auto_is_what_the_model_says(start):
    daemon = start({"defaults": {"size": "auto"}})
    default = daemon.get("/v1/models").json()["data"][0]["tessera"]["default_size"]
    for fields in ({}, {"size": "auto"}):
        body = daemon.pictures(steps=1, **fields)
        assert body["size"] == default == f"{picture(body).width}x{picture(body).height}"


def test_without_a_size_the_configured_one_is_used(server):
    assert server.pictures()["size"] == server.pictures(size="auto")["size"] == "64x64"


def test_null_is_absent(server):
    names = contract.DOCUMENT["components"]["schemas"]["ImageRequest"]["properties"]
    body = server.pictures(**{name: None for name in names if name not in ("prompt", "stream", "seed")}, seed=3)
    assert body["data"] == server.pictures(seed=3)["data"]


def test_fields_of_other_servers_clients_are_accepted(server):
    body = server.pictures(quality="high", background="auto", style="vivid", moderation="low", user="me",
                           output_compression=100, output_format="png", response_format="b64_json",
                           partial_images=0, scheduler="default", on_disconnect="cancel", seed=3)
    assert body["data"] == server.pictures(seed=3)["data"]


def test_an_empty_prompt_is_a_prompt(server):
    assert server.pictures(prompt="")["usage"]["input_tokens"] >= 0


def test_a_prompt_may_be_any_unicode(server):
    prompt = 'ein See – 湖 \U0001f3de "quoted" \\ \t'
    png = Png(server.post({"prompt": prompt}, headers={"Accept": "image/png"}).body)
    assert png.text["parameters"].startswith(prompt)


def test_a_prompt_longer_than_the_context_is_cut_off(server):
    assert picture(server.pictures(prompt="a lake " * 400, long_prompt="truncate")).width == 64


def test_without_guidance_the_negative_prompt_means_nothing_and_with_it_something(server):
    def made(**fields):
        return picture(server.pictures(seed=9, **fields)).pixels
    assert made(guidance_scale=1, negative_prompt="trees") == made(guidance_scale=0)
    assert made(guidance_scale=6, negative_prompt="trees") != made(guidance_scale=6)


def test_every_sampler_that_a_model_lists_can_be_chosen(server):
    samplers = server.get("/v1/models").json()["data"][0]["tessera"]["samplers"]
    assert {"ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm"} <= set(samplers)
    assert "flow_euler" not in samplers  # the model predicts noise
    for sampler in samplers:
        assert server.pictures(sampler=sampler, steps=3)["tessera"]["sampler"] == sampler
    listed = server.get("/sdapi/v1/samplers").json()
    assert [s["aliases"][0] for s in listed] == samplers
    for name in (listed[3]["name"], *listed[3]["aliases"]):
        assert server.pictures(sampler=name, steps=1)["tessera"]["sampler"] == samplers[3]


def test_every_scheduler_that_a_model_lists_can_be_chosen(server):
    schedulers = server.get("/v1/models").json()["data"][0]["tessera"]["schedulers"]
    properties = contract.DOCUMENT["components"]["schemas"]["ImageRequest"]["properties"]
    assert schedulers + [None] == properties["scheduler"]["enum"]
    listed = server.get("/sdapi/v1/schedulers").json()
    assert [s["name"] for s in listed] == schedulers
    for scheduler in listed:
        for name in (scheduler["name"], scheduler["label"]):
            body = server.pictures(sampler="euler", scheduler=name, steps=3)
            assert body["tessera"]["scheduler"] == scheduler["name"]


def test_a_scheduler_and_a_generator_make_another_picture(server):
    def made(**fields):
        return picture(server.pictures(sampler="euler", steps=4, seed=8, **fields)).pixels
    plain = made()
    assert made(scheduler="default", rng="torch-cpu") == plain
    assert len({plain, made(scheduler="karras"), made(rng="torch-cuda")}) == 3


def test_eta_is_drawn_told_and_written_down(server):
    def made(sampler="ddim", **fields):
        return server.pictures(seed=8, steps=4, sampler=sampler, **fields)
    plain, none, some = made(), made(eta=0), made(eta=0.5)
    assert [b["tessera"]["eta"] for b in (plain, none, some)] == [0, 0, 0.5]
    assert picture(none).pixels == picture(plain).pixels != picture(some).pixels
    assert "Eta: 0.5" in picture(some).text["parameters"] and "Eta" not in picture(plain).text["parameters"]
    assert "eta" not in made(sampler="euler")["tessera"]
    refused = server.post({"prompt": "a lake", "sampler": "euler", "eta": 0.5})
    assert refused.status == 400 and refused.json()["error"]["param"] == "eta"


def test_guidance_rescale_is_of_its_picture_and_told(server):
    def made(**fields):
        return server.pictures(seed=8, steps=4, guidance_scale=8, **fields)
    plain, some, all_of_it = made(), made(guidance_rescale=0.4), made(guidance_rescale=1)
    assert [b["tessera"]["guidance_rescale"] for b in (plain, some, all_of_it)] == [0, 0.4, 1]
    assert made(guidance_rescale=0)["data"] == plain["data"]
    assert len({picture(b).pixels for b in (plain, some, all_of_it)}) == 3
    png = server.post({"prompt": "a lake", "guidance_rescale": 0.4}, headers={"Accept": "image/png"})
    assert "CFG rescale: 0.4" in Png(png.body).text["parameters"]


def test_outside_its_interval_there_is_no_guidance(server):
    def made(**fields):
        return server.pictures(seed=8, steps=4, sampler="euler", **fields)
    plain, some = made(guidance_scale=8), made(guidance_scale=8, guidance_interval=[0.25, 0.75])
    assert plain["tessera"]["guidance_interval"] == [0, 1] and some["tessera"]["guidance_interval"] == [0.25, 0.75]
    assert made(guidance_scale=8, guidance_interval=[0, 1])["data"] == plain["data"] != some["data"]
    # floor(0.26 * 4) is the first step and the last that has it.
    never, without = made(guidance_scale=8, guidance_interval=[0.26, 0.49]), made(guidance_scale=1)
    assert largest_difference(picture(never), picture(without)) <= 1
    png = server.post({"prompt": "a lake", "guidance_interval": [0.25, 0.75]}, headers={"Accept": "image/png"})
    assert "CFG interval: 0.25-0.75" in Png(png.body).text["parameters"]


def test_a_list_of_levels_is_what_a_scheduler_would_place(server):
    ays = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]

    def made(**fields):
        return server.pictures(sampler="euler", seed=8, **fields)
    def same(a, b):
        return picture(a).pixels == picture(b).pixels
    placed, listed = made(scheduler="align_your_steps", steps=10), made(steps=None, sigmas=[*ays, 0])
    assert same(listed, placed) and same(listed, made(sigmas=ays, steps=10))
    assert [b["tessera"]["scheduler"] for b in (placed, listed)] == ["align_your_steps", "sigmas"]
    assert listed["tessera"]["steps"] == 10
    spaced = made(scheduler="leading", steps=4)
    assert same(made(timesteps=[751, 501, 251, 1], steps=4), spaced)
    assert not same(made(scheduler="sgm_uniform", steps=4), spaced)
    png = server.post({"prompt": "a lake", "sampler": "euler", "sigmas": [9, 2.5, 0.5], "rng": "torch-cuda"},
                      headers={"Accept": "image/png"})
    assert "Schedule type: Sigmas, RNG: NV, Levels: 9 2.5 0.5, " in Png(png.body).text["parameters"]


def test_samplers_make_different_pictures(server):
    made = {picture(server.pictures(sampler=s, steps=4, seed=8)).pixels for s in ("ddim", "euler", "dpmpp_2m")}
    assert len(made) == 3


def test_how_it_was_made_is_told(server):
    wanted = {"mode": "pcpp", "devices": 2, "partial": 0.5, "warmup_steps": 1, "group_norm": "stale",
              "cfg_split": "off"}
    body = server.pictures(parallel=wanted, steps=3, guidance_scale=3.5, sampler="euler", seed=2, size="64x128")
    contract.check("ImageResponse", body)
    made = body["tessera"]
    assert {k: made[k] for k in wanted} == wanted
    assert made["patches"] == 2 and made["steps"] == 3 and made["sampler"] == "euler"
    assert made["guidance_scale"] == 3.5 and made["dtype"] == "f32" and made["seed"] == 2
    assert made["model"] == server.get("/v1/models").json()["data"][0]["id"]


def test_partial_all_is_told_as_all(server):
    assert server.pictures(parallel={"partial": "all", "devices": "all"})["tessera"]["partial"] == "all"


def test_single_uses_one_device(server):
    made = server.pictures(parallel={"mode": "single"})["tessera"]
    assert made["mode"] == "single" and made["devices"] == 1 and made["patches"] == 1


def test_sync_on_two_devices_is_the_picture_of_one_and_naive_is_not(server):
    def made(**parallel):
        return picture(server.pictures(seed=4, steps=4, size="64x128", parallel=parallel))
    alone = made(mode="single")
    assert largest_difference(made(mode="sync", devices=2, cfg_split="off"), alone) <= 1
    assert largest_difference(made(mode="naive", devices=2, cfg_split="off"), alone) > 1


@pytest.mark.parametrize("mode", ["pcpp", "distrifusion", "sync", "naive", "single"])
@pytest.mark.parametrize("group_norm", ["sync", "stale", "corrected", "local"])
def test_every_mode_runs_with_every_group_norm(server, mode, group_norm):
    made = server.pictures(steps=3, parallel={"mode": mode, "group_norm": group_norm, "warmup_steps": 0})["tessera"]
    assert (made["mode"], made["group_norm"]) == (mode, group_norm)


def test_usage_adds_up(server):
    usage = server.pictures()["usage"]
    assert usage["input_tokens"] == usage["input_tokens_details"]["text_tokens"] + \
        usage["input_tokens_details"]["image_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert server.pictures(prompt="a lake and two houses")["usage"]["input_tokens"] > usage["input_tokens"]


def test_the_png_says_how_it_was_made(server):
    answer = server.post({"prompt": "a lake at dusk", "negative_prompt": "houses", "seed": 77, "steps": 3,
                          "sampler": "euler", "size": "96x64", "guidance_scale": 4.5,
                          "parallel": {"mode": "distrifusion"}}, headers={"Accept": "image/png"})
    lines = Png(answer.body).text["parameters"].split("\n")
    assert lines[0] == "a lake at dusk" and lines[1] == "Negative prompt: houses"
    said = dict(part.split(": ", 1) for part in lines[2].split(", "))
    model = server.get("/v1/models").json()["data"][0]["id"]
    assert said["Steps"] == "3" and said["Seed"] == "77" and said["Size"] == "96x64"
    assert said["CFG scale"] == "4.5" and said["Sampler"] == "Euler" and said["Model"] == model
    assert said["Parallel mode"] == "distrifusion"


# ---- streams ----


def test_a_stream_tells_every_step_and_ends_with_the_picture(server):
    events = server.events(progress=True, steps=5, seed=6, parallel={"mode": "sync"})
    assert events[-1] == (None, None)
    names = [name for name, _ in events[:-1]]
    for name, data in events[:-1]:
        assert data["type"] == name
    steps = [d for n, d in events if n == "image_generation.progress"]
    for d in steps:
        contract.check("EventProgress", d)
        assert d["total_steps"] == 5
    assert [d["step"] for d in steps] == sorted({d["step"] for d in steps})
    for n, d in events:
        if n == "image_generation.queued":
            contract.check("EventQueued", d)
    assert names[-1] == "image_generation.completed"
    done = events[-2][1]
    contract.check("EventCompleted", done)
    assert done["seed"] == 6 and done["index"] == 0
    plain = server.pictures(steps=5, seed=6, parallel={"mode": "sync"})
    assert done["b64_json"] == plain["data"][0]["b64_json"] and done["tessera"] == plain["tessera"]


def test_the_steps_of_every_batch_are_told(start):
    daemon = start({"scheduler": {"max_batch": 2}})
    events = daemon.events(progress=True, n=5, steps=80, size="128x128")
    steps = [data["step"] for name, data in events if name == "image_generation.progress"]
    # Within a batch they increase; of a short one only the last may have been in time to be told.
    assert sum(b <= a for a, b in zip(steps, steps[1:])) == 2, steps


def test_without_progress_a_stream_holds_only_the_pictures(server):
    events = server.events(n=3, seed=20)
    assert [n for n, _ in events] == ["image_generation.completed"] * 3 + [None]
    made = {d["index"]: d["seed"] for _, d in events[:-1]}
    assert made == {0: 20, 1: 21, 2: 22}


def test_a_silent_stream_is_kept_awake(start):
    daemon = start({"server": {"ping_interval": 1}})
    with daemon.begin(stream=True, steps=900, size="256x256", parallel={"mode": "single"}) as s:
        seen = b""
        while b"\n: ping\n" not in seen:
            part = s.recv(4096)
            assert part, seen
            seen += part
            assert b"image_generation.completed" not in seen, "too quick to need a comment"
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_running") == 0, "the picture is not cancelled")


# ---- how the request may come ----


def test_a_chunked_body_is_accepted(server):
    out = curl(server.url + IMAGES, "-H", "Content-Type: application/json", "-H", "Transfer-Encoding: chunked",
               "-d", '{"prompt": "a lake", "seed": 1}')
    assert json.loads(out)["data"][0]["seed"] == 1


@pytest.mark.parametrize("kind", [None, "application/json", "application/json; charset=utf-8",
                                  "Application/JSON;charset=UTF-8"])
def test_content_types_that_are_json(server, kind):
    answer = server.request("POST", IMAGES, body=b'{"prompt": "a lake"}', headers={"Content-Type": kind} if kind else {})
    assert answer.status == 200, answer.body


def test_a_client_that_expects_100_continue_gets_it(server):
    out = curl(server.url + IMAGES, "-H", "Content-Type: application/json", "-H", "Expect: 100-continue",
               "-D", "-", "-o", "/dev/null", "-d", '{"prompt": "a lake"}')
    assert b"100 Continue" in out and b"200 OK" in out


def test_one_connection_carries_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_S)
    seen = set()
    for _ in range(3):
        connection.request("POST", IMAGES, body=b'{"prompt": "a lake"}',
                           headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        sock = connection.sock
        assert response.status == 200 and sock
        seen.add(response.headers["x-request-id"])
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        assert connection.sock is sock
    connection.close()
    assert len(seen) == 3, "request ids are not unique"


def test_pipelined_requests_are_answered_in_order(server):
    one = b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n"
    data = server.raw(one % (b"/health", b"") + one % (b"/nowhere", b"") + one % (b"/v1/models", b"Connection: close\r\n"))
    assert data.count(b"HTTP/1.1 ") == 3
    assert [int(p[:3]) for p in data.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]
