"""Factors in eight bits: half the bytes a token, answers that stand, and nothing that pretends to be another type."""

import json
import random
import subprocess

import pytest
from conftest import ANSWERS, BIN, MODEL, messages


def ask(daemon, question):
    status, got = daemon.post("/v1/chat/completions", {
        "model": daemon.model, "messages": messages(question), "temperature": 0, "max_tokens": 20})
    assert status == 200, got
    return got["choices"][0]["message"]["content"].strip(), got["usage"]["prompt_tokens_details"]["cached_tokens"]


def prompt_logprobs(daemon, prompt, salt):
    status, got = daemon.post("/v1/completions", {
        "model": daemon.model, "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 0, "echo": True,
        "cache_salt": salt})
    assert status == 200, got
    return got["choices"][0]["logprobs"]["token_logprobs"][1:len(prompt)]


def plan(*flags):
    out = subprocess.run([BIN / "t6d", "--model", MODEL, "--device", "cpu", "--plan", *flags], check=True,
                         capture_output=True, text=True).stdout
    return next(line for line in out.splitlines() if line.startswith("types")), int(out.split("MiB: ")[1].split()[0])


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_fp8_answers_from_cold_and_cached_factors(start, dtype):
    daemon = start(MODEL, "--dtype", dtype, "--cache-dtype", "fp8")
    model = json.loads(daemon.get("/v1/models")[1])["data"][0]["t6"]
    assert (model["dtype"], model["cache_dtype"]) == (dtype, "fp8")
    assert 'cache_dtype="fp8"' in daemon.get("/metrics")[1]
    reused = []
    for question, answer in ANSWERS.items():
        text, cached = ask(daemon, question)
        assert text.lower() == answer.lower()
        reused.append(cached)
    assert reused[0] == 0 and min(reused[1:]) > 20
    assert daemon.stop() == 0


def test_fp8_is_near_bf16_and_is_not_bf16(start):
    draw = random.Random(8)
    prompts = [[draw.randrange(5, 8192) for _ in range(150)] for _ in range(8)]
    wide, narrow = start(MODEL), start(MODEL, "--cache-dtype", "fp8")
    differences = []
    for number, prompt in enumerate(prompts):
        a, b = (prompt_logprobs(daemon, prompt, f"prompt {number}") for daemon in (wide, narrow))
        differences += [abs(x - y) for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / len(differences)
    assert 0.005 < mean < 0.5, mean
    for daemon in (wide, narrow):
        assert daemon.stop() == 0


def test_fp8_pages_are_planned_at_their_size():
    wide, narrow = plan("--cache-bytes", "1GiB"), plan("--cache-bytes", "1GiB", "--cache-dtype", "fp8")
    assert wide[0].split(None, 1)[1] == "bf16 weights and products, bf16 factors"
    assert narrow[0].split(None, 1)[1] == "bf16 weights and products, fp8 factors"
    assert narrow[1] / wide[1] == pytest.approx(39424 / 20736, rel=1e-3)
