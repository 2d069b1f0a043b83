#!/usr/bin/env python3
"""The demo: starts t6d on the model that ships, asks three questions about one document over gRPC (with `t6 ask`) and
over HTTP, prints answers, cached tokens and times, stops the server. Fails when an answer is wrong.

usage: demo.py BIN_FOLDER MODEL_FOLDER
"""

import json
import pathlib
import subprocess
import sys
import time

from t6_daemon import Daemon, StartError

FILE = pathlib.Path(__file__).resolve().parents[1] / "models/t6-docqa-14m/museum.txt"
DOCUMENT = FILE.read_text().strip()
QUESTIONS = {"When did the museum open?": "1931", "Who founded the museum?": "Clara Weiss",
             "How much is a ticket?": "six euros"}
SYSTEM = "Answer the question from the document. Be short.\n\n" + DOCUMENT
ROW = "{:<6} {:<28} {:<14} {:>8} {:>8} {:>12} {:>9}"


def over_grpc(daemon, client):
    command = [client, "ask", "--server", daemon.grpc, "--json", "--document", FILE, *QUESTIONS]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout.decode().splitlines()
    for line in lines:
        got = json.loads(line)
        usage = got["usage"]
        yield (got["question"], got["answer"], usage["prompt_tokens"], usage["cached_tokens"],
               got["first_token_ms"], got["total_ms"])


def over_http(daemon, model):
    for question in QUESTIONS:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        started = time.monotonic()
        status, got = daemon.post("/v1/chat/completions", {"model": model, "messages": messages, "temperature": 0})
        if status != 200:
            raise SystemExit(f"demo: HTTP {status}: {got}")
        usage = got["usage"]
        yield (question, got["choices"][0]["message"]["content"], usage["prompt_tokens"],
               usage["prompt_tokens_details"]["cached_tokens"], None, (time.monotonic() - started) * 1000)


def main():
    binaries, model = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    print(f"\ndocument: {DOCUMENT}\n")
    wrong = []
    with Daemon(binaries / "t6d", model) as daemon:
        name = json.loads(daemon.get("/v1/models")[1])["data"][0]["id"]
        print(f"t6d serves {name}, ready after {daemon.seconds_to_ready * 1000:.0f} ms\n")
        print(ROW.format("over", "question", "answer", "prompt", "cached", "first token", "total"))
        for transport, rows in (("gRPC", over_grpc(daemon, binaries / "t6")), ("HTTP", over_http(daemon, name))):
            for asked, (question, answer, prompt, cached, first_ms, total_ms) in enumerate(rows):
                first = f"{first_ms:.1f} ms" if first_ms is not None else ""
                print(ROW.format(transport, question, answer.strip(), prompt, cached, first, f"{total_ms:.1f} ms"))
                if answer.strip() != QUESTIONS[question]:
                    wrong.append(f"{transport}: '{question}' was answered '{answer}', not '{QUESTIONS[question]}'")
                if asked > 0 and cached == 0:
                    wrong.append(f"{transport}: '{question}' reused nothing of the document")
        exit_code = daemon.stop()
    print("\nprompt, cached: tokens, and how many of them needed no computing. first token, total: as the client saw it.")
    if exit_code != 0:
        wrong.append(f"t6d exited with {exit_code}")
    for line in wrong:
        print(f"demo: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StartError, subprocess.SubprocessError) as error:
        sys.exit(f"demo: {error}")
