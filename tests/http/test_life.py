"""Overload, clients that leave, and how the daemon starts and ends."""
import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import time

import pytest

from contract import check_error
from daemon import ANSWER_S, Daemon, IMAGES, PROGRAM, SANITIZED, SLOW, model, receive, statuses
from png import Png

# Takes seconds with the smallest of models; nobody waits for its end unless the test says so.
LONG = {"steps": 900, "size": "256x256", "parallel": {"mode": "single"}}


def running(daemon, n=1):
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_running") == n, f"{n} pictures do not run")


def idle(daemon):
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_running") == 0 and
                    daemon.metric("tessera_pictures_waiting") == 0, "it does not become idle")


# ---- overload ----


def test_a_full_queue_answers_429_with_retry_after(start):
    daemon = start({"scheduler": {"max_queue": 1, "max_batch": 1, "max_wait_ms": 0}})
    with daemon.begin(**LONG):
        running(daemon)
        with daemon.begin(**LONG):
            daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") == 1, "nothing waits")
            for fields in ({}, {"stream": True}):
                answer = daemon.post({"prompt": "a lake", **fields})
                check_error(answer, 429)
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.headers.get("x-should-retry", "true") == "true"
            assert daemon.metric("tessera_requests_refused_total") == 2
            # More pictures than can ever wait are refused as well, and not for ever.
            assert daemon.get("/health").status == 200
    idle(daemon)
    assert daemon.post({"prompt": "a lake"}).status == 200


def test_the_place_in_the_queue_is_told_and_falls(start):
    daemon = start({"scheduler": {"max_batch": 1, "max_wait_ms": 0}})
    first = daemon.begin(**LONG)
    running(daemon)
    second = daemon.begin(**LONG)
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") == 1, "the second does not wait")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        third = pool.submit(daemon.events, progress=True, steps=2)
        daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") == 2, "the third does not wait")
        second.close()
        daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") == 1, "the second still waits")
        first.close()
        events = third.result(ANSWER_S)
    positions = [d["position"] for n, d in events if n == "image_generation.queued"]
    assert positions[0] == 1 and positions == sorted(positions, reverse=True)
    assert [n for n, _ in events][-2:] == ["image_generation.completed", None]


def test_two_groups_work_at_the_same_time(start):
    daemon = start({"devices": {"groups": "1,1"}, "scheduler": {"max_batch": 1, "max_wait_ms": 0}})
    with daemon.begin(**LONG), daemon.begin(**LONG):
        running(daemon, 2)
        assert daemon.metric("tessera_groups") == 2 and daemon.metric("tessera_groups_busy") == 2
    idle(daemon)


def test_many_clients_at_once_all_get_their_own_picture(start):
    daemon = start({"scheduler": {"max_queue": 100, "max_batch": 4}})
    seeds = list(range(24))
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda s: daemon.pictures(seed=s, steps=3), seeds))
    assert [a["data"][0]["seed"] for a in answers] == seeds
    assert len({Png.of_base64(a["data"][0]["b64_json"]).pixels for a in answers}) == len(seeds)
    metrics = daemon.metrics()
    assert metrics["tessera_pictures_total"] == 24 and metrics["tessera_requests_completed_total"] == 24
    assert metrics["tessera_batches_total"] < 24, "nothing was ever batched"


# ---- clients that leave ----


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "progress": True}, {"n": 3}],
                         ids=["plain", "stream", "progress", "several"])
def test_a_client_that_leaves_cancels_its_pictures(server, fields):
    before = server.metrics()
    begin = time.monotonic()
    with server.begin(**LONG, **fields):
        running(server, fields.get("n", 1))
    idle(server)
    after = server.metrics()
    assert after["tessera_requests_cancelled_total"] == before["tessera_requests_cancelled_total"] + 1
    assert after["tessera_pictures_total"] == before["tessera_pictures_total"]
    assert after["tessera_clients_gone_total"] > before["tessera_clients_gone_total"]
    assert time.monotonic() - begin < 10 * SLOW


def test_a_client_that_resets_cancels_too(server):
    before = server.metric("tessera_requests_cancelled_total")
    s = server.begin(**LONG)
    running(server)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    s.close()
    idle(server)
    assert server.metric("tessera_requests_cancelled_total") == before + 1


def test_a_client_that_leaves_the_queue_never_runs(start):
    daemon = start({"scheduler": {"max_batch": 1, "max_wait_ms": 0}})
    with daemon.begin(**LONG):
        running(daemon)
        with daemon.begin(seed=1):
            daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") == 1, "it does not wait")
        daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") == 0, "it still waits")
        assert daemon.metric("tessera_pictures_running") == 1
    idle(daemon)
    assert daemon.metric("tessera_batches_total") <= 1 and daemon.metric("tessera_pictures_total") == 0


