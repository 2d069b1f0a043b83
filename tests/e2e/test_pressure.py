"""More requests than the cache has room for: preempted and cancelled ones leave no trace, the others their right answer."""

import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor

from conftest import MODEL, PATIENCE

REQUESTS = 48
NEW_TOKENS = 320
# 70 pages of 64 tokens in float32; 16 requests that grow to 6 to 9 pages want more.
FLAGS = ("--dtype", "f32", "--cache-bytes", "32MiB", "--max-num-seqs", "16")


def body(prompt, salt, **more):
    return {"model": "t6-docqa-14m", "prompt": prompt, "temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True,
            "return_token_ids": True, "cache_salt": salt, **more}


def complete_all(daemon, prompts, salt):
    """In one request."""
    status, got = daemon.post("/v1/completions", body(prompts, salt))
    assert status == 200, got
    return [choice["token_ids"] for choice in sorted(got["choices"], key=lambda choice: choice["index"])]


def complete(daemon, prompt, salt):
    (tokens,) = complete_all(daemon, [prompt], salt)
    return tokens


def begin_and_leave(daemon, prompt, salt):
    """Streams, and hangs up after the first tokens."""
    connection = http.client.HTTPConnection(daemon.http, timeout=PATIENCE)
    connection.request("POST", "/v1/completions", json.dumps(body(prompt, salt, stream=True)),
                       {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200 and response.readline().startswith(b"data: ")
    response.close()
    connection.close()


def test_pressure_changes_no_answer(start, capsys):
    daemon = start(MODEL, *FLAGS)
    draw = random.Random(7)
    prompts = [[draw.randrange(5, 8192) for _ in range(draw.randrange(60, 250))] for _ in range(REQUESTS)]

    def one(number):
        if number % 3 == 0:
            begin_and_leave(daemon, prompts[number], "together")
            return None
        return complete(daemon, prompts[number], "together")

    # Sixteen run at once whatever the clients' threads do.
    batch = complete_all(daemon, prompts[:16], "batch")
    assert daemon.metric("vllm:num_preemptions_total") > 0
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(one, range(REQUESTS)))
    daemon.wait_for_metric("vllm:num_requests_running", 0)
    daemon.wait_for_metric("vllm:num_requests_waiting", 0)
    daemon.wait_for_metric("vllm:kv_cache_usage_perc", 0)
    preempted = daemon.metric("vllm:num_preemptions_total")
    with capsys.disabled():
        print(f"\n{REQUESTS} requests, {preempted:.0f} preemptions", end=" ")
    for number in range(1, REQUESTS, 6):
        if together[number] is not None:
            alone = complete(daemon, prompts[number], "alone")
            assert alone == together[number], number
            assert number >= len(batch) or alone == batch[number], number
    assert daemon.stop() == 0
