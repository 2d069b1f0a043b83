"""A prefix from the cache gives what computing it gives: 200 random prompts, cut at random points, in float32."""

import random
from concurrent.futures import ThreadPoolExecutor

from conftest import MODEL

PROMPTS = 200
NEW_TOKENS = 12


def complete(daemon, prompt, salt, new_tokens=NEW_TOKENS):
    """(tokens, their log-probabilities, cached tokens). Prefixes are shared within a salt only."""
    status, got = daemon.post("/v1/completions", {
        "model": "t6-docqa-14m", "prompt": prompt, "temperature": 0, "max_tokens": new_tokens, "ignore_eos": True,
        "logprobs": 0, "return_token_ids": True, "cache_salt": salt})
    assert status == 200, got
    choice = got["choices"][0]
    return (choice["token_ids"], choice["logprobs"]["token_logprobs"],
            got["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_cached_equals_cold(start, capsys):
    daemon = start(MODEL, "--dtype", "f32")
    draw = random.Random(20)
    jobs = []
    for number in range(PROMPTS):
        prompt = [draw.randrange(5, 8192) for _ in range(draw.randrange(2, 400))]
        jobs.append((number, prompt, draw.randrange(1, len(prompt))))

    def difference(job):
        number, prompt, cut = job
        cold_tokens, cold, reused = complete(daemon, prompt, f"cold {number}")
        assert reused == 0
        complete(daemon, prompt[:cut], f"cached {number}", new_tokens=1)
        tokens, cached, reused = complete(daemon, prompt, f"cached {number}")
        assert min(cut, len(prompt) - 1) == reused, f"prompt {number}: {reused} tokens reused of {cut}"
        assert tokens == cold_tokens, f"prompt {number}, cut at {cut}"
        return max(abs(a - b) for a, b in zip(cold, cached, strict=True))

    with ThreadPoolExecutor(6) as pool:
        largest = max(pool.map(difference, jobs))
    with capsys.disabled():
        print(f"\n{PROMPTS} prompts: largest difference of log-probabilities {largest:.2e}", end=" ")
    assert largest <= 1e-4
    daemon.wait_for_metric("vllm:kv_cache_usage_perc", 0)
    assert daemon.stop() == 0
