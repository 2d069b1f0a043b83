"""deploy/compose under a real engine, podman: three replicas, HAProxy and Prometheus as the file has them. Needs root.

Where no registry can be reached there are no images of HAProxy, Prometheus and Grafana: the first two are made of Debian's
packages on our base, under the names that the file uses, and Grafana stays out. What podman writes is under T6_IMAGE_WORK.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.parse

import pytest

import fleet
import images
from conftest import BIN, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import demo  # noqa: E402

SERVICES = ("t6d-1", "t6d-2", "t6d-3", "haproxy", "prometheus")
PROJECT = "t6test"
HTTP, GRPC, PROMETHEUS = "127.0.0.1:8000", "127.0.0.1:50051", "127.0.0.1:9090"
STAND_INS = f"""
FROM {images.BASE} AS haproxy
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy >/dev/null 2>&1
USER haproxy
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
FROM {images.BASE} AS prometheus
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus >/dev/null 2>&1 \\
 && install -d -o nobody -g nogroup /prometheus
VOLUME /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus", "--storage.tsdb.path=/prometheus/data"]
"""


class Engine:
    """podman over the storage that build_image fills, without what a sandbox may lack: systemd, rights to raise limits."""

    def __init__(self, folder):
        storage, containers = folder / "storage.conf", folder / "containers.conf"
        storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{images.WORK}/storage"\nrunroot = "{images.WORK}/run"\n')
        containers.write_text('[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
                              '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nruntime = "runc"\n'
                              '[network]\nnetwork_backend = "netavark"\n')
        self.environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(containers)}

    def run(self, *command, check=True):
        return subprocess.run(command, check=check, env=self.environment, stdin=subprocess.DEVNULL, text=True, timeout=300,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT / "deploy/compose").stdout.strip()

    def compose(self, *arguments):
        return self.run("podman-compose", "-p", PROJECT, "-f", "compose.yaml", *arguments)

    def inspect(self, service, field):
        return self.run("podman", "inspect", "--format", "{{" + field + "}}", name_of(service))

    def wait_until_healthy(self, service):
        deadline = time.monotonic() + 60
        # Where systemd does not run nothing asks by itself.
        while subprocess.run(["podman", "healthcheck", "run", name_of(service)], env=self.environment,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
            assert time.monotonic() < deadline, self.run("podman", "logs", name_of(service))
            time.sleep(0.2)


def name_of(service):
    return f"{PROJECT}_{service}_1"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    images.build("cpu")
    (folder / "Dockerfile").write_text(STAND_INS)
    for target, name in (("haproxy", "haproxy:2.6-bookworm"), ("prometheus", "prom/prometheus:v2.53.4")):
        images.buildah("bud", "-q", "--pull-never", "--layers", "--target", target, "--tag", f"localhost/{name}", folder)
    engine = Engine(folder)
    engine.compose("down", "-v")
    try:
        engine.compose("up", "-d", "--no-build", *SERVICES)
        for replica in SERVICES[:3]:
            engine.wait_until_healthy(replica)
        yield engine
    finally:
        engine.compose("down", "-v")
        for network in ("inside", "outside"):
            engine.run("podman", "network", "rm", "-f", f"{PROJECT}_{network}", check=False)


def balanced():
    """Until the balancer sends requests to somebody."""
    deadline = time.monotonic() + 30
    while True:
        try:
            if fleet.get(HTTP, "/v1/models") == 200:
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, "HAProxy finds no replica"
        time.sleep(0.2)


def test_answers_through_the_balancer_over_both_protocols(engine):
    balanced()
    target = demo.Daemon.__new__(demo.Daemon)
    target.http = HTTP
    rows = demo.over_http(target, fleet.MODEL_NAME)
    assert {question: answer.strip() for question, answer, *_ in rows} == demo.QUESTIONS
    asked = subprocess.run([BIN / "t6", "ask", "--server", GRPC, "--json", "--document", "-", *demo.QUESTIONS], check=True,
                           input=demo.DOCUMENT, text=True, stdout=subprocess.PIPE, timeout=60)
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert {answer["question"]: answer["answer"].strip() for answer in answers} == demo.QUESTIONS


def test_the_replicas_have_no_rights_and_reach_nobody(engine):
    for replica in SERVICES[:3]:
        pid = engine.inspect(replica, ".State.Pid")
        status = dict(re.findall(r"^(\w+):\t(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M))
        assert status["Uid"].split() == ["10001"] * 4 and status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        assert all(int(status[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"))
        assert engine.inspect(replica, ".HostConfig.ReadonlyRootfs") == "true"
        assert engine.inspect(replica, ".HostConfig.Memory") == str(4 << 30)
        assert engine.run("podman", "port", name_of(replica)) == ""
        routes = subprocess.run(["nsenter", "-t", pid, "-n", "cat", "/proc/net/route"], check=True, text=True, stdout=subprocess.PIPE)
        assert not re.search(r"^\w+\t00000000\t", routes.stdout, re.M), "there is a way out"
    published = engine.run("podman", "port", name_of("haproxy")) + "\n" + engine.run("podman", "port", name_of("prometheus"))
    assert len(published.splitlines()) == 4
    assert all("-> 127.0.0.1:" in line for line in published.splitlines()), published


def test_prometheus_sees_them_all(engine):
    query = urllib.parse.quote("sum by (job) (up)")
    deadline = time.monotonic() + 30
    while True:
        try:
            with contextlib.closing(http.client.HTTPConnection(PROMETHEUS, timeout=10)) as connection:
                connection.request("GET", f"/api/v1/query?query={query}")
                rows = json.load(connection.getresponse())["data"]["result"]
            up = {row["metric"]["job"]: row["value"][1] for row in rows}
        except (OSError, http.client.HTTPException):
            up = {}
        if up == {"t6d": "3", "haproxy": "1"}:
            return
        assert time.monotonic() < deadline, up
        time.sleep(1)


def test_an_update_loses_no_request(engine):
    """As the file's head says it, for podman: one replica after the other, with the grace of the file."""
    documents = fleet.Documents(6)
    load = fleet.Load(fleet.over_http(HTTP), clients=6, per_client=1000, choose=lambda question: question % 6,
                      documents=documents, tokens=24)
    for replica in SERVICES[:3]:
        engine.run("podman", "stop", "-t", "60", name_of(replica))
        assert engine.inspect(replica, ".State.ExitCode") == "0"
        engine.run("podman", "start", name_of(replica))
        engine.wait_until_healthy(replica)
        time.sleep(1.5)  # the balancer takes it back
    results = load.stop()
    print(f"\n{len(results)} requests while all three were replaced, {len(fleet.errors(results))} lost")
    assert len(results) > 50 and not fleet.errors(results), fleet.errors(results)[:3]
