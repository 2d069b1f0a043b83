"""t6 bench through the balancers: it counts answers by replica as the replicas do. Needs `./bootstrap --deploy`; prints
its figures with -s."""

import json
import subprocess

import pytest

import fleet
from conftest import BIN

BALANCERS = {"haproxy": fleet.HAProxy, "envoy": fleet.Envoy}


@pytest.mark.parametrize("over", ["http", "grpc"])
@pytest.mark.parametrize("name", BALANCERS)
def test_answers_are_counted_by_replica(name, over):
    with fleet.Fleet(3, "--cache-bytes", "64MiB") as three, BALANCERS[name](three.http, three.grpc) as front:
        front.wait()
        where = ["--http", f"http://{front.http}"] if over == "http" else ["--grpc", front.grpc]
        got = subprocess.run([BIN / "t6", "bench", *where, "--documents", "12", "--questions", "6", "--document-words", "80",
                              "--max-tokens", "8", "--requests", "144", "--concurrency", "12", "--affinity", "--quiet", "--json", "-"],
                             capture_output=True, text=True, timeout=300)
        figures = json.loads(got.stdout)
        served = three.totals("t6:requests_total", code="OK")
    print(f"\n{name} over {over}: {figures['replicas']}, cached {figures['cached_ratio']:.1%}")
    assert figures["failed"] == 0, figures["errors"]
    assert sorted(figures["replicas"].values()) == sorted(n for n in served if n > 0)
    assert len(figures["replicas"]) > 1 and sum(figures["replicas"].values()) == 144
