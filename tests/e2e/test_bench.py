"""t6 bench against the real daemon, over both transports."""

import json
import signal
import subprocess
import time
import xml.etree.ElementTree

import pytest

from conftest import BIN, FINISHED, PATIENCE, ROOT

SMALL = ["--documents", "4", "--questions", "4", "--document-words", "80", "--max-tokens", "8"]


def bench(*arguments, timeout=2 * PATIENCE):
    return subprocess.run([BIN / "t6", "bench", *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(params=["grpc", "http"])
def where(request, daemon):
    return ["--grpc", daemon.grpc] if request.param == "grpc" else ["--http", daemon.url]


def test_closed_loop_counts_what_the_server_counts(daemon, where, tmp_path):
    asked = "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prefix_cache_hits_total"
    before = [daemon.metric(name) for name in asked]
    out, svg, samples = (tmp_path / name for name in ("o.json", "o.svg", "o.jsonl"))
    got = bench(*where, *SMALL, "--requests", 64, "--concurrency", 8, "--seed", 11 if "--http" in where else 12,
                "--json", out, "--svg", svg, "--samples", samples)
    assert got.returncode == 0, got.stderr
    figures = json.loads(out.read_text())
    assert (figures["answered"], figures["failed"], figures["errors"]) == (64, 0, {})
    counted = [daemon.metric(name) - was for name, was in zip(asked, before)]
    assert [figures["prompt_tokens"], figures["completion_tokens"], figures["cached_tokens"]] == counted
    # 16 prompts asked four times each: all but the first reading of each document is cached.
    assert figures["cached_ratio"] > 0.75
    for name in ("first_token_ms", "end_to_end_ms"):
        d = figures[name]
        assert d["count"] == 64 and 0 < d["p50"] <= d["p90"] <= d["p99"] <= d["max"]
    assert figures["first_token_ms"]["p50"] <= figures["end_to_end_ms"]["p50"] and figures["token_gap_ms"]["count"] > 0
    assert "64 of 64 requests answered" in got.stdout and "to the first token" in got.stdout
    xml.etree.ElementTree.parse(svg)
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 64 and {row["document"] for row in rows} == {0, 1, 2, 3}
    assert all(row["due_ms"] < row["first_token_ms"] <= row["end_ms"] for row in rows)


def test_open_loop_keeps_its_rate(where):
    got = bench(*where, *SMALL, "--rate", 40, "--duration", "2s", "--json", "-")
    figures = json.loads(got.stdout)
    assert got.returncode == 0 and figures["failed"] == 0 and figures["not_sent"] == 0, got.stderr
    # 80 expected; five standard deviations. The seed decides, not how late the machine is with sending them.
    assert 35 <= figures["answered"] <= 125


def test_same_seed_same_prompts(where):
    one, again, other = (json.loads(bench(*where, *SMALL, "--requests", 10, "--concurrency", 1, "--seed", seed,
                                          "--json", "-").stdout) for seed in (21, 21, 22))
    assert one["prompt_tokens"] == again["prompt_tokens"] and one["completion_tokens"] == again["completion_tokens"]
    assert one["prompt_tokens"] != other["prompt_tokens"]


def test_document_tokens_are_the_servers_tokens(where):
    figures = json.loads(bench(*where, "--documents", 2, "--questions", 2, "--document-tokens", 700, "--requests", 4,
                               "--max-tokens", 4, "--json", "-").stdout)
    assert 650 < figures["prompt_tokens"] / 4 < 800


def test_prompts_from_the_file_that_ships(where):
    got = bench(*where, "--prompts", ROOT / "bench/data/template-documents.json", "--requests", 20, "--warmup", 4,
                "--max-tokens", 8, "--json", "-")
    assert got.returncode == 0 and json.loads(got.stdout)["answered"] == 20, got.stderr


def test_refusals_are_counted_by_code(where, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "word " * 30000}]}) + "\n")
    got = bench(*where, "--prompts", prompts, "--requests", 3, "--json", "-")
    figures = json.loads(got.stdout)
    code = "400" if "--http" in where else "INVALID_ARGUMENT"
    assert got.returncode == 1 and figures["failed"] == 3
    assert figures["errors"][code]["count"] == 3 and "context" in figures["errors"][code]["example"]


def test_a_timeout_is_a_failure(where):
    code = "timeout" if "--http" in where else "DEADLINE_EXCEEDED"
    milliseconds, after_text = 300, 0
    while after_text < 2:  # twice as long each time, until both have text when their time is over
        got = bench(*where, *SMALL, "--requests", 2, "--concurrency", 1, "--max-tokens", 10000, "--ignore-eos",
                    "--timeout", f"{milliseconds}ms", "--json", "-")
        figures = json.loads(got.stdout)
        assert got.returncode == 1 and figures["errors"][code]["count"] == figures["failed"] == 2
        milliseconds, after_text = 2 * milliseconds, figures["errors"][code]["after_text"]


def test_ctrl_c_reports_what_was_measured(daemon, where, tmp_path):
    out = tmp_path / "o.json"
    command = [BIN / "t6", "bench", *where, *SMALL, "--duration", "3600s", "--concurrency", "2", "--json", out]
    before = daemon.metric(FINISHED)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while daemon.metric(FINISHED) < before + 3:  # the third was sent because one had been answered
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    figures = json.loads(out.read_text())
    assert figures["interrupted"] and figures["answered"] > 0


def test_hundreds_of_clients(where):
    got = bench(*where, *SMALL, "--concurrency", 300, "--requests", 600, "--timeout", "240s", "--json", "-")
    figures = json.loads(got.stdout)
    assert (figures["answered"], got.returncode) == (600, 0), figures["errors"]


def test_no_server():
    for where in (["--grpc", "127.0.0.1:1"], ["--http", "http://127.0.0.1:1"]):
        got = bench(*where)
        assert got.returncode == 3 and "127.0.0.1:1" in got.stderr and got.stdout == ""


def test_progress_is_plain_lines_off_a_terminal(where):
    got = bench(*where, *SMALL, "--duration", "6s", "--concurrency", 2)
    lines = got.stderr.splitlines()
    assert lines and all("\r" not in line and "%" in line and "first token" in line for line in lines)
    assert bench(*where, *SMALL, "--quiet").stderr == ""


def test_help_and_wrong_usage():
    assert bench("--help").stdout.startswith("usage: t6 bench ")
    got = bench("--rate", "fast")
    assert got.returncode == 2 and "fast" in got.stderr and got.stdout == ""
