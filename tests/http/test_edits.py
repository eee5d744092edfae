"""POST /v1/images/edits: forms, pictures, masks, and what is wrong with them."""
import socket
import struct
import time
import zlib

import pytest

import png
from contract import check, check_error
from daemon import SLOW, receive
from png import Png

EDITS = "/v1/images/edits"
B = "----form"


def form(fields):
    """[(name, text or bytes)]"""
    body = b""
    for name, value in fields:
        data = value if isinstance(value, bytes) else value.encode()
        file = '; filename="a.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
        body += f'--{B}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
    return body + f"--{B}--\r\n".encode()


def post(server, fields, headers=None, body=None):
    all_headers = {"Content-Type": f"multipart/form-data; boundary={B}", **(headers or {})}
    return server.request("POST", EDITS, form(fields) if body is None else body, all_headers)


def picture(width=64, height=64, alpha=None):
    return png.encode(width, height, [(x * 255 // width, y * 255 // height, 90) + (() if alpha is None else (alpha(x, y),))
                                      for y in range(height) for x in range(width)])


def mask(width=64, height=64):
    """White above, black below."""
    return png.encode(width, height, [(255 if y < height // 2 else 0,) * 3 for y in range(height) for x in range(width)])


BASE = [("prompt", "a lake"), ("seed", "5"), ("steps", "4")]


def made(server, fields, image=None):
    """The picture itself; fields win over BASE."""
    names = {name for name, _ in fields}
    base = [field for field in BASE if field[0] not in names]
    answer = post(server, [("image", image or picture()), *base, *fields], {"Accept": "image/png"})
    assert answer.status == 200, answer.body
    return Png(answer.body)


def difference(a, b, rows=slice(None)):
    a, b = (p.pixels[(rows.start or 0) * 192:(rows.stop or 64) * 192] for p in (a, b))
    return sum(abs(x - y) for x, y in zip(a, b))


def test_null_is_null_but_in_a_prompt(server):
    nothing = [(name, "null") for name in ("model", "sampler", "size", "on_disconnect", "user")]
    answer = post(server, [("image", picture()), *BASE, *nothing])
    assert answer.status == 200, answer.body
    assert post(server, [("image", picture()), ("prompt", "null"), ("seed", "null"), ("steps", "2")]).status == 200


def test_the_longest_list_of_levels_fits_into_a_form(server):
    levels = [("timesteps[]", str(999 - 7 * i)) for i in range(128)]
    answer = post(server, [("image", picture()), ("prompt", "a lake"), ("size", "64x64"), *levels])
    assert answer.status == 200, answer.body
    assert answer.json()["tessera"]["steps"] == 128


def test_a_member_of_a_file_is_no_field(server):
    check_error(post(server, [("image", picture()), *BASE, ("image[x]", "1")]), 400, "image[x]", "invalid_value")


def test_the_answer_is_as_described(server):
    answer = post(server, [("image", picture()), *BASE, ("n", "2")])
    assert answer.status == 200, answer.body
    body = answer.json()
    check("ImageResponse", body)
    assert len(body["data"]) == 2 and body["size"] == "64x64" and body["tessera"]["evaluations"] == 3


def test_the_same_form_makes_the_same_picture_and_another_picture_another(server):
    one, two = made(server, []), made(server, [])
    assert one.pixels == two.pixels
    assert one.text["parameters"].startswith("a lake\n") and "Denoising strength: 0.8" in one.text["parameters"]
    assert made(server, [], mask()).pixels != one.pixels


def test_with_less_strength_seeds_differ_less(server):
    def seeds(strength):
        return difference(*(made(server, [("steps", "8"), ("seed", s), ("strength", strength)]) for s in ("1", "2")))
    assert seeds("0.125") < seeds("1")


def test_a_transparent_picture_is_its_own_mask(server):
    whole = made(server, [], picture(alpha=lambda x, y: 0 if y < 32 else 255))
    apart = made(server, [("mask", mask())])
    assert whole.pixels == apart.pixels
    assert "Mask: yes" in apart.text["parameters"]


def test_what_a_mask_keeps_does_not_depend_on_the_seed(server):
    """In the latents; the decoder's reach blurs the border, so far from it is looked at."""
    a, b = (made(server, [("mask", mask()), ("seed", s)]) for s in ("5", "6"))
    assert difference(a, b, slice(0, 8)) > 4 * difference(a, b, slice(56, 64))


def test_the_size_is_the_pictures_or_the_wanted_one(server):
    found = made(server, [], picture(75, 50))
    assert (found.width, found.height) == (72, 48)
    answer = post(server, [("image[]", picture(75, 50)), *BASE, ("size", "64x96")], {"Accept": "image/png"})
    found = Png(answer.body)
    assert (found.width, found.height) == (64, 96)


def test_stream(server):
    answer = post(server, [("image", picture()), *BASE, ("stream", "true"), ("progress", "true")])
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    text = answer.body.decode()
    assert "event: image_edit.completed" in text and "event: image_edit.progress" in text
    assert "image_generation" not in text and text.endswith("data: [DONE]\n\n")


def test_numbers_are_text_where_the_field_is_text(server):
    answer = post(server, [("image", picture()), ("prompt", "42"), ("seed", "18446744073709551615"), ("steps", "2")])
    assert answer.status == 200 and answer.json()["data"][0]["seed"] == "18446744073709551615"


def huge():
    """A picture that would take gigabytes, in a few bytes."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("fields, status, param", [
    ([("prompt", "a")], 400, "image"),
    ([("image", b""), ("prompt", "a")], 400, "image"),
    ([("image", b"no picture"), ("prompt", "a")], 400, "image"),
    ([("image", picture()[:-30]), ("prompt", "a")], 400, "image"),
    ([("image", huge()), ("prompt", "a"), ("size", "64x64")], 413, "image"),
    ([("image", huge()), ("prompt", "a")], 400, "image"),
    ([("image", picture()), ("image", picture()), ("prompt", "a")], 400, "image"),
    ([("image", picture()), ("mask", mask(32, 64)), ("prompt", "a")], 400, "mask"),
    ([("image", picture()), ("mask", b"x"), ("prompt", "a")], 400, "mask"),
    ([("image", picture())], 400, "prompt"),
    ([("image", picture()), ("prompt", b"\xff\xfe")], 400, "prompt"),
    ([("image", picture()), ("prompt", "a\0b")], 400, "prompt"),
    ([("image", picture()), ("prompt", "a"), ("prompt", "b")], 400, ...),
    ([("image", picture()), ("prompt", "a"), ("steps", "many")], 400, "steps"),
    ([("image", picture()), ("prompt", "a"), ("strength", "0")], 400, "strength"),
    ([("image", picture()), ("prompt", "a"), ("strength", "1.5")], 400, "strength"),
    ([("image", picture()), ("prompt", "a"), ("strength", "0.1"), ("steps", "4")], 400, "strength"),
    ([("image", picture()), ("prompt", "a"), ("parallel[mode]", "none")], 400, "parallel.mode"),
    ([("image", picture()), ("prompt", "a"), ("parallel[]", "1"), ("parallel[mode]", "sync")], 400, ...),
    ([("image", picture()), ("prompt", "a"), ("colour", "red")], 400, "colour"),
    ([("image", picture()), ("prompt", "a"), ("size", "65x64")], 400, "size"),
    ([("image", picture()), ("prompt", "a"), ("", "x")], 400, ...),
], ids=lambda v: None if isinstance(v, (int, str, type(...))) else " ".join(f"{n}:{len(d)}" for n, d in v)[:60])
def test_what_is_wrong_is_named(server, fields, status, param):
    check_error(post(server, fields), status, param)


def test_a_form_of_too_many_parts_is_refused(server):
    error = check_error(post(server, [("image", picture()), ("prompt", "a"), *((f"f{i}", "x") for i in range(250))]), 400)
    assert "192 parts" in error["message"]


def test_strength_is_for_edits(server):
    check_error(server.post({"prompt": "a lake", "strength": 0.5}), 400, "strength")


@pytest.mark.parametrize("body", [b"", b"x", b"--" + B.encode(), b"--" + B.encode() + b"\r\n\r\nx", form(BASE)[:-20]])
def test_a_form_that_is_cut_is_refused(server, body):
    check_error(post(server, [], body=body), 400)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_only_forms_are_taken(server, kind):
    check_error(post(server, [("image", picture()), *BASE], {"Content-Type": kind}), 415)


def in_pieces(server, body, sizes):
    """The whole answer to a form that comes in pieces of the sizes, over and over."""
    head = (f"POST {EDITS} HTTP/1.1\r\nHost: x\r\nAccept: image/png\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary={B}\r\nContent-Length: {len(body)}\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20 * SLOW) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.sendall(head.encode())
        at = 0
        for i in range(len(body)):
            if at >= len(body):
                break
            piece = body[at:at + sizes[i % len(sizes)]]
            s.sendall(piece)
            at += len(piece)
            time.sleep(0.001)
        return receive(s)


def test_a_form_may_arrive_in_pieces_of_any_size(server):
    """Boundaries and headers of parts are cut wherever a packet ends."""
    fields = [("image", picture(24, 24)), ("mask", mask(24, 24)), *BASE, ("size", "64x64")]
    whole = post(server, fields, {"Accept": "image/png"})
    assert whole.status == 200
    for sizes in ([1], [3, 1, 50], [200]):
        answer = in_pieces(server, form(fields), sizes)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and Png(body).pixels == Png(whole.body).pixels


def test_a_client_that_leaves_in_the_middle_of_a_form_leaves_nothing_behind(start):
    daemon = start()
    body = form([("image", picture()), *BASE])
    for n in (0, 10, len(body) // 2, len(body) - 1):
        with socket.create_connection(("127.0.0.1", daemon.port)) as s:
            s.sendall(f"POST {EDITS} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={B}\r\n"
                      f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:n])
    assert made(daemon, []).width == 64
    daemon.wait_for(lambda: daemon.metric("tessera_connections") == 1, "no connection but the one that asks")


def dotnet(fields, end=b"--"):
    """As MultipartFormDataContent of .NET writes it: no quotation marks, a second file name, an empty line in front."""
    body = b""
    for name, value in fields:
        data = value if isinstance(value, bytes) else value.encode()
        file = "; filename=a.png; filename*=utf-8''a.png" if isinstance(value, bytes) else ""
        kind = "image/png" if isinstance(value, bytes) else "text/plain; charset=utf-8"
        body += f"\r\n--{B}\r\nContent-Type: {kind}\r\nContent-Disposition: form-data; name={name}{file}\r\n\r\n".encode() + data
    return body + f"\r\n--{B}".encode() + end + b"\r\n"


@pytest.mark.parametrize("kind, body", [
    (f'multipart/form-data; boundary="{B}"', dotnet),
    (f"multipart/form-data; boundary={B}; charset=UTF-8", form),
    (f'Multipart/Form-Data;charset="utf-8" ; BOUNDARY="{B}"', form),
    (f"multipart/form-data; boundary={B}", lambda fields: b"a preamble\r\n" + form(fields) + b"and an epilogue"),
    (f"multipart/form-data; boundary={B}", lambda fields: form(fields).replace(b'form-data; name="image"; filename="a.png"',
                                                                               b'form-data; filename="; name=mask"; NAME="image"')),
    (f"multipart/form-data; boundary={B}", lambda fields: form(fields).replace(f"--{B}\r".encode(), f"--{B} \t\r".encode())),
    (f"multipart/form-data; boundary={B}", lambda fields: form(fields).replace(b"form-data; name", b"form-data;\r\n\tname")),
    # A part that has nothing, not even an empty line of its own: null is absent.
    (f"multipart/form-data; boundary={B}",
     lambda fields: f'--{B}\r\nContent-Disposition: form-data; name="user"\r\n\r\n'.encode() + form(fields)),
], ids=["dotnet", "charset", "capitals", "around", "filename", "blanks", "folded", "empty"])
def test_forms_of_other_clients_are_read(server, kind, body):
    fields = [("image", picture()), *BASE]
    want, have = post(server, fields), post(server, fields, {"Content-Type": kind}, body(fields))
    assert want.status == have.status == 200
    assert [d["b64_json"] for d in have.json()["data"]] == [d["b64_json"] for d in want.json()["data"]]


@pytest.mark.parametrize("body", [
    dotnet([("prompt", "a")], b""), dotnet([("prompt", "a")], b"x"),
    f"--{B}\r\n\r\nx\r\n--{B}--".encode(),
    f'--{B}\r\nContent-Disposition: form-data; name="a\r\n\r\nx\r\n--{B}--'.encode(),
    f"--{B}\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--{B}--".encode(),
    form([("image", picture()), *BASE]).replace(b'name="prompt"', b'filename="prompt"'),
    f"--{B}\r\nA: {'b' * 9000}\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--{B}--".encode(),
    f"--{B}{' ' * 9000}\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--{B}--".encode(),
])
def test_a_form_that_is_none_is_refused(server, body):
    check_error(post(server, [], body=body), 400)


@pytest.mark.parametrize("boundary", ["", "boundary=", 'boundary=""', 'boundary="x', f"boundary={'x' * 201}", "bound=x"])
def test_a_boundary_has_1_to_200_bytes(server, boundary):
    check_error(post(server, [("image", picture()), *BASE], {"Content-Type": f"multipart/form-data; {boundary}"}), 400)


def test_a_form_without_a_boundary_is_refused(server):
    check_error(post(server, [("image", picture()), *BASE], {"Content-Type": "multipart/form-data"}), 400)


def test_an_upload_has_a_limit_of_its_own(start):
    daemon = start({"server": {"body_limit": 2000, "upload_limit": 40000}})
    noise = png.encode(64, 64, [((x * 7919 + y * 104729) % 251, x * y % 256, (x ^ y) * 3 % 256)
                                for y in range(64) for x in range(64)])
    assert 2000 < len(noise) < 40000
    assert post(daemon, [("image", noise), *BASE]).status == 200
    check_error(post(daemon, [("image", noise), *BASE, ("user", "x" * 40000)]), 413)
    check_error(daemon.post({"prompt": "x" * 3000}), 413)


def test_a_picture_of_too_many_pixels_is_413(start):
    daemon = start({"limits": {"max_input_pixels": 64 * 64}})
    assert post(daemon, [("image", picture()), *BASE]).status == 200
    check_error(post(daemon, [("image", picture(72, 64)), *BASE, ("size", "64x64")]), 413, "image")


def test_edits_are_counted_like_generations(start):
    daemon = start()
    assert post(daemon, [("image", picture()), *BASE]).status == 200
    assert post(daemon, [("prompt", "a")]).status == 400
    text = daemon.get("/metrics").body.decode()
    assert "tessera_request_seconds_count 1\n" in text


def test_what_a_picture_carries_beside_its_pixels_is_skipped(server):
    """Texts and a profile that are large once they are inflated, or broken: nobody reads them."""
    pixels = [(x * 4, y * 4, 90) for y in range(64) for x in range(64)]
    large = zlib.compress(bytes(4_000_000), 9)
    beside = [(b"zTXt", b"a\0\0" + large)] * 70 + [(b"iCCP", b"p\0\0" + b"no profile"), (b"tEXt", b"x" * 2_000_000)]
    plain = made(server, [], png.encode(64, 64, pixels))
    assert made(server, [], png.encode(64, 64, pixels, beside)).pixels == plain.pixels


def test_texts_of_a_form_have_the_limit_of_a_body(server):
    check_error(post(server, [("image", picture()), ("prompt", "\x01" * 2_000_000)]), 413)
    check_error(post(server, [("image", picture()), ("prompt", "a"), *[("negative_prompt[]", "x" * 300_000)] * 4]), 413)
    check_error(post(server, [("image", picture()), ("prompt", "x" * 100_000)]), 400, "prompt")