def test_one_that_leaves_a_batch_does_not_disturb_the_others(start):
    daemon = start({"scheduler": {"max_batch": 2, "max_wait_ms": 1500}})
    fields = {"steps": 300, "size": "128x128", "parallel": {"mode": "single"}}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stays = pool.submit(daemon.pictures, seed=5, **fields)
        with daemon.begin(seed=6, **fields):
            running(daemon, 2)
        made = Png.of_base64(stays.result(ANSWER_S)["data"][0]["b64_json"])
    assert daemon.metric("tessera_requests_cancelled_total") == 1
    alone = Png.of_base64(daemon.pictures(seed=5, **fields)["data"][0]["b64_json"])
    assert max(abs(a - b) for a, b in zip(made.pixels, alone.pixels)) <= 1


def test_on_disconnect_finish_makes_the_picture_all_the_same(server):
    before = server.metrics()
    with server.begin(on_disconnect="finish", steps=200, size="128x128"):
        running(server)
    server.wait_for(lambda: server.metric("tessera_pictures_total") == before["tessera_pictures_total"] + 1,
                    "the picture is not finished")
    assert server.metric("tessera_requests_cancelled_total") == before["tessera_requests_cancelled_total"]


# ---- figures ----


def test_metrics_count_what_happened(start):
    daemon = start()
    zero = daemon.metrics()
    assert zero["tessera_ready"] == 1 and zero["tessera_models"] == 1 and zero["tessera_groups"] == 1
    assert zero["tessera_pictures_total"] == 0
    daemon.pictures(n=2, steps=4)
    daemon.events(steps=3)
    assert daemon.post({}).status == 400
    assert daemon.get("/nowhere").status == 404
    now = daemon.metrics()
    assert now["tessera_requests_accepted_total"] == 2 and now["tessera_requests_completed_total"] == 2
    assert now["tessera_pictures_total"] == 3
    assert now["tessera_requests_failed_total"] == now["tessera_requests_cancelled_total"] == 0
    assert now["tessera_evaluations_total"] >= 7
    assert now["tessera_device_busy_seconds_total"] > 0
    assert now['tessera_http_answers_total{route="/v1/images/generations",status="200"}'] == 2
    assert now['tessera_http_answers_total{route="/v1/images/generations",status="400"}'] == 1
    assert now['tessera_http_answers_total{route="other",status="404"}'] == 1
    assert now["tessera_request_seconds_count"] == 2
    assert now['tessera_request_seconds_bucket{le="+Inf"}'] == 2


def test_metrics_are_in_the_exposition_format(server):
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode("ascii")
    assert text.endswith("\n")
    kinds = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds, "a name comes twice"
            kinds[name] = kind
        elif not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            family = name if name in kinds else name.rsplit("_", 1)[0]
            assert kinds[family] == "counter" and name.endswith("_total") or kinds[family] in ("gauge", "histogram")
            float(line.rsplit(" ", 1)[1])


def test_nothing_is_kept_of_requests_that_ended(start):
    """Resident memory after the first fifty requests and after two hundred more."""
    daemon = start()
    for _ in range(50):
        daemon.pictures(steps=1)
    first = daemon.metric("tessera_resident_bytes")
    for k in range(200):
        if k % 4:
            daemon.pictures(steps=1)
        else:
            daemon.post({"prompt": "a lake", "steps": 0})
    grown = daemon.metric("tessera_resident_bytes") - first
    # A sanitizer's quarantine keeps freed memory back.
    assert grown < (400 if SANITIZED else 4) * 2**20


# ---- the beginning ----


def test_until_the_model_is_loaded_it_says_503(tmp_path):
    daemon = Daemon(tmp_path, {"compile": {"shapes": "512x512:20:4, 256x256:20:4"}}).wait_until_listening()
    seen = []
    give_up = time.monotonic() + 60 * SLOW
    while not seen or seen[-1] != 200:
        assert time.monotonic() < give_up, daemon.log_text()
        answer = daemon.get("/health")
        seen.append(answer.status)
        if answer.status != 200:
            check_error(answer, 503)
            refused = daemon.post({"prompt": "a lake"})
            if refused.status != 200:
                check_error(refused, 503)
                assert int(refused.headers["retry-after"]) >= 1
            assert daemon.get("/openapi.yaml").status == 200
            assert daemon.get("/v1/models").status in (200, 503)
            assert daemon.get("/metrics").status == 200
    daemon.stop()
    assert 503 in seen, "it was loaded before anybody could ask"


def run(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60 * SLOW)


def test_version_and_check_config(tmp_path):
    assert "0.1.0" in run("--version").stdout
    good, bad = tmp_path / "good.conf", tmp_path / "bad.conf"
    good.write_text(f"[models]\npath = {model()}\n[scheduler]\nmax_queue = 3\n")
    bad.write_text("[scheduler]\n\nmax_queue = 0\n")
    assert run("--config", good, "--check-config").returncode == 0
    lost = tmp_path / "lost"
    shutil.copytree(model(), lost, ignore=shutil.ignore_patterns("*.safetensors"))
    wrong = run("--config", good, "--model", lost, "--check-config")
    assert wrong.returncode != 0 and "lost" in wrong.stderr and "OK" not in wrong.stdout
    wrong = run("--config", bad, "--check-config")
    assert wrong.returncode != 0 and f"{bad}:3" in wrong.stdout + wrong.stderr
    bad.write_text("[scheduler]\nmax_queues = 1\n")
    wrong = run("--config", bad, "--check-config")
    assert wrong.returncode != 0 and f"{bad}:2" in wrong.stdout + wrong.stderr
    for address in "127.0.0.1:99999", "127.0.0.1", "::1:80":
        wrong = run("--config", good, "--listen", address, "--check-config")
        assert wrong.returncode == 2 and address in wrong.stderr


