"""OpenAI's own client, as its users call it."""
import openai
import pytest

import png
from png import Png


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as c:
        yield c


def test_generate(client):
    answer = client.images.generate(prompt="a lake", model=client.models.list().data[0].id, n=2, size="64x64",
                                    response_format="b64_json")
    assert len(answer.data) == 2 and answer.created and answer.output_format == "png" and answer.size == "64x64"
    assert answer.background == "opaque" and answer.usage.total_tokens >= answer.usage.input_tokens > 0
    for picture in answer.data:
        assert Png.of_base64(picture.b64_json).width == 64


def test_our_fields_go_in_extra_body(client):
    extra = {"seed": 12, "steps": 3, "parallel": {"mode": "sync"}}
    one, two = (client.images.generate(prompt="a lake", size="64x64", extra_body=extra) for _ in range(2))
    assert one.data[0].b64_json == two.data[0].b64_json
    assert one.data[0].seed == 12 and one.tessera["steps"] == 3 and one.tessera["mode"] == "sync"


def test_stream(client):
    events = list(client.images.generate(prompt="a lake", size="64x64", stream=True, n=2))
    assert [e.type for e in events] == ["image_generation.completed"] * 2
    for e in events:
        assert isinstance(e, openai.types.ImageGenCompletedEvent)
        assert Png.of_base64(e.b64_json).height == 64 and e.usage.total_tokens >= 0 and e.created_at


def test_stream_with_progress(client):
    events = list(client.images.generate(prompt="a lake", size="64x64", stream=True,
                                         extra_body={"progress": True, "steps": 4}))
    assert events[-1].type == "image_generation.completed"
    assert any(e.type == "image_generation.progress" and e.total_steps == 4 for e in events)


def test_async_client(server):
    import asyncio

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as c:
            return await asyncio.gather(*(c.images.generate(prompt="a lake", size="64x64", extra_body={"seed": k})
                                          for k in range(6)))
    answers = asyncio.run(run())
    assert [a.data[0].seed for a in answers] == list(range(6))
    assert len({a.data[0].b64_json for a in answers}) == 6


def test_a_bad_request_raises_with_param_and_request_id(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a lake", size="65x64")
    assert caught.value.param == "size" and caught.value.type == "invalid_request_error" and caught.value.code
    assert caught.value.request_id


def test_a_bad_request_raises_before_a_stream_begins(client):
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="a lake", size="64x64", stream=True, partial_images=2)


def test_an_unknown_model_raises_not_found(client):
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a lake", model="no-such-model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_models(client):
    models = client.models.list().data
    assert len(models) == 1 and models[0].object == "model" and models[0].owned_by == "tessera"
    assert client.models.retrieve(models[0].id) == models[0]


def test_what_is_not_there_yet_raises_not_found(client):
    with pytest.raises(openai.NotFoundError):
        client.post("/embeddings", cast_to=object, body={"input": "a"})


def test_edit(client):
    picture = png.encode(64, 64, [(x * 4, y * 4, 90) for y in range(64) for x in range(64)])
    answer = client.images.edit(image=picture, prompt="a lake", size="64x64",
                                extra_body={"seed": 3, "strength": 0.5, "steps": 4, "parallel": {"mode": "sync"}})
    assert Png.of_base64(answer.data[0].b64_json).width == 64
    assert answer.data[0].seed == 3 and answer.tessera["mode"] == "sync" and answer.tessera["evaluations"] == 2


def test_edit_with_a_mask(client):
    picture = png.encode(64, 64, [(x * 4, y * 4, 90) for y in range(64) for x in range(64)])
    mask = png.encode(64, 64, [(0, 0, 0, 0 if y < 32 else 255) for y in range(64) for x in range(64)])
    events = list(client.images.edit(image=("a.png", picture), mask=("m.png", mask), prompt="a lake", n=2, stream=True))
    assert [e.type for e in events] == ["image_edit.completed"] * 2
    assert Png.of_base64(events[0].b64_json).height == 64
