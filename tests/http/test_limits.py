"""What it does at its limits: connections, descriptors, the queue, and a log that nobody reads."""
import concurrent.futures
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

import png
from daemon import PROGRAM, SLOW, Daemon, model, receive, statuses
from test_edits import B as BOUNDARY, form, post

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
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = [a.status for a in pool.map(lambda _: post(daemon, SLOW_EDIT), range(24))]
    assert set(answers) == {200, 429}, answers
    daemon.pictures(size="64x64")


def test_what_can_never_fit_into_the_queue_is_not_to_be_tried_again(start):
    daemon = start({"scheduler": {"max_queue": 3}})
    answer = daemon.post({"prompt": "a lake", "n": 4})
    assert answer.status == 400 and answer.json()["error"]["param"] == "n", answer.body
    answer = post(daemon, [*SLOW_EDIT, ("n", "4")])
    assert answer.status == 400 and answer.json()["error"]["param"] == "n", answer.body


def form_head(size):
    return (b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: %d\r\n\r\n" % size)


def part_head(name):
    return b"--b\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n" % name


def test_a_form_that_was_refused_holds_no_place(start):
    """Its client may go on to send as much as it has announced, or nothing for long."""
    daemon = start({"scheduler": {"max_queue": 1, "max_batch": 1}})
    large = form_head(200_000) + b"x" * 200_000  # is none, where there is room to look at it
    with socket.create_connection(("127.0.0.1", daemon.port)) as first:
        first.sendall(form_head(15_000_000) + part_head(b"image") + b"x" * 100_000)
        daemon.wait_for(lambda: statuses(daemon.raw(large, timeout=3)) == [429], "it holds no place")
        first.sendall(b"\r\n--b\r\njunk\r\n\r\n" + b"x" * 10_000)
        daemon.wait_for(lambda: statuses(daemon.raw(large, timeout=3)) == [400], "it still holds a place", timeout=5)


def test_a_form_that_there_is_no_room_for_is_refused_with_retry_after(start):
    daemon = start({"scheduler": {"max_queue": 1, "max_batch": 1}})
    small, large = form_head(100) + b"x" * 100, form_head(200_000) + b"x" * 200_000
    with socket.create_connection(("127.0.0.1", daemon.port)) as first:
        first.sendall(form_head(200_000))
        time.sleep(0.2 * SLOW)
        assert statuses(daemon.raw(large, timeout=3)) == [400], "headers alone take no room"
        first.sendall(part_head(b"image") + b"x" * 100_000)
        time.sleep(0.2 * SLOW)
        before = daemon.metric("tessera_requests_refused_total")
        got = daemon.raw(large, timeout=3)
        assert statuses(got) == [429] and b"retry-after: " in got.lower() and b"queue_full" in got
        assert daemon.metric("tessera_requests_refused_total") == before + 1
        assert statuses(daemon.raw(small, timeout=3)) == [400], "a small one takes none either"
    daemon.wait_for(lambda: statuses(daemon.raw(large, timeout=3)) == [400], "the first one's room is not free")


BIG = png.encode(2048, 2048, [(0, 0, 0)] * (2048 * 2048))
SLOW_EDIT = [("image", BIG), ("prompt", "a lake"), ("size", "64x64"), ("steps", "2")]


def send_edit(daemon, fields):
    """Sends one and leaves the answer unread."""
    body = form(fields)
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=%s\r\n"
              b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (BOUNDARY.encode(), len(body), body))
    return s


def test_edits_of_clients_that_left_make_room(start):
    daemon = start({"scheduler": {"max_queue": 6, "max_batch": 1}})
    sockets = [send_edit(daemon, SLOW_EDIT) for _ in range(6)]
    for s in sockets:
        s.close()
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") == 0, "they still wait")
    assert post(daemon, SLOW_EDIT).status == 200


def test_an_edit_whose_client_wants_it_finished_is_made_without_it(start):
    daemon = start({"scheduler": {"max_batch": 1}})
    fields = [*SLOW_EDIT[:-1], ("steps", "60"), ("size", "128x128"), ("on_disconnect", "finish")]
    fields = [f for f in fields if f != ("size", "64x64")]
    sockets = [send_edit(daemon, fields) for _ in range(4)]
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") >= 3, "they do not come")
    for s in sockets:
        s.close()
    assert daemon.metric("tessera_pictures_total") < 3, "they were made before their clients left"
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_total") >= 3, "they are not made")


def test_sigterm_lets_edits_through_that_wait_to_be_read(start):
    daemon = start({"scheduler": {"max_batch": 1}})
    sockets = [send_edit(daemon, SLOW_EDIT) for _ in range(5)]
    daemon.wait_for(lambda: daemon.metric("tessera_pictures_waiting") + daemon.metric("tessera_pictures_total") >= 5,
                    "they do not come")
    daemon.terminate()
    assert [statuses(receive(s)) for s in sockets] == [[200]] * 5
    assert daemon.wait() == 0


def test_requests_while_it_loads_harm_nobody_when_their_client_leaves(tmp_path):
    """Many in one piece, whose answers nobody reads; then it goes away, or the server is told twice to stop."""
    body = b'{"prompt": "a lake"}'
    one = (b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    for twice in (False, True):
        daemon = Daemon(tmp_path / str(twice), {"compile": {"shapes": "512x512:20, 768x512:20"}}).wait_until_listening()
        s = socket.create_connection(("127.0.0.1", daemon.port))
        s.settimeout(1)
        try:
            s.sendall(one * 3000)
        except OSError:
            pass
        if twice:
            daemon.terminate()
            time.sleep(0.1)
            daemon.terminate()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
        if not twice:
            daemon.wait_until_ready()
        daemon.stop()


def test_what_was_cut_off_is_not_a_client_that_left(start):
    daemon = start({"server": {"body_timeout": 1}})
    gone = daemon.metric("tessera_clients_gone_total")
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        s.sendall(head + b"Content-Length: 100\r\n\r\nx")
        receive(s)
    daemon.raw(head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", timeout=2)
    daemon.wait_for(lambda: daemon.log_text().count("cut off") == 2, "the log does not say so")
    assert daemon.metric("tessera_clients_gone_total") == gone


def test_under_nohup_a_hang_up_means_nothing(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        daemon = Daemon(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    with daemon:
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.2 * SLOW)
        daemon.pictures(size="64x64")


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
        daemon.wait_for(lambda: b"lines were lost" in (process.stderr.read() or b""), "it does not say what was lost")
    except BaseException:
        process.kill()
        raise
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
