"""What it does at its limits: connections, descriptors, the queue, and a log that nobody reads."""
import concurrent.futures
import os
import resource
import socket
import subprocess
import threading
import time

import pytest

import png
from daemon import PROGRAM, SLOW, Daemon, model, receive, statuses
from test_edits import form, post

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def storm(daemon, clients, seconds):
    """Connections as fast as they come, each with one request."""
    end = time.monotonic() + seconds

    def knock():
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", daemon.port), timeout=2) as s:
                    s.sendall(HEALTH)
                    receive(s)
            except OSError:
                pass

    threads = [threading.Thread(target=knock) for _ in range(clients)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def test_it_listens_again_after_all_its_connections_were_taken(start):
    daemon = start({"server": {"connection_limit": 16}})
    storm(daemon, 48, 3)
    daemon.wait_for(lambda: statuses(daemon.raw(HEALTH, timeout=2)) == [200], "it no longer listens")
    assert "connection_limit is reached" in daemon.log_text()


@pytest.mark.parametrize("way", ["all at once", "one after another"])
def test_it_listens_again_after_its_descriptors_ran_out(tmp_path, way):
    daemon = Daemon(tmp_path, {"server": {"connection_limit": 1000}})
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (48, 48))
    with daemon:
        sockets = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(80)]
        time.sleep(0.3)
        for s in sockets:
            s.close()
            if way == "one after another":
                time.sleep(0.005)
        daemon.wait_for(lambda: statuses(daemon.raw(HEALTH, timeout=2)) == [200], "it no longer listens")


def test_too_few_descriptors_are_told_at_the_start(tmp_path):
    daemon = Daemon.__new__(Daemon)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        daemon.__init__(tmp_path / "raised", {"server": {"connection_limit": 600}})
        with daemon:
            assert "limit of open files" not in daemon.log_text()
        daemon.__init__(tmp_path / "low", {"server": {"connection_limit": 60000}})
        hard = before[1] if before[1] != resource.RLIM_INFINITY else 1 << 30
        with daemon:
            assert ("limit of open files" in daemon.log_text()) == (hard < 60000 + 128)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_edits_that_wait_to_be_read_count_as_waiting(start):
    """Their pictures take long to decode; what the queue has no room for is refused before that."""
    daemon = start({"scheduler": {"max_queue": 4, "max_batch": 1}, "limits": {"max_input_pixels": 1 << 24}})
    big = png.encode(2048, 2048, [(0, 0, 0)] * (2048 * 2048))
    fields = [("image", big), ("prompt", "a lake"), ("size", "64x64"), ("steps", "2")]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = [a.status for a in pool.map(lambda _: post(daemon, fields), range(24))]
    assert set(answers) == {200, 429} and answers.count(200) >= 4, answers
    refused = [a for a in answers if a == 429]
    assert len(refused) >= 8, answers
    daemon.pictures(size="64x64")


def test_a_form_that_there_is_no_room_for_is_refused_with_retry_after(start):
    daemon = start({"scheduler": {"max_queue": 1, "max_batch": 1}})
    head = (b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 100\r\n\r\n")
    with socket.create_connection(("127.0.0.1", daemon.port)) as first:
        first.sendall(head)
        time.sleep(0.2 * SLOW)
        got = daemon.raw(head + b"x" * 100, timeout=3)
    assert statuses(got) == [429] and b"retry-after: " in got.lower() and b"queue_full" in got
    daemon.wait_for(lambda: statuses(daemon.raw(head + b"x" * 100, timeout=3)) == [400], "the first one's room is free")


def test_a_log_that_nobody_reads_holds_nobody_up(tmp_path):
    port_file = tmp_path / "port"
    process = subprocess.Popen([PROGRAM, "--listen", "127.0.0.1:0", "--port-file", str(port_file), "--model", model(),
                                "--devices", "cpu:1"], stderr=subprocess.PIPE)
    try:
        daemon = Daemon.__new__(Daemon)
        daemon.log = tmp_path / "none"
        daemon.log.write_text("")
        give_up = time.monotonic() + 60 * SLOW
        while not (port_file.exists() and port_file.read_text().strip()):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.01)
        daemon.port = int(port_file.read_text())
        for _ in range(1500):  # a line each, in a pipe of 64 KB
            assert statuses(daemon.raw(HEALTH)) in ([200], [503])
        os.set_blocking(process.stderr.fileno(), False)
        assert len(process.stderr.read()) > 50_000
        assert statuses(daemon.raw(HEALTH)) == [200]
        time.sleep(0.1)
        assert b"lines were lost" in process.stderr.read()
    finally:
        process.terminate()
        assert process.wait(60 * SLOW) == 0


def test_a_folder_of_thousands_of_loras_is_listed(start, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    names = sorted(f"{i:05d}-{'a' * 240}" for i in range(6000))
    for name in names:
        (folder / f"{name[:243]}.safetensors").touch()
    daemon = start({"models": {"lora_folder": folder}})
    answer = daemon.get("/v1/loras")
    assert answer.status == 200
    assert [lora["id"] for lora in answer.json()["data"]] == [name[:243] for name in names]
