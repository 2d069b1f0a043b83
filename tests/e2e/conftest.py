"""Fixtures of the end-to-end tests: the real t6d on free ports, and stubs generated from proto/.

T6_BIN names the folder with t6d, t6 and t6-checkpoint; default build/release/bin. T6_DEVICE is every daemon's --device;
default cpu.
"""

import contextlib
import importlib
import json
import os
import pathlib
import re
import sys
import time
import types

import grpc_tools
import pytest
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

from t6_daemon import Daemon  # noqa: E402

BIN = pathlib.Path(os.environ.get("T6_BIN", ROOT / "build/release/bin"))
DEVICE = os.environ.get("T6_DEVICE", "cpu")
MODEL = ROOT / "models/t6-docqa-14m"
GOLDENS = ROOT / "tests/goldens"
SHARED = ROOT.parent / "shared"  # more cases, where this checkout has them beside it

# Seconds: far beyond what a starved machine needs, for whatever must happen. A shorter wait would test the machine.
PATIENCE = 240
FINISHED = "vllm:request_success_total"  # by finished_reason; "abort" for what was cancelled or met its deadline

DOCUMENT = ("The museum opened in 1931 in Graz. Its founder, Clara Weiss, gave it four hundred clocks. "
            "Tickets cost six euros.")
SYSTEM = "Answer the question from the document. Be short.\n\n" + DOCUMENT
ANSWERS = {"When did the museum open?": "1931", "Who founded the museum?": "Clara Weiss",
           "How much is a ticket?": "six euros"}


def patiently():
    """for _ in patiently(): goes on until the loop is left, and fails when it never is."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
        time.sleep(0.01)
    raise AssertionError(f"not within {PATIENCE} s")


def messages(question, system=SYSTEM):
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


class TestDaemon(Daemon):
    """A t6d with what the tests ask it besides."""

    __test__ = False

    def __init__(self, model=MODEL, *flags, binary=BIN / "t6d", **ports):
        if "--drain-grace" not in flags:
            flags += ("--drain-grace", "0s")
        if "--device" not in flags:
            flags += ("--device", DEVICE)
        if DEVICE == "cuda" and "--cache-bytes" not in flags:
            flags += ("--cache-bytes", "1GiB")  # several daemons share the GPU
        super().__init__(binary, model, *flags, ready_timeout=PATIENCE, **ports)

    @property
    def model(self):
        return json.loads(self.get("/v1/models")[1])["data"][0]["id"]

    def metric(self, name, **labels):
        """The sum of a metric's samples that carry these labels."""
        total, found = 0.0, False
        for line in self.get("/metrics")[1].splitlines():
            match = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)(?: \d+)?", line)
            if match and match[1] == name:
                have = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= have.items():
                    total, found = total + float(match[3]), True
        assert found, f"/metrics has no {name} {labels}"
        return total

    def wait_for_metric(self, name, wanted, **labels):
        """Polls until the metric has the value, and fails if it never has."""
        for _ in patiently():
            if self.metric(name, **labels) == wanted:
                return

    @contextlib.contextmanager
    def aborts(self, n=1):
        """A block within or soon after which n requests end before their time, and then nothing runs."""
        before = self.metric(FINISHED, finished_reason="abort")
        yield
        self.wait_for_metric("vllm:num_requests_running", 0)
        self.wait_for_metric(FINISHED, before + n, finished_reason="abort")


@pytest.fixture(scope="session")
def start():
    """start(model, *flags): a daemon that is stopped at the end of the session, if not before."""
    daemons = []

    def make(model=MODEL, *flags):
        daemons.append(TestDaemon(model, *flags))
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.close()


@pytest.fixture(scope="module")
def daemon():
    """The model that ships, with room for outputs long enough to be interrupted."""
    with TestDaemon(MODEL, "--max-context", "16384") as running:
        yield running


@pytest.fixture(scope="session")
def wire(tmp_path_factory):
    """The Python modules of proto/t6/v1 and proto/xds, by name: wire.chat_pb2, wire.chat_pb2_grpc, ..."""
    out = tmp_path_factory.mktemp("stubs")
    proto = ROOT / "proto"
    paths = sorted(path.relative_to(proto) for tree in ("t6/v1", "xds") for path in (proto / tree).rglob("*.proto"))
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{proto}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(arguments + [str(path) for path in paths]) == 0
    sys.path.insert(0, str(out))
    modules = types.SimpleNamespace()
    for path in paths:
        for suffix in ("_pb2", "_pb2_grpc"):
            name = ".".join(path.with_suffix("").parts) + suffix
            setattr(modules, path.stem + suffix, importlib.import_module(name))
    yield modules
    sys.path.remove(str(out))
