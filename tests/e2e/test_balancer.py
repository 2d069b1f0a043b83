"""Three daemons behind HAProxy and behind Envoy: documents stay where their factors are, one hot document spills, a
killed replica costs only what it had begun to answer, and a rolling restart costs nothing.

Prints the figures that docs/deploy.md quotes; run with -s to see them.
"""

import contextlib
import http.client
import http.server
import json
import re
import socket
import threading
import time

import pytest

import fleet
from fleet import Documents, Fleet, GrpcClient, Load, cached_ratio, errors, over_http

CLIENTS, DOCUMENTS = 200, 40
BALANCERS = {"haproxy": fleet.HAProxy, "envoy": fleet.Envoy}
# Room for about half of the forty documents beside what runs; the single server has three times that.
CACHE_MIB = 64


@pytest.fixture(params=BALANCERS)
def balancer(request):
    return BALANCERS[request.param]


def replicas(n=3, cache=CACHE_MIB, **more):
    return Fleet(n, "--cache-bytes", f"{cache}MiB", "--max-queued-requests", 1000, **more)


def ask_all(ask, choose, documents, per_client=6, tokens=8):
    results = Load(ask, CLIENTS, per_client, choose, documents, tokens).wait()
    assert len(results) == CLIENTS * per_client and not errors(results), errors(results)[:5]
    return results


def spread(question):
    """Which document a question is about: each as often as any other, in no order."""
    return question * 2654435761 % 2**32 * DOCUMENTS >> 32


@pytest.fixture(scope="module")
def single():
    """The cached ratio of one server with all the cache, over the same requests."""
    with replicas(1, 3 * CACHE_MIB) as one:
        return cached_ratio(ask_all(over_http(one.http[0]), spread, Documents(DOCUMENTS)))


def test_documents_stay_where_their_factors_are(balancer, single):
    with replicas() as three, balancer(three.http, three.grpc) as front:
        ratio = cached_ratio(ask_all(over_http(front.wait().http), spread, Documents(DOCUMENTS)))
        served = three.totals("t6:requests_total", code="OK")
    print(f"\ncached tokens: single server {single:.3f}, {balancer.__name__} {ratio:.3f} = {ratio / single:.1%}; {served}")
    assert ratio >= 0.9 * single


def test_round_robin_for_comparison(single):
    with replicas() as three, fleet.RoundRobin(three.http, three.grpc) as front:
        ratio = cached_ratio(ask_all(over_http(front.wait().http), spread, Documents(DOCUMENTS)))
    print(f"\ncached tokens: single server {single:.3f}, round robin {ratio:.3f} = {ratio / single:.1%}")
    assert ratio < 0.9 * single, "then affinity buys nothing here, and the test of it shows nothing"


def test_one_hot_document_spills(balancer):
    with replicas() as three, balancer(three.http, three.grpc) as front:
        ask_all(over_http(front.wait().http), lambda question: 0, Documents(1), per_client=4)
        served = three.totals("t6:requests_total", code="OK")
    print(f"\none document, {CLIENTS} clients, {balancer.__name__}: {served}, busiest {max(served) / (sum(served) / 3):.2f} x mean")
    assert max(served) <= 1.5 * sum(served) / 3


@pytest.fixture(params=["http", "grpc"])
def client(request, wire):
    """client(front): how to ask through a balancer, over this protocol."""
    return lambda front: over_http(front.http) if request.param == "http" else GrpcClient(front, wire)


def test_a_killed_replica_costs_only_what_it_had_begun(balancer, client):
    with replicas() as three, balancer(three.http, three.grpc) as front:
        load = Load(client(front.wait()), 24, 10**6, lambda question: question % 12, Documents(12), tokens=40)
        time.sleep(3)
        running = three.totals("vllm:num_requests_running")
        victim = running.index(max(running))  # or what it had may have ended by then
        killed = time.monotonic()
        three.kill(victim)
        time.sleep(5)
        results = load.stop()
    failed = [r for r in results if r.error]
    begun = [r for r in results if r.first and r.started < killed < r.ended]
    after = [r for r in results if r.started > killed]
    slowest = max(r.first - r.started for r in after if r.first)
    usual = max(r.first - r.started for r in results if r.first and r.ended < killed)  # this machine's, under this load
    print(f"\nkill -9, {balancer.__name__}: {len(results)} requests, {running} running before, {len(failed)} streams cut "
          f"({ {r.error for r in failed} }), {len(after)} begun after it, slowest first token {slowest:.2f} s")
    assert running[victim] > 0 and len(after) > len(three.daemons)
    for r in failed:
        assert r in begun, f"failed though no token had been sent: {r}"
    assert 0 < len(failed) <= 24
    assert slowest < 2 + usual


