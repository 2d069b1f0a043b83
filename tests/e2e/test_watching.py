"""What watches t6d, against the real thing: the rules' unit tests, and every query of the dashboard and of the rules
against a Prometheus that scrapes two daemons while t6 bench loads them. Needs `./bootstrap --deploy`.
"""

import json
import math
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from conftest import BIN, MODEL, PATIENCE, ROOT, TestDaemon, patiently
from fleet import free_ports

PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARD = ROOT / "deploy/grafana/dashboards/t6d.json"
RULES = PROMETHEUS / "t6d.rules.yml"


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_rules_and_configuration_are_valid():
    run("promtool", "check", "rules", "--lint-fatal", RULES.name)
    run("promtool", "check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should_and_not_before():
    run("promtool", "test", "rules", "t6d.rules.test.yml")
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = set(re.findall(r'alertname="(\w+)"', (PROMETHEUS / "t6d.rules.test.yml").read_text()))
    assert alerts == tested, alerts ^ tested


def test_the_dashboard_is_what_its_source_says_and_can_be_imported():
    run(sys.executable, ROOT / "deploy/grafana/make_dashboard.py", "--check")
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["targets"] and panel["description"] and panel["datasource"]["uid"])
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Is it up?", "Is it fast?", "Is the cache working?", "Who waits?"]
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used <= names, used - names


class Watched:
    """Two daemons, the Prometheus that scrapes them every second, and its API."""

    def __init__(self, folder):
        # Few pages, so that prefixes are evicted and requests preempted; few slots, so that some wait.
        flags = ("--cache-bytes", "24MiB", "--max-num-seqs", "4")
        self.daemons = [TestDaemon(MODEL, *flags) for _ in range(2)]
        self.url = f"http://{free_ports(1)[0]}"
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(RULES)],
                  "scrape_configs": [{"job_name": "t6d", "static_configs": [
                      {"targets": [daemon.http for daemon in self.daemons]}]}]}
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        self.log = folder / "prometheus.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
                 f"--web.listen-address={self.url.removeprefix('http://')}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def ask(self, path, **parameters):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        """The finite values that it gives now."""
        values = [float(series["value"][1]) for series in self.ask("query", query=expression)["result"]]
        return [value for value in values if math.isfinite(value)]

    def wait_for(self, expression):
        for _ in patiently():
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.query(expression):
                    return
            except OSError:
                pass  # not listening yet
            time.sleep(0.2)

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        for daemon in self.daemons:
            daemon.close()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """While this is used, t6 bench loads both daemons: one over gRPC, one over HTTP."""
    running = Watched(tmp_path_factory.mktemp("watched"))
    loads = []
    try:
        running.wait_for('t6:ready == 1')
        for daemon, where in zip(running.daemons, (["--grpc", running.daemons[0].grpc], ["--http", running.daemons[1].url])):
            loads.append(subprocess.Popen(
                [BIN / "t6", "bench", *where, "--concurrency", "8", "--documents", "12", "--questions", "4",
                 "--document-tokens", "300", "--max-tokens", "24", "--ignore-eos", "--duration", "3600s", "--quiet"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        running.wait_for("vllm:generation_tokens_total > 1000")
        running.wait_for("count(rate(vllm:inter_token_latency_seconds_count[5s]) > 0) == 2")
        yield running
        for load in loads:
            load.send_signal(signal.SIGINT)
            output, _ = load.communicate(timeout=PATIENCE)
            assert load.returncode == 130, output
    finally:
        for load in loads:
            load.kill()
            load.wait()
        running.close()


def dashboard_queries():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def test_every_query_of_the_dashboard_has_data(watched):
    empty = []
    for title, expression in dashboard_queries():
        for name, value in (("$__rate_interval", "10s"), ("$job", ".*"), ("$model", ".*"), ("$instance", ".*")):
            expression = expression.replace(name, value)
        if not watched.query(expression):
            empty.append((title, expression))
    assert not empty, "\n".join(map(str, empty))
    assert len(list(dashboard_queries())) > 30


def test_the_variables_find_the_daemons(watched):
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            selector = selector.replace("$job", ".*").replace("$model", ".*")
            assert watched.query(f"count by ({label}) ({selector})"), variable["name"]


def test_the_load_shows_what_the_panels_are_for(watched):
    """Metrics that tell the truth under load: waiting, cached, evicted, held."""
    assert max(watched.query("max_over_time(vllm:num_requests_waiting[20s])")) >= 1
    assert max(watched.query("max_over_time(vllm:num_requests_running[20s])")) <= 4
    assert 0 < max(watched.query("max_over_time(vllm:kv_cache_usage_perc[20s])")) <= 1
    assert min(watched.query("vllm:prefix_cache_hits_total / vllm:prefix_cache_queries_total")) > 0.1
    assert sum(watched.query("t6:prefix_evictions_total")) > 0
    assert min(watched.query("process_resident_memory_bytes")) > 50e6
    assert all(0 <= time.time() - start < 600 for start in watched.query("process_start_time_seconds"))
    assert min(watched.query("rate(process_cpu_seconds_total[10s])")) > 0.05


def test_rules_are_loaded_have_data_and_name_their_remedy(watched):
    documentation = (ROOT / "docs/operations.md").read_text()
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
               for title in re.findall(r"^#+ (.+)$", documentation, re.MULTILINE)}
    watched.wait_for("t6d:busy:ratio_rate5m")  # the last of its group, which is evaluated every fifteen seconds
    alerts = 0
    for group in watched.ask("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            if rule["type"] == "recording":
                assert watched.query(rule["name"]), rule["name"]
                continue
            alerts += 1
            assert {"summary", "description", "remedy", "runbook"} == set(rule["annotations"]), rule["name"]
            assert rule["labels"]["severity"] in ("warning", "critical")
            page, anchor = rule["annotations"]["runbook"].split("#")
            assert page == "docs/operations.md" and anchor in anchors, rule["annotations"]["runbook"]
            assert f"`{rule['name']}`" in documentation, f"docs/operations.md says nothing of {rule['name']}"
    assert alerts == len(re.findall(r"- alert: ", RULES.read_text()))
    firing = {alert["labels"]["alertname"] for alert in watched.ask("alerts")["alerts"] if alert["state"] == "firing"}
    assert not firing, firing


def test_the_documentation_lists_every_metric(watched):
    documentation = (ROOT / "docs/operations.md").read_text()
    for daemon in watched.daemons:
        for name in re.findall(r"^# TYPE (\S+)", daemon.get("/metrics")[1], re.MULTILINE):
            assert f"`{name}" in documentation, f"docs/operations.md does not list {name}"
