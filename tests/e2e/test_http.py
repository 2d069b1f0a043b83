"""HTTP as it is on the wire: routes, bounds, errors, cancellation, metrics."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import time

import pytest

from conftest import FINISHED, MODEL, PATIENCE, messages

JSON = {"Content-Type": "application/json"}


def send(daemon, method, path, body=None, headers=JSON):
    """(status, headers, body as bytes) over a connection of its own."""
    connection = http.client.HTTPConnection(daemon.http, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def chat(daemon, **more):
    return json.dumps({"model": daemon.model, "messages": messages("Who founded the museum?"), "temperature": 0, **more})


def endless(daemon, max_tokens=16000):
    """A stream that goes on for seconds; its connection, after the first piece has come."""
    body = json.dumps({"model": daemon.model, "prompt": "The", "max_tokens": max_tokens, "ignore_eos": True,
                       "temperature": 0, "stream": True}).encode()
    connection = socket.create_connection(daemon.http.rsplit(":", 1), timeout=PATIENCE)
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t6\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return connection


def read_until(connection, mark):
    got = b""
    while mark not in got:
        piece = connection.recv(4096)
        assert piece, f"the connection ended after {got!r}"
        got += piece
    return got


def error_of(body):
    error = json.loads(body)["error"]
    assert set(error) >= {"message", "type", "param", "code"} and error["message"], error
    return error


def test_admin_routes(daemon):
    for path in ("/health", "/livez", "/readyz", "/version", "/metrics"):
        assert send(daemon, "GET", path, headers={})[0] == 200, path
    assert "0.1.0" in daemon.get("/version")[1]


def test_unknown_route_and_method(daemon):
    status, _, body = send(daemon, "GET", "/v1/nothing")
    assert status == 404 and "/v1/nothing" in error_of(body)["message"]
    status, headers, body = send(daemon, "GET", "/v1/chat/completions")
    assert status == 405 and "POST" in headers["Allow"]
    error_of(body)
    assert send(daemon, "DELETE", "/v1/models")[0] == 405


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/jsonx"}], ids=str)
def test_only_json_is_taken(daemon, headers):
    status, _, body = send(daemon, "POST", "/v1/chat/completions", chat(daemon), headers)
    assert status == 415
    assert "application/json" in error_of(body)["message"]


def test_json_with_charset_is_taken(daemon):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert send(daemon, "POST", "/v1/chat/completions", chat(daemon), headers)[0] == 200


@pytest.mark.parametrize("body, quoted", [
    ("", ""), ("{", ""), ("[]", ""), ('{"model": "x",}', ""), ("nul", ""), ('"x"', ""),
    ("[" * 100 + "]" * 100, "64"), ('{"model":' * 70 + "1" + "}" * 70, "64"),
], ids=lambda value: str(value)[:12])
def test_what_is_no_request_is_refused(daemon, body, quoted):
    status, _, answer = send(daemon, "POST", "/v1/chat/completions", body)
    assert status == 400 and quoted in error_of(answer)["message"]


def test_text_that_is_no_utf8_is_refused(daemon):
    body = chat(daemon).encode().replace(b"museum", b"mus\xffum")
    status, _, answer = send(daemon, "POST", "/v1/chat/completions", body)
    assert status == 400
    error_of(answer)


def test_body_bound(daemon):
    connection = http.client.HTTPConnection(daemon.http, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str((16 << 20) + 1))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        error_of(response.read())


def test_header_bound(daemon):
    status, _, _ = send(daemon, "GET", "/health", headers={"X-Long": "x" * (33 << 10)})
    assert status == 431


def test_request_id_is_echoed(daemon):
    _, headers, _ = send(daemon, "POST", "/v1/chat/completions", chat(daemon), {**JSON, "X-Request-Id": "abc-123"})
    assert headers["x-request-id"] == "abc-123"
    _, headers, _ = send(daemon, "POST", "/v1/chat/completions", chat(daemon), {**JSON, "X-Request-Id": "y" * 129})
    assert headers["x-request-id"] and headers["x-request-id"] != "y" * 129


def test_an_api_key_is_no_obstacle_and_cors_is_off(daemon):
    status, headers, _ = send(daemon, "POST", "/v1/chat/completions", chat(daemon),
                              {**JSON, "Authorization": "Bearer sk-x", "Origin": "http://evil.example"})
    assert status == 200 and "Access-Control-Allow-Origin" not in headers


def test_stream_is_server_sent_events(daemon):
    status, headers, body = send(daemon, "POST", "/v1/chat/completions", chat(daemon, stream=True))
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    events = [line for line in body.decode().split("\n\n") if line]
    assert events[-1] == "data: [DONE]" and all(event.startswith("data: ") for event in events)
    assert all(json.loads(event[6:])["object"] == "chat.completion.chunk" for event in events[:-1])


def test_an_error_before_a_stream_is_a_plain_error(daemon):
    status, headers, body = send(daemon, "POST", "/v1/chat/completions", chat(daemon, stream=True, temperature=-1))
    assert status == 400 and headers["Content-Type"].startswith("application/json")
    assert error_of(body)["param"] == "temperature"


def test_keep_alive_serves_many_requests_on_one_connection(daemon):
    connection = http.client.HTTPConnection(daemon.http, timeout=PATIENCE)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("POST", "/v1/chat/completions", chat(daemon), JSON)
            response = connection.getresponse()
            assert response.status == 200 and json.loads(response.read())["choices"]


def test_tokenize_and_back(daemon):
    text = "Grüße aus Graz: 400 clocks 🕰"
    status, got = daemon.post("/tokenize", {"model": daemon.model, "prompt": text})
    assert status == 200 and got["count"] == len(got["tokens"]) and got["max_model_len"] == 16384
    assert daemon.post("/detokenize", {"model": daemon.model, "tokens": got["tokens"]}) == (200, {"prompt": text})
    status, got = daemon.post("/detokenize", {"model": daemon.model, "tokens": [999999]})
    assert status == 400 and "999999" in got["error"]["message"]


def test_a_disconnect_cancels(daemon):
    with daemon.aborts():
        connection = endless(daemon)
        read_until(connection, b"data: ")
        daemon.wait_for_metric("vllm:num_requests_running", 1)
        connection.close()
    daemon.wait_for_metric("vllm:kv_cache_usage_perc", 0)


def test_a_full_queue_is_429(start):
    with contextlib.ExitStack() as stack:
        daemon = start(MODEL, "--max-context", "16384", "--max-num-seqs", "1", "--max-queued-requests", "1")
        running = stack.enter_context(endless(daemon))
        read_until(running, b"data: ")
        waiting = stack.enter_context(endless(daemon))
        daemon.wait_for_metric("vllm:num_requests_waiting", 1)
        status, headers, body = send(daemon, "POST", "/v1/chat/completions", chat(daemon))
        assert status == 429 and int(headers["Retry-After"]) >= 1
        assert error_of(body)["type"] == "rate_limit_error"
        running.close()  # its place goes to the one that waits
        read_until(waiting, b"data: ")
    daemon.wait_for_metric("vllm:num_requests_running", 0)
    assert send(daemon, "POST", "/v1/chat/completions", chat(daemon))[0] == 200
    assert daemon.stop() == 0


METRICS = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info",
           "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total",
           "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_count",
           "vllm:inter_token_latency_seconds_count", "vllm:e2e_request_latency_seconds_count",
           "vllm:request_queue_time_seconds_count", "vllm:num_preemptions_total", "vllm:request_success_total"]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_carry_the_known_names(daemon, name):
    daemon.metric(name, model_name=daemon.model)


def test_a_long_tokenize_stops_no_stream(daemon):
    """Twice 2 MiB, two seconds of work each: as many of them as threads write the text of streams, which would not write
    until one of them is done. Measured by that work and not in seconds, which a busy machine makes long."""
    body = json.dumps({"prompt": "The museum opened in Graz. " * (2 * 2**20 // 27)})
    with contextlib.ExitStack() as streams, concurrent.futures.ThreadPoolExecutor(2) as pool:
        stream = streams.enter_context(endless(daemon))
        read_until(stream, b"data: ")
        longest, last, tail = 0.0, time.monotonic(), b""
        begun = last
        posts = [pool.submit(send, daemon, "POST", "/tokenize", body) for _ in range(2)]
        ended = []
        for post in posts:
            post.add_done_callback(lambda _: ended.append(time.monotonic()))
        while not all(post.done() for post in posts):
            piece = stream.recv(65536)
            assert piece, "the stream was cut"
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            if b"[DONE]" in tail + piece:  # a GPU may be done before the tokenizer
                stream, piece = streams.enter_context(endless(daemon)), b""
            tail = piece[-8:]
        assert [post.result()[0] for post in posts] == [200, 200]
    assert longest < (max(ended) - begun) / 3, "a half of it, without threads of their own"


def test_metrics_count(daemon):
    names = ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prefix_cache_hits_total"]
    daemon.wait_for_metric("vllm:num_requests_running", 0)
    before = {name: daemon.metric(name) for name in names}
    stops = daemon.metric(FINISHED, finished_reason="stop")
    usage = json.loads(send(daemon, "POST", "/v1/chat/completions", chat(daemon))[2])["usage"]
    # The counters follow the answer within a step.
    daemon.wait_for_metric(FINISHED, stops + 1, finished_reason="stop")
    grown = {name: daemon.metric(name) - before[name] for name in names}
    assert grown == {"vllm:prompt_tokens_total": usage["prompt_tokens"],
                     "vllm:generation_tokens_total": usage["completion_tokens"],
                     "vllm:prefix_cache_hits_total": usage["prompt_tokens_details"]["cached_tokens"]}


def test_garbage_on_the_wire_leaves_the_server_standing(daemon):
    for garbage in (b"\x16\x03\x01\x02\x00\x01" * 20, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"\r\n" * 50, b"G"):
        with socket.create_connection(daemon.http.rsplit(":", 1), timeout=PATIENCE) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert daemon.get("/health")[0] == 200
