import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from daemon import Daemon  # noqa: E402


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One group of two devices, for every test that does not need settings of its own."""
    with Daemon(tmp_path_factory.mktemp("server")) as daemon:
        yield daemon


@pytest.fixture
def start(tmp_path):
    """start({"section": {"key": value}}): a daemon of the test's own, ready; stopped afterwards."""
    running = []

    def starter(config=None, **more):
        daemon = Daemon(tmp_path / str(len(running)), config, **more)
        running.append(daemon)
        return daemon.wait_until_ready()

    yield starter
    wrong = []
    for daemon in running:
        try:
            if daemon.process.returncode is None:
                daemon.stop()
        except AssertionError as e:
            wrong.append(str(e))
    assert not wrong, "\n".join(wrong)
