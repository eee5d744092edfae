"""Prompts, and what a request says of how they are read."""
import concurrent.futures

from contract import check_error
from png import Png, largest_difference


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
