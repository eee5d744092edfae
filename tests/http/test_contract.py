"""openapi.yaml and the server say the same."""
import re
import subprocess
import sys

import contract
import pytest

from contract import DOCUMENT
from daemon import SLOW
from test_errors import FIELDS


def test_the_served_document_is_the_file(server):
    answer = server.get("/openapi.yaml")
    assert answer.body == contract.FILE.read_bytes()
    assert answer.headers["content-type"].startswith("application/yaml")


def media_types(node, path=""):
    """Every media type object of the document, with where it is."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "content":
                for kind, media in value.items():
                    yield f"{path}/{kind}", kind, media
            yield from media_types(value, f"{path}/{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from media_types(value, f"{path}/{i}")


EXAMPLES = [(f"{where} {name}", media["schema"], example["value"])
            for where, _, media in media_types(DOCUMENT) for name, example in media.get("examples", {}).items()]
EXAMPLES += [(name, schema, example) for name, schema in DOCUMENT["components"]["schemas"].items()
             for example in schema.get("examples", [])]


@pytest.mark.parametrize("schema, example", [e[1:] for e in EXAMPLES], ids=[e[0] for e in EXAMPLES])
def test_examples_are_what_their_schema_says(schema, example):
    contract.validator(schema).validate(example)


def test_there_are_examples_of_the_request_and_of_every_event():
    assert sum("requestBody" in e[0] for e in EXAMPLES) >= 4
    assert {"EventQueued", "EventProgress"} <= {e[0] for e in EXAMPLES}


def test_example_requests_are_answered(start):
    daemon = start()
    examples = DOCUMENT["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]["application/json"]
    for example in examples["examples"].values():
        # Small and short, for time's sake: the rest as it is written.
        body = {**example["value"], "steps": 2}
        body["size"] = None if "width" in body else "64x64"
        answer = daemon.post(body)
        assert answer.status == 200, (body, answer.body)


def test_the_table_of_bad_fields_is_bad_by_the_document_too():
    """Except for limits and meanings that a schema cannot know."""
    allowed = {"size", "prompt", "negative_prompt", "sampler", "scheduler", "model", "width", "height", "seed",
               "guidance_interval", "sigmas", "timesteps", "steps",
               "parallel.devices"}
    for fields, param in FIELDS:
        if param not in allowed:
            assert not contract.is_valid("ImageRequest", {"prompt": "a lake", **fields}), fields


def test_an_edit_has_the_fields_of_a_generation_and_its_picture():
    schemas = DOCUMENT["components"]["schemas"]
    both = {n: {"$ref": f"#/components/schemas/ImageRequest/properties/{n}"}
            for n in schemas["ImageRequest"]["properties"]}
    own = {k: v for k, v in schemas["EditRequest"]["properties"].items() if k not in ("image", "mask", "strength")}
    assert own == both


def test_models_are_as_described(server):
    body = server.get("/v1/models").json()
    contract.check("ModelList", body)
    for model in body["data"]:
        one = server.get("/v1/models/" + model["id"])
        assert one.status == 200 and one.json() == model


def test_samplers_and_schedulers_are_as_described(server):
    for path, schema in (("samplers", "SdapiSampler"), ("schedulers", "SdapiScheduler")):
        listed = server.get("/sdapi/v1/" + path).json()
        assert len(listed) > 5
        for one in listed:
            contract.check(schema, one)


def test_health_is_as_described(server):
    contract.check("Health", server.get("/health").json())


def test_every_path_of_the_document_is_served(server):
    model = server.get("/v1/models").json()["data"][0]["id"]
    for path, methods in DOCUMENT["paths"].items():
        for method in methods:
            answer = server.request(method.upper(), path.replace("{id}", model))
            # Without a body: no JSON, or no form at all.
            forms = "multipart/form-data" in methods[method].get("requestBody", {}).get("content", {})
            assert answer.status == (415 if forms else 400 if method == "post" else 200), (method, path)
            assert answer.headers["x-request-id"]


def test_schemathesis_finds_nothing(start, tmp_path):
    """Requests made up from the document, good ones and bad ones; answers must be as it says, and none a 5xx."""
    daemon = start({"limits": {"max_width": 64, "max_height": 64, "max_pixels": 4096, "max_steps": 2, "max_n": 2},
                    "scheduler": {"max_queue": 1000}})
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", daemon.url + "/openapi.yaml", "--seed", "1",
         "--max-examples", "25", "--phases", "examples,coverage,fuzzing", "--request-timeout", "60",
         # The operator's limits refuse what the document allows.
         "--exclude-checks", "positive_data_acceptance", "--generation-database", "none", "--no-color"],
        capture_output=True, text=True, timeout=240 * SLOW, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    assert re.search(r"\b\d+ passed", done.stdout) or "No issues found" in done.stdout, done.stdout[-3000:]
    assert daemon.pictures(size=None, seed=1)["data"]
