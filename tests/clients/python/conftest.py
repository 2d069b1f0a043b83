"""Builds t6client's wheel as pip does, imports it from there, and starts the real t6d.

T6_BIN names the folder with t6d; default build/release/bin. Runs in build/client-venv, which ./bootstrap --dev makes.
"""

import asyncio
import atexit
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ.get("T6_BIN", ROOT / "build/release/bin"))
MODEL = ROOT / "models/t6-docqa-14m"
sys.path.insert(0, str(ROOT / "tools"))
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

from t6_daemon import Daemon  # noqa: E402

# Seconds: far beyond what a starved machine needs, for whatever must happen. A shorter wait would test the machine.
PATIENCE = 240

DOCUMENT = ("The museum opened in 1931 in Graz. Its founder, Clara Weiss, gave it four hundred clocks. "
            "Tickets cost six euros.")
SYSTEM = "Answer the question from the document. Be short.\n\n" + DOCUMENT
ANSWERS = {"When did the museum open?": "1931", "Who founded the museum?": "Clara Weiss",
           "How much is a ticket?": "six euros"}


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def build(folder):
    """The wheel, and the folder it is unpacked into. From a copy, so that the source tree stays as it is."""
    source = folder / "source/clients/python"
    shutil.copytree(ROOT / "clients/python", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    shutil.copytree(ROOT / "proto", folder / "source/proto")
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    pip("install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    return wheel, folder / "site"


FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="t6client-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
WHEEL, SITE = build(FOLDER)
sys.path.insert(0, str(SITE))

import t6client  # noqa: E402


class TestDaemon(Daemon):
    """A t6d with what the tests ask it besides."""

    __test__ = False

    def __init__(self, *flags):
        super().__init__(BIN / "t6d", MODEL, "--drain-grace", "0s", *flags, ready_timeout=PATIENCE)

    def metric(self, name, label=""):
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0] == name and label in line)

    def wait_for_metric(self, name, wanted, label=""):
        deadline = time.monotonic() + PATIENCE
        while (value := self.metric(name, label)) != wanted:
            assert time.monotonic() < deadline, f"{name} is {value}, not {wanted}, after {PATIENCE} s"
            time.sleep(0.01)

    @contextlib.contextmanager
    def aborts(self):
        """A block within or soon after which one request ends before its time, and then nothing runs."""
        finished = "vllm:request_success_total", 'finished_reason="abort"'
        before = self.metric(*finished)
        yield
        self.wait_for_metric("vllm:num_requests_running", 0)
        self.wait_for_metric(finished[0], before + 1, finished[1])


@pytest.fixture(scope="session")
def daemon():
    """The model that ships, with room for outputs long enough to be interrupted."""
    with TestDaemon("--max-context", "16384") as running:
        yield running


class Blocking:
    """Calls the blocking client: ask(target, lambda client: client.chat(...))."""

    def __call__(self, target, call, **settings):
        with t6client.Client(target, **settings) as client:
            return call(client)

    def chunks(self, target, stream, seen=None, **settings):
        """All chunks; those before an error stay in `seen`."""
        seen = [] if seen is None else seen
        with t6client.Client(target, **settings) as client, stream(client) as pieces:
            for chunk in pieces:
                seen.append(chunk)
        return seen


class Awaiting:
    """The same through the asyncio client."""

    def __call__(self, target, call, **settings):
        async def run():
            async with t6client.AsyncClient(target, **settings) as client:
                return await call(client)

        return asyncio.run(run())

    def chunks(self, target, stream, seen=None, **settings):
        seen = [] if seen is None else seen

        async def run():
            async with t6client.AsyncClient(target, **settings) as client, stream(client) as pieces:
                async for chunk in pieces:
                    seen.append(chunk)

        asyncio.run(run())
        return seen


@pytest.fixture(params=[Blocking, Awaiting], ids=["sync", "async"])
def ask(request):
    return request.param()
