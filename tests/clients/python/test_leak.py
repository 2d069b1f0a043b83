"""Ten thousand requests, one after the other, of every kind: neither the server nor the client may grow.

What is measured is resident memory, descriptors and threads after the first thousand requests, when the cache of 64 MiB
is full and everything has happened once, and after the last. Minutes; T6_LEAK_REQUESTS makes it shorter. Run with -s to
see the figures.
"""

import json
import os
import pathlib
import re

from conftest import ROOT, TestDaemon
from t6client import BadRequestError, Client, system, user

REQUESTS = int(os.environ.get("T6_LEAK_REQUESTS", 10_000))
WARM = REQUESTS // 10
MOST_GROWTH = 1.05
INSTRUCTION = "Answer the question from the document. Be short.\n\n"
REPEATED = 60  # documents that fit the cache; what is new pushes them out by and by
DOCUMENTS = json.loads((ROOT / "bench/data/template-documents.json").read_text())


def one_request(client, number):
    """The kind depends on the number; every fifth document is one that was never seen before."""
    entry = DOCUMENTS[number % REPEATED]
    question = entry["questions"][number % len(entry["questions"])]["question"]
    document = f"Number {number}. {entry['document']}" if number % 5 == 0 else entry["document"]
    talk = [system(INSTRUCTION + document), user(question)]
    settings = {"temperature": 0, "max_tokens": 4, "affinity": f"document-{number % REPEATED}"}
    match number % 20:
        case 3:
            try:
                client.chat(talk, temperature=-1)
            except BadRequestError:
                return
            raise AssertionError("a negative temperature was accepted")
        case 7:
            with client.stream_complete(document, max_tokens=100, ignore_eos=True) as stream:
                next(stream)  # and is cancelled
        case 11:
            answer = client.complete([document[:200], "Tickets cost"], max_tokens=4, echo=True, logprobs=5, temperature=1.0)
            assert len(answer.choices[0].logprobs) > 10
        case 13:
            assert client.detokenize(client.tokenize(document).ids) == document
        case 17 | 19:
            with client.stream_chat(talk, **settings) as stream:
                assert sum(1 for _ in stream) > 1 and stream.usage.completion_tokens > 0
        case _:
            assert client.chat(talk, **settings).usage.completion_tokens > 0


def figures(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    # All but gRPC's default executor, which grows up to twice the cores when it has work for more.
    names = [task.read_text().strip() for task in pathlib.Path(f"/proc/{pid}/task").glob("*/comm")]
    threads = len(names) - names.count("default-executo")
    return {"rss_kib": memory, "threads": threads, "descriptors": len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))}


def test_ten_thousand_requests_leak_nothing():
    with TestDaemon("--cache-bytes", "64MiB") as daemon, Client(daemon.grpc) as client:
        rows = []
        for number in range(1, REQUESTS + 1):
            one_request(client, number)
            if number % WARM == 0:
                daemon.wait_for_metric("vllm:num_requests_running", 0)
                rows.append((number, figures(daemon.process.pid), figures("self")))
                print(*rows[-1], flush=True)
        assert daemon.metric("vllm:request_success_total") > 0.8 * REQUESTS
    for who in (1, 2):
        warm, last = rows[0][who], rows[-1][who]
        name = ("", "server", "client")[who]
        print(f"{name}: {warm['rss_kib']} KiB after {WARM} requests, {last['rss_kib']} KiB after {REQUESTS}, "
              f"{100 * (last['rss_kib'] / warm['rss_kib'] - 1):+.2f} %", flush=True)
        assert last["rss_kib"] <= MOST_GROWTH * warm["rss_kib"], rows
        assert last["descriptors"] <= warm["descriptors"] + 2 and last["threads"] <= warm["threads"] + 2, rows
