"""SIGTERM: what runs finishes, what is new is sent elsewhere, and the exit code is 0."""

import contextlib
import http.client
import json
import signal
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import DEVICE, MODEL, PATIENCE, messages, patiently
from test_http import JSON, chat, endless, read_until, send

STREAMS = 8


class Stream(threading.Thread):
    """One streamed completion, read to its end."""

    def __init__(self, daemon, tokens):
        super().__init__()
        self.body = json.dumps({"model": daemon.model, "prompt": "The", "max_tokens": tokens, "ignore_eos": True,
                                "temperature": 1, "stream": True, "stream_options": {"include_usage": True}})
        self.target, self.sent, self.started, self.events = daemon, threading.Event(), threading.Event(), []

    def run(self):
        connection = http.client.HTTPConnection(self.target.http, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", self.body, JSON)
            self.sent.set()
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    self.events.append(line[6:].strip())
                    self.started.set()


def start_streams(daemon, tokens, count=STREAMS):
    """All run when this returns. The daemon stands still while they are sent, or a first one might end before the last."""
    streams = [Stream(daemon, tokens) for _ in range(count)]
    daemon.process.send_signal(signal.SIGSTOP)
    for stream in streams:
        stream.start()
    assert all(stream.sent.wait(PATIENCE) for stream in streams)
    daemon.process.send_signal(signal.SIGCONT)
    assert all(stream.started.wait(PATIENCE) for stream in streams)
    return streams


def wait_until_unready(daemon):
    for _ in patiently():
        if daemon.get("/readyz")[0] == 503:
            return


def check_finished(streams, tokens):
    for stream in streams:
        stream.join(PATIENCE)
        assert stream.events[-1] == b"[DONE]"
        assert json.loads(stream.events[-2])["usage"]["completion_tokens"] == tokens


def test_streams_finish_and_the_grace_still_serves(start):
    daemon = start(MODEL, "--max-context", "16384", "--drain-grace", "3600s", "--drain-deadline", "3600s")
    streams = start_streams(daemon, 1000)
    daemon.process.send_signal(signal.SIGTERM)
    wait_until_unready(daemon)
    with grpc.insecure_channel(daemon.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert daemon.get("/livez")[0] == 200
    assert send(daemon, "POST", "/v1/chat/completions", chat(daemon))[0] == 200
    daemon.process.send_signal(signal.SIGTERM)  # cuts the grace
    check_finished(streams, 1000)
    assert daemon.process.wait(PATIENCE) == 0


def test_a_hundred_streams_finish(start):
    daemon = start(MODEL, "--max-context", "16384", "--max-num-seqs", "100", "--drain-grace", "1s", "--drain-deadline", "3600s")
    tokens = 400 if DEVICE == "cpu" else 12000
    streams = start_streams(daemon, tokens, count=100)
    running = daemon.metric("vllm:num_requests_running")
    asked = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    wait_until_unready(daemon)
    unready = time.monotonic() - asked
    check_finished(streams, tokens)
    assert daemon.process.wait(PATIENCE) == 0
    print(f"\n{running:.0f} streams ran at SIGTERM; not ready after {unready * 1000:.0f} ms; all finished, exit 0")


def test_without_grace_new_requests_are_refused_and_streams_finish(start, wire):
    daemon = start(MODEL, "--max-context", "16384", "--drain-deadline", "3600s")
    model, body = daemon.model, chat(daemon)
    holding = endless(daemon)  # until it is closed the daemon has something to finish
    read_until(holding, b"data: ")
    streams = start_streams(daemon, 500)
    daemon.process.send_signal(signal.SIGTERM)
    for _ in patiently():
        if (answer := send(daemon, "POST", "/v1/chat/completions", body))[0] != 200:
            break
    status, headers, text = answer
    assert status == 503 and headers["Connection"].lower() == "close" and json.loads(text)["error"]["message"]
    with grpc.insecure_channel(daemon.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        pb = wire.chat_pb2
        request = pb.ChatCompletionRequest(model=model, messages=[pb.ChatMessage(**m) for m in messages("Who?")])
        try:
            wire.chat_pb2_grpc.ChatStub(channel).CreateCompletion(request)
            raise AssertionError("a draining server took a gRPC request")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
    check_finished(streams, 500)
    holding.close()
    assert daemon.process.wait(PATIENCE) == 0


def test_the_deadline_ends_what_does_not_finish(start):
    daemon = start(MODEL, "--max-context", "16384", "--drain-deadline", "300ms")
    streams = start_streams(daemon, 16000)
    assert daemon.stop() == 0
    for stream in streams:
        stream.join(PATIENCE)
        assert stream.events[-1] != b"[DONE]"


def test_idle_server_stops_at_once(start):
    daemon = start(MODEL, "--drain-deadline", "3600s")
    assert daemon.stop() == 0
