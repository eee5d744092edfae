"""The real daemon on a port of its own, and requests to it with nothing between the test and the socket."""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TESSERAD", str(ROOT / "build" / "tesserad"))
IMAGES = "/v1/images/generations"

# What a sanitizer prints when it has found something.
FOUND = re.compile(r"ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|runtime error:")

# Sanitized builds are slower, and so may be the machine.
SANITIZED = b"__asan_init" in pathlib.Path(PROGRAM).read_bytes()
SLOW = float(os.environ.get("TS_TEST_SLOW", "5" if SANITIZED else "1"))
START_S = 60 * SLOW
ANSWER_S = 120 * SLOW


def model():
    """TS_TEST_MODEL, or the small random model whose pictures are noise but quick."""
    return os.environ.get("TS_TEST_MODEL", str(ROOT / "tests" / "fixtures" / "pipeline_sd1"))


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]


class Daemon:
    """tesserad with a configuration: {"section": {"key": value or list of values}}."""

    def __init__(self, folder, config=None, port=0, arguments=()):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log"
        self.port_file = self.folder / "port"
        self.port_file.unlink(missing_ok=True)
        sections = {
            "server": {"listen": f"127.0.0.1:{port}", "port_file": self.port_file},
            "models": {"path": model()},
            "devices": {"devices": "cpu:2", "dtype": "f32"},
            "limits": {"max_steps": 1000},
            "defaults": {"steps": 2, "size": "64x64"},
        }
        for section, options in (config or {}).items():
            sections.setdefault(section, {}).update(options)
        lines = []
        for section, options in sections.items():
            lines.append(f"[{section}]")
            for key, value in options.items():
                lines += [f"{key} = {v}" for v in (value if isinstance(value, list) else [value])]
        file = self.folder / "tesserad.conf"
        file.write_text("\n".join(lines) + "\n")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([PROGRAM, "--config", str(file), *arguments], stdout=log, stderr=log)
        self.port = port

    def wait_until_listening(self):
        """The port is known; models may still be loading."""
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            assert self.process.poll() is None, f"tesserad ended at once:\n{self.log_text()}"
            text = self.port_file.read_text() if self.port_file.exists() else ""
            if text.strip():
                self.port = int(text)
                return self
            time.sleep(0.01)
        raise AssertionError(f"tesserad has no port:\n{self.log_text()}")

    def wait_until_ready(self):
        self.wait_until_listening()
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            assert self.process.poll() is None, f"tesserad ended while it loaded:\n{self.log_text()}"
            if self.get("/health").status == 200:
                return self
            time.sleep(0.02)
        raise AssertionError(f"tesserad is not ready:\n{self.log_text()}")

    def log_text(self):
        return self.log.read_text(errors="replace")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout=None):
        return self.process.wait(timeout or ANSWER_S)

    def stop(self):
        """Ends it as an operator would; whatever a sanitizer has found fails the test."""
        if self.process.poll() is None:
            self.terminate()
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"tesserad does not end:\n{self.log_text()[-4000:]}") from None
        text = self.log_text()
        assert not FOUND.search(text), text[-8000:]
        assert status == 0, f"exit status {status}\n{text[-4000:]}"

    def __enter__(self):
        return self.wait_until_ready()

    def __exit__(self, kind, *_):
        if kind and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        else:
            self.stop()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    # ---- requests ----

    def request(self, method, path, body=None, headers=None, timeout=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout or ANSWER_S)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, body, path=IMAGES, headers=None, **more):
        """body: JSON as an object, or bytes as they are."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self.request("POST", path, body=body, headers={"Content-Type": "application/json", **(headers or {})},
                            **more)

    def pictures(self, **fields):
        """The decoded JSON answer to a request that succeeds."""
        answer = self.post({"prompt": "a lake", **fields})
        assert answer.status == 200, answer.body
        return answer.json()

    def events(self, **fields):
        """The events of a streamed request: (name, data), with data None for [DONE]."""
        answer = self.post({"prompt": "a lake", "stream": True, **fields})
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(read_events(answer.body))

    def metrics(self):
        """{"name{labels}": value}"""
        samples = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    def metric(self, name):
        """The sum over the labels; None when there is no such metric."""
        found = [v for k, v in self.metrics().items() if k == name or k.startswith(name + "{")]
        return sum(found) if found else None

    def wait_for(self, condition, what, timeout=30):
        give_up = time.monotonic() + timeout * SLOW
        while time.monotonic() < give_up:
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError(f"{what}\n{self.log_text()[-4000:]}")

    def raw(self, data, timeout=10):
        """What comes back for these bytes until the other side closes, or nothing comes for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout * SLOW) as s:
            try:
                s.sendall(data)
            except OSError:
                pass  # it may refuse before it has read everything
            return receive(s)

    def begin(self, **fields):
        """Sends a request and leaves its answer unread; close() the socket to go away."""
        body = json.dumps({"prompt": "a lake", **fields}).encode()
        s = socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_S)
        s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                  % (IMAGES.encode(), len(body), body))
        return s


def receive(s):
    parts = []
    try:
        while part := s.recv(65536):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)


def statuses(data):
    """Status codes of all the answers in what a raw connection received."""
    return [int(m) for m in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]


def read_events(text):
    """Parses server-sent events strictly; comments are left out."""
    text = text.decode("utf-8")
    assert text.endswith("\n\n"), "a stream ends with an empty line"
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        fields = [line.partition(":") for line in lines]
        names = [value.strip() for field, _, value in fields if field == "event"]
        data = [value.strip() for field, _, value in fields if field == "data"]
        assert len(data) == 1 and len(names) <= 1 and len(fields) == len(data) + len(names), block
        if data[0] == "[DONE]":
            yield None, None
        else:
            yield (names[0] if names else None), json.loads(data[0])
