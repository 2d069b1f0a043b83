"""Load reports for balancers: trailers, out of band, HTTP's header, and gRPC's own weighted round robin that reads them."""

import base64
import contextlib
import json
import re
import socket
import urllib.request

import grpc
import h2.config
import h2.connection
import pytest

from conftest import MODEL, PATIENCE, TestDaemon, patiently

NO_PROXY = ("grpc.enable_http_proxy", 0)


def endless(wire):
    return wire.completions_pb2.CompletionRequest(
        prompts=[{"text": "The"}], sampling={"temperature": 0, "max_tokens": 16000, "ignore_eos": True})


def short(wire):
    return wire.completions_pb2.CompletionRequest(prompts=[{"text": "The"}], sampling={"max_tokens": 4})


@contextlib.contextmanager
def busy(daemon, wire, n):
    """n streams that run on the daemon for as long as the block."""
    with grpc.insecure_channel(daemon.grpc, options=[NO_PROXY]) as channel:
        stub = wire.completions_pb2_grpc.CompletionsStub(channel)
        streams = [stub.StreamCompletion(endless(wire)) for _ in range(n)]
        try:
            for _ in patiently():
                if sum(daemon.metric(f"vllm:num_requests_{state}") for state in ("running", "waiting")) == n:
                    break
            yield
        finally:
            for stream in streams:
                stream.cancel()


def call_raw(daemon, method, message, wire):
    """One unary call without gRPC's library, which keeps the report for its balancers: (grpc-status, report)."""
    host, port = daemon.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="ascii"))
        http.initiate_connection()
        http.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path", f"/t6.v1.{method}"),
                              (":authority", daemon.grpc), ("content-type", "application/grpc"), ("te", "trailers")])
        body = message.SerializeToString()
        http.send_data(1, b"\0" + len(body).to_bytes(4, "big") + body, end_stream=True)
        trailers = {}
        while "grpc-status" not in trailers:
            connection.sendall(http.data_to_send())
            for event in http.receive_data(connection.recv(65536)):
                trailers.update(getattr(event, "headers", None) or {})
    encoded = trailers["endpoint-load-metrics-bin"]
    report = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    return int(trailers["grpc-status"]), wire.orca_load_report_pb2.OrcaLoadReport.FromString(report)


@pytest.fixture(scope="module")
def four_slots():
    with TestDaemon(MODEL, "--max-context", "16384", "--max-num-seqs", "4") as running:
        yield running


def test_the_trailer_says_what_runs_and_waits(four_slots, wire):
    with busy(four_slots, wire, 6):
        four_slots.wait_for_metric("vllm:num_requests_running", 4)
        four_slots.wait_for_metric("vllm:num_requests_waiting", 2)
        status, report = call_raw(four_slots, "Models/List", wire.models_pb2.ListModelsRequest(), wire)
    assert status == 0
    assert report.named_metrics["num_requests_running"] == 4
    assert report.named_metrics["num_requests_waiting"] == 2
    assert 0 < report.named_metrics["kv_cache_usage_perc"] <= 1
    assert report.application_utilization >= 1.5
    assert not report.cpu_utilization


def test_rates_come_out_of_band(daemon, wire):
    with grpc.insecure_channel(daemon.grpc, options=[NO_PROXY]) as channel:
        request = wire.orca_pb2.OrcaLoadReportRequest()
        request.report_interval.FromMilliseconds(200)
        reports = wire.orca_pb2_grpc.OpenRcaServiceStub(channel).StreamCoreMetrics(request)
        completions = wire.completions_pb2_grpc.CompletionsStub(channel)
        for _ in patiently():  # a rate is one of the last ten seconds, which a slow machine may miss
            completions.CreateCompletion(short(wire))
            if (report := next(reports)).rps_fractional > 0:
                break
        assert report.eps == 0
        reports.cancel()


def test_a_refusal_is_an_error_a_bad_request_is_not(start, wire):
    daemon = start(MODEL, "--max-context", "16384", "--max-num-seqs", "1", "--max-queued-requests", "1")
    empty = wire.completions_pb2.CompletionRequest(prompts=[{"text": ""}])
    for _ in patiently():  # a request is counted when its answer has left: a later report tells of it
        status, report = call_raw(daemon, "Completions/CreateCompletion", empty, wire)
        assert status == grpc.StatusCode.INVALID_ARGUMENT.value[0] and report.eps == 0
        if report.rps_fractional > 0:
            break
    with busy(daemon, wire, 1), grpc.insecure_channel(daemon.grpc, options=[NO_PROXY]) as channel:
        waiting = wire.completions_pb2_grpc.CompletionsStub(channel).StreamCompletion(endless(wire))
        daemon.wait_for_metric("vllm:num_requests_waiting", 1)
        for _ in patiently():
            status, report = call_raw(daemon, "Completions/CreateCompletion", short(wire), wire)
            assert status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            assert report.application_utilization >= 2
            if report.eps > 0:
                break
        waiting.cancel()


@pytest.mark.parametrize("stream", [False, True])
def test_http_answers_carry_it_when_asked(daemon, stream):
    body = json.dumps({"prompt": "The", "max_tokens": 4, "stream": stream}).encode()
    request = urllib.request.Request(f"{daemon.url}/v1/completions", body, {
        "Content-Type": "application/json", "endpoint-load-metrics-format": "TEXT"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
        answer.read()
        load = answer.headers["endpoint-load-metrics"]
    assert load.startswith("TEXT ")
    values = dict(re.findall(r"([\w.]+)=([\d.e+-]+)", load))
    assert {"application_utilization", "rps_fractional", "eps", "named_metrics.kv_cache_usage_perc",
            "named_metrics.num_requests_waiting"} <= set(values)


@pytest.mark.parametrize("out_of_band", [False, True], ids=["trailers", "out_of_band"])
def test_grpcs_own_balancer_sends_less_to_the_loaded_one(daemon, four_slots, wire, out_of_band):
    policy = {"weighted_round_robin": {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s",
                                       "enableOobLoadReport": out_of_band, "oobReportingPeriod": "0.1s"}}
    options = [NO_PROXY, ("grpc.service_config", json.dumps({"loadBalancingConfig": [policy]}))]
    target = f"ipv4:{daemon.grpc},{four_slots.grpc}"

    def ask(stub, n):
        for _ in range(n):
            stub.CreateCompletion(short(wire))

    def served(by):
        return by.metric("t6:requests_total", transport="grpc", code="OK")

    # One of 64 slots here, two of 4 there.
    with busy(daemon, wire, 1), busy(four_slots, wire, 2), grpc.insecure_channel(target, options=options) as channel:
        stub = wire.completions_pb2_grpc.CompletionsStub(channel)
        for _ in patiently():  # the weights come when they come: without any, half of the calls are served here
            before = served(daemon), served(four_slots)
            ask(stub, 40)
            here, there = served(daemon) - before[0], served(four_slots) - before[1]
            if here > 3 * there:
                break