def test_a_rolling_restart_costs_nothing(balancer, wire):
    with replicas() as three, balancer(three.http, three.grpc) as front:
        front.wait()
        documents = Documents(12)
        loads = [Load(ask, 10, 10**6, lambda question: question % 12, documents, tokens=24)
                 for ask in (over_http(front.http), GrpcClient(front, wire))]
        time.sleep(1)
        began = time.monotonic()
        for i in range(3):
            three.restart(i)
            time.sleep(2)  # the balancer counts it in again
        took = time.monotonic() - began
        results = [load.stop() for load in loads]
    print(f"\nrolling restart, {balancer.__name__}: {[len(r) for r in results]} requests over HTTP and gRPC in {took:.0f} s, "
          f"failed {[len(errors(r)) for r in results]}")
    for r in results:
        assert len(r) > 50 and not errors(r), errors(r)[:5]


def test_a_document_stays_over_every_way_to_ask(balancer, wire):
    """By JSON, by protobuf, by bare prompt, by header."""
    documents = Documents(9)
    with replicas() as three, balancer(three.http, three.grpc, steady=True) as front:
        over_grpc = GrpcClient(front.wait(), wire)
        for path in ("/metrics", "/%6detrics", "/m%65trics?x=1"):
            assert fleet.get(front.http, path) == 404, "one replica's metrics, and nobody knows whose"
        with contextlib.closing(http.client.HTTPConnection(front.http, timeout=60)) as connection:
            connection.request("GET", "/v1/models")
            who = connection.getresponse().headers["x-t6-replica"]
            assert re.fullmatch("t6d-[123]", who), "a name for counting, which tells nothing of the network"
        for ask in (over_http(front.http), over_grpc):
            for turn in range(2):
                results = [ask(documents, document, 100 + turn, 2) for document in range(9)]
                assert not errors(results)
            assert min(r.cached for r in results) > 300, "a document was asked about on two replicas"
        for document in range(9):
            prompt = f"{document} is the number of this report. " + documents.texts[document][::-1]
            cached = [post(front.http, {"prompt": prompt + end, "max_tokens": 1})["usage"] for end in ("who", "when")]
            assert cached[1]["prompt_tokens_details"]["cached_tokens"] > 300
        # The header wins over the body: nine documents under one name are all on one replica.
        before = three.totals("t6:requests_total", code="OK", transport="http")
        for document in range(9):
            body = {"messages": documents.messages(document, 1), "max_tokens": 1}
            post(front.http, body, {"x-t6-context": "all-of-them"})
        after = three.totals("t6:requests_total", code="OK", transport="http")
        assert sorted(b - a for a, b in zip(before, after)) == [0, 0, 9]


def post(address, body, headers=None):
    with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return json.loads(text)


class Impostor:
    """A replica that is always ready and does with each POST as told: die before the answer, die within it, refuse."""

    def __init__(self, address):
        self.posts, self.behaviour = 0, "die"
        impostor = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            log_message = lambda self, *_: None

            def do_GET(self):
                self.answer(200, b"ok")

            def do_POST(self):
                impostor.posts += 1
                if impostor.behaviour == "refuse":
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    return self.answer(503, b"{}", close=True)
                if impostor.behaviour == "begin":
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"7\r\ndata: x\r\n")
                    self.wfile.flush()
                    time.sleep(0.2)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def answer(self, status, body, close=False):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if close:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(body)

        host, port = address.split(":")
        self.server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
        self.server.handle_error = lambda *_: None  # probes hang up early
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.parametrize("behaviour, attempts", [("die", 2), ("refuse", 2), ("begin", 1)])
def test_one_replay_of_what_was_never_answered_and_none_of_what_has_begun(balancer, behaviour, attempts):
    """A request that kills a replica must not be given to the third one."""
    addresses = fleet.free_ports(3)
    impostors = [Impostor(address) for address in addresses]
    with balancer(addresses, addresses) as front:
        front.wait(grpc_too=False)
        for impostor in impostors:
            impostor.posts, impostor.behaviour = 0, behaviour
        result = fleet.ask_http(front.http, Documents(1), 0, 1, 1)
    assert result.error, "nobody answered, and the client was told nothing"
    assert sum(impostor.posts for impostor in impostors) == attempts, result
    assert max(impostor.posts for impostor in impostors) == 1, "the same replica was asked twice"
    for impostor in impostors:
        impostor.server.shutdown()
        impostor.server.server_close()
