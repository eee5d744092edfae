"""Bytes that a well-behaved client never sends: each is one 400 or a closed connection, never a second request."""
import json
import socket
import time

import pytest

from daemon import Daemon, IMAGES, SLOW, receive, statuses

BODY = b'{"prompt": "a lake", "steps": 1}'
SMUGGLED = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def post(*headers, version=b"HTTP/1.1", target=IMAGES.encode()):
    return b"\r\n".join([b"POST " + target + b" " + version, *headers, b"", b""])


LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
HOST = b"Host: x"

AMBIGUOUS = {
    "both lengths and chunks": post(HOST, b"Content-Length: 6", b"Transfer-Encoding: chunked") + CHUNKED,
    "chunks and then a length": post(HOST, b"Transfer-Encoding: chunked", b"Content-Length: 6") + CHUNKED,
    "two lengths that differ": post(HOST, b"Content-Length: 5", LENGTH) + BODY,
    "two lengths that agree": post(HOST, LENGTH, LENGTH) + BODY,
    "a blank before the colon of the encoding": post(HOST, b"Transfer-Encoding : chunked") + CHUNKED,
    "a blank before the colon of the length": post(HOST, b"Content-Length : %d" % len(BODY)) + BODY,
    "an encoding that is not chunked": post(HOST, b"Transfer-Encoding: gzip", LENGTH) + BODY,
    "chunked inside another encoding": post(HOST, b"Transfer-Encoding: gzip, chunked") + CHUNKED,
    "chunked in quotes": post(HOST, b'Transfer-Encoding: "chunked"') + CHUNKED,
    "chunked twice": post(HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + CHUNKED,
    "xchunked": post(HOST, b"Transfer-Encoding: xchunked") + CHUNKED,
    "no host": post(LENGTH) + BODY,
    "two hosts": post(HOST, b"Host: y", LENGTH) + BODY,
    "a header name with a bracket": post(HOST, b"Bad(Name: 1", LENGTH) + BODY,
    "HTTP/1.2": post(HOST, LENGTH, version=b"HTTP/1.2") + BODY,
    "HTTP/1.0 in chunks": post(HOST, b"Transfer-Encoding: chunked", version=b"HTTP/1.0") + CHUNKED,
    "a path with a zero byte in it": post(HOST, LENGTH, target=IMAGES.encode() + b"%00x") + BODY,
    "a body that is announced and not there": post(HOST, b"Expect: 100-continue"),
    "a body that is announced and empty": post(HOST, b"Expect: 100-continue", b"Content-Length: 00"),
    "a path that climbs": post(HOST, LENGTH, target=b"/v1/../v1/images/generations") + BODY,
}

# Refused inside libmicrohttpd, before any code of ours, with an error page of its own.
BAD_LENGTHS = {
    "a list of lengths": post(HOST, b"Content-Length: %d, %d" % (len(BODY), len(BODY))) + BODY,
    "a negative length": post(HOST, b"Content-Length: -1") + BODY,
    "a length with a plus": post(HOST, b"Content-Length: +%d" % len(BODY)) + BODY,
    "a hexadecimal length": post(HOST, b"Content-Length: 0x20") + BODY,
    "a length that overflows": post(HOST, b"Content-Length: 99999999999999999999999") + BODY,
}


@pytest.mark.parametrize("name", BAD_LENGTHS)
def test_lengths_that_are_no_numbers_end_the_connection(server, name):
    got = statuses(server.raw(BAD_LENGTHS[name] + SMUGGLED, timeout=3))
    assert got and set(got) <= {400, 413}, got


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_requests_are_400_and_the_connection_closes(server, name):
    got = server.raw(AMBIGUOUS[name] + SMUGGLED, timeout=3)
    assert statuses(got) == [400], got[:400]
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()


@pytest.mark.parametrize("name", ["both lengths and chunks", "no host", "two hosts", "HTTP/1.2"])
def test_the_400_has_the_shape_of_an_error(server, name):
    got = server.raw(AMBIGUOUS[name], timeout=3)
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head.lower()
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("lines", [(HOST, LENGTH), (LENGTH,)], ids=["with a host", "without"])
def test_what_old_proxies_speak_is_understood(server, lines):
    """nginx and HAProxy's checks say HTTP/1.0 where nobody told them otherwise."""
    got = server.raw(post(*lines, b"Content-Type: application/json", version=b"HTTP/1.0") + BODY)
    assert statuses(got) == [200], got[:400]
    assert json.loads(got.partition(b"\r\n\r\n")[2])["data"]
    assert statuses(server.raw(b"GET /health HTTP/1.0\r\n\r\n")) == [200]


def test_a_stream_for_an_old_proxy_ends_with_its_connection(server):
    body = json.dumps({"prompt": "a lake", "stream": True}).encode()
    got = server.raw(post(HOST, b"Content-Type: application/json", b"Content-Length: %d" % len(body),
                          version=b"HTTP/1.0") + body)
    head, _, rest = got.partition(b"\r\n\r\n")
    assert statuses(got) == [200] and b"chunked" not in head.lower()
    assert rest.endswith(b"data: [DONE]\n\n")


GARBAGE = {
    "noise": bytes(range(256)) * 8,
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /health\r\nHost: x\r\n\r\n",
    "a proxy's request": b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a huge header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "a huge path": b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunks that lie": post(HOST, b"Transfer-Encoding: chunked") + b"zz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk of 2^64": post(HOST, b"Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n" + BODY,
    "a negative chunk": post(HOST, b"Transfer-Encoding: chunked") + b"-1\r\n" + BODY + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_ends_without_an_answer_that_succeeds(server, name):
    got = statuses(server.raw(GARBAGE[name], timeout=0.6))
    assert all(400 <= s < 600 for s in got), got
    assert server.get("/health").status == 200


@pytest.mark.parametrize("cut", [0, 1, 10, 60, 120])
def test_a_client_that_stops_in_the_middle_harms_nobody(server, cut):
    whole = post(HOST, b"Content-Type: application/json", LENGTH) + BODY
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(whole[:cut])
    assert server.get("/health").status == 200


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A server that waits a second for headers, for bodies and between requests."""
    with Daemon(tmp_path_factory.mktemp("hasty"),
                {"server": {"header_timeout": 1, "body_timeout": 1, "idle_timeout": 1}}) as daemon:
        yield daemon


def trickle(daemon, data, pause):
    """Sends a byte at a time; returns how long it was listened to, and what came back."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10 * SLOW) as s:
        s.settimeout(pause)
        for i in range(len(data)):
            try:
                s.sendall(data[i:i + 1])
                got = s.recv(65536)
                return time.monotonic() - begin, got
            except socket.timeout:
                continue
            except OSError:
                return time.monotonic() - begin, b""
    raise AssertionError("it was listened to all the time")


def test_a_slow_header_is_cut_off(hasty):
    """A byte every 0.2 s is never silent for long, and yet it does not live on."""
    seconds, got = trickle(hasty, b"GET /health HTTP/1.1\r\nHost: " + b"x" * 100, 0.2)
    assert 0.5 < seconds < 5 * SLOW
    assert statuses(got) in ([], [408], [400])


def test_a_slow_body_is_cut_off(hasty):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10 * SLOW) as s:
        s.sendall(post(HOST, b"Content-Length: 1000") + b"{")
        begin = time.monotonic()
        got = receive(s)
    assert time.monotonic() - begin < 5 * SLOW
    assert statuses(got) in ([], [408])


def test_a_silent_connection_is_closed(hasty):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10 * SLOW) as s:
        begin = time.monotonic()
        assert statuses(receive(s)) in ([], [408])
    assert time.monotonic() - begin < 5 * SLOW


def test_a_kept_connection_that_falls_silent_is_closed(hasty):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10 * SLOW) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        begin = time.monotonic()
        assert statuses(receive(s))[:1] == [200]
    assert time.monotonic() - begin < 5 * SLOW


def test_short_timeouts_do_not_end_a_request_that_is_being_worked_on(hasty):
    """Larger and larger pictures, until one has taken longer than the timeouts of a second."""
    for size in ("256x256", "512x512", "768x768", "1024x1024"):
        begin = time.monotonic()
        answer = hasty.post(json.dumps({"prompt": "a lake", "steps": 60, "size": size}).encode())
        assert answer.status == 200
        if time.monotonic() - begin > 1.5:
            return
    pytest.skip("this machine makes every picture in less time than the timeouts")


def test_a_client_that_does_not_read_does_not_hold_others_up(server):
    """Forty pictures lie unread; the next request is served all the same."""
    idle = [server.begin(n=10, size="128x128", steps=1) for _ in range(4)]
    try:
        assert server.get("/health").status == 200
        assert server.pictures(seed=1)["data"]
    finally:
        for s in idle:
            s.close()


def test_two_hundred_idle_connections_harm_nobody(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        assert server.pictures(seed=1)["data"]
    finally:
        for s in idle:
            s.close()