def test_without_its_first_descriptors_it_runs_and_ends_as_ever(tmp_path):
    port = tmp_path / "port"
    arguments = [PROGRAM, "--model", model(), "--listen", "127.0.0.1:0", "--devices", "cpu:1", "--port-file", str(port)]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *map(str, arguments)])
    give_up = time.monotonic() + 60 * SLOW
    while not (port.exists() and port.read_text().strip()):
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60 * SLOW) == 0


@pytest.mark.parametrize("arguments", [["--model", "/nowhere/at/all"], ["--listen", "300.0.0.1:1"],
                                       ["--listen", "127.0.0.1"], ["--devices", "gpus:9"], ["--nonsense"],
                                       ["--config", "/nowhere/tesserad.conf"]])
def test_what_cannot_start_says_why_and_ends(arguments):
    defaults = {"--listen": "127.0.0.1:0", "--model": model(), "--devices": "cpu:2"}
    defaults.pop(arguments[0], None)
    done = run(*arguments, *(x for pair in defaults.items() for x in pair))
    assert done.returncode > 0 and (done.stderr + done.stdout).strip()


def test_a_port_that_is_taken_is_an_error_at_once(server):
    done = run("--listen", f"127.0.0.1:{server.port}", "--model", model(), "--devices", "cpu:2")
    assert done.returncode > 0 and str(server.port) in done.stderr + done.stdout


def test_the_command_line_alone_is_enough(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    daemon = Daemon.__new__(Daemon)
    daemon.log, daemon.port = tmp_path / "log", port
    with daemon.log.open("wb") as log:
        daemon.process = subprocess.Popen([PROGRAM, "--listen", f"127.0.0.1:{port}", "--model", model(),
                                           "--devices", "cpu:2"], stdout=log, stderr=log)
    def ready():
        try:
            return daemon.get("/health").status == 200
        except OSError:
            return False
    daemon.wait_for(ready, "it does not answer", 60)
    assert daemon.pictures(size="64x64", steps=1)["data"]
    daemon.stop()


# ---- the end ----


def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_0(start):
    daemon = start()
    fields = {"steps": 300, "size": "128x128"}
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=ANSWER_S) as kept, \
            concurrent.futures.ThreadPoolExecutor(2) as pool:
        plain = pool.submit(daemon.pictures, seed=1, **fields)
        running(daemon)
        streamed = pool.submit(daemon.events, seed=2, progress=True, **fields)
        daemon.wait_for(lambda: daemon.metric("tessera_requests_accepted_total") == 2, "the second is not accepted")
        daemon.terminate()
        # A connection that was there before gets an answer; a new one may be refused.
        body = json.dumps({"prompt": "a lake"}).encode()
        time.sleep(0.1)
        kept.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                     % (IMAGES.encode(), len(body), body))
        assert statuses(receive(kept)) in ([503], [])
        try:
            assert daemon.get("/health").status == 503
        except OSError:
            pass
        assert daemon.process.poll() is None, "it did not wait for what runs"
        assert plain.result(ANSWER_S)["data"][0]["seed"] == 1
        assert streamed.result(ANSWER_S)[-2][0] == "image_generation.completed"
    assert daemon.wait() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_daemon_ends_at_once(start, how):
    before = signal.signal(how, signal.SIG_DFL)  # the tests may run under nohup, which it would inherit
    try:
        daemon = start()
    finally:
        signal.signal(how, before)
    with socket.create_connection(("127.0.0.1", daemon.port)):
        daemon.process.send_signal(how)
        assert daemon.wait(10 * SLOW) == 0


def test_after_the_drain_timeout_the_rest_is_cancelled(start):
    daemon = start({"server": {"drain_timeout": 1}})
    with daemon.begin(**LONG) as s:
        running(daemon)
        begin = time.monotonic()
        daemon.terminate()
        answer = statuses(receive(s))
        assert daemon.wait(20 * SLOW) == 0
    assert answer == [503] and 0.5 < time.monotonic() - begin < 8 * SLOW


def test_sigterm_while_it_loads_ends_it(tmp_path):
    daemon = Daemon(tmp_path, {"compile": {"shapes": "512x512:20:4"}}).wait_until_listening()
    daemon.stop()


def test_after_sigkill_it_starts_again_on_the_same_port(start):
    daemon = start()
    with daemon.begin(**LONG):
        running(daemon)
        daemon.process.kill()
        daemon.process.wait()
    again = start(port=daemon.port)
    assert again.port == daemon.port
    assert again.pictures(seed=1)["data"][0]["seed"] == 1
