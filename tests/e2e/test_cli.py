"""t6, the command-line client, against the real daemon."""

import json
import signal
import subprocess

import pytest

from conftest import ANSWERS, BIN, DOCUMENT, FINISHED, MODEL, PATIENCE


@pytest.fixture
def t6(daemon):
    def run(*arguments, typed="", server=None):
        command = [BIN / "t6", *arguments, "--server", server or daemon.grpc]
        return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=PATIENCE)
    return run


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(DOCUMENT + "\n")
    return str(path)


def test_ask(t6, document):
    got = t6("ask", "--document", document, "--stats", *(f"  {question}\n" for question in ANSWERS))
    assert (got.returncode, got.stdout.splitlines()) == (0, list(ANSWERS.values())), got.stderr
    assert len([line for line in got.stderr.splitlines() if "cached" in line and "first token" in line]) == 3


def test_ask_json(t6, document):
    got = t6("ask", "--document", document, "--json", *ANSWERS)
    rows = [json.loads(line) for line in got.stdout.splitlines()]
    assert {row["question"]: row["answer"].strip() for row in rows} == ANSWERS
    for row in rows:
        assert 0 < row["first_token_ms"] <= row["total_ms"] and row["finish_reason"] == "stop"
    assert all(30 < row["usage"]["cached_tokens"] < row["usage"]["prompt_tokens"] for row in rows[1:])


def test_ask_from_standard_input_with_options(t6):
    got = t6("ask", "--document", "-", "--max-tokens=1", "--seed", "3", "--temperature", "0", "--json",
             "When did the museum open?", typed=DOCUMENT)
    row = json.loads(got.stdout)
    assert row["usage"]["completion_tokens"] == 1 and row["finish_reason"] == "length"


def test_system_changes_the_prompt(t6, document):
    plain, changed = (json.loads(t6("ask", "--document", document, "--json", *more, "Who?").stdout)
                      for more in ([], ["--system", "Answer."]))
    assert changed["usage"]["prompt_tokens"] < plain["usage"]["prompt_tokens"]


def test_chat_remembers(t6, document):
    got = t6("chat", "--document", document, "--stats", typed="Who founded the museum?\n\nWhen did the museum open?\n/exit\nno\n")
    assert got.returncode == 0 and got.stdout.splitlines()[0] == "Clara Weiss", got
    first, second = (line for line in got.stderr.splitlines() if "cached" in line)
    tokens = [int(line.split(" of ")[1].split()[0]) for line in (first, second)]
    assert len(got.stdout.splitlines()) == 2 and tokens[1] > tokens[0]


def test_models_and_health(t6, daemon):
    assert daemon.model in t6("models").stdout
    assert json.loads(t6("models", "--json").stdout)[0]["vocab_size"] == 8192
    assert (t6("health").stdout, t6("health", "t6.v1.Chat").returncode) == ("SERVING\n", 0)
    unknown = t6("health", "t6.v1.Nothing")
    assert unknown.returncode == 1 and "t6.v1.Nothing" in unknown.stderr


def test_the_servers_refusal_is_shown(t6):
    got = t6("ask", "--model", "no-such-model", "Who?")
    assert got.returncode == 1 and "no-such-model" in got.stderr and got.stdout == ""


def test_no_server(t6):
    got = t6("ask", "Who?", server="127.0.0.1:1")
    assert got.returncode == 3 and "127.0.0.1:1" in got.stderr and "--server" in got.stderr


@pytest.mark.parametrize("arguments, quoted", [
    (["ask"], "question"), (["ask", " "], "empty"), (["dance"], "dance"), (["ask", "--temprature", "1", "Who?"], "--temprature"),
    (["ask", "--temperature", "hot", "Who?"], "hot"), (["ask", "--seed", "-1", "Who?"], "-1"),
    (["ask", "--max-tokens", "0", "Who?"], "'0'"), (["chat", "hello"], "hello"), (["models", "--seed", "1"], "--seed"),
    (["ask", "--document", "/no/such/file", "Who?"], "/no/such/file"), (["ask", "--document", "/", "Who?"], "folder"),
    (["ask", "--document", "/dev/zero", "Who?"], "larger"),
    (["ask", "--server", "http://127.0.0.1:8000", "Who?"], "HOST:PORT"), (["ask", "Who?", "--seed"], "--seed"),
    (["ask", "--api-key", "two words", "Who?"], "visible"), (["chat", "--api-key", "@/no/such/file"], "/no/such/file"),
], ids=str)
def test_wrong_usage(arguments, quoted):
    got = subprocess.run([BIN / "t6", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert got.returncode == 2 and quoted in got.stderr and got.stdout == ""


def test_a_document_that_is_no_text(t6, tmp_path):
    path = tmp_path / "latin-1.txt"
    path.write_bytes("The café opened in 1952.".encode("latin-1"))
    got = t6("ask", "--document", path, "When?")
    assert got.returncode == 2 and "UTF-8" in got.stderr and str(path) in got.stderr and got.stdout == ""


@pytest.mark.parametrize("command", [
    ["t6", "key", "acme"], ["t6", "--help"], ["t6d", "--model", MODEL, "--plan"], ["t6-checkpoint", "info", "--tensors", MODEL],
], ids=lambda command: " ".join(command[:2]))
def test_a_full_disk_is_an_error(command):
    with open("/dev/full", "w") as full:
        got = subprocess.run([BIN / command[0], *command[1:]], stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert got.returncode == 1 and "No space left" in got.stderr


def test_help():
    for arguments in (["--help"], ["ask", "--help"], ["chat", "-h"], ["models", "--help"], ["health", "--help"]):
        got = subprocess.run([BIN / "t6", *arguments], capture_output=True, text=True, timeout=PATIENCE)
        assert got.returncode == 0 and got.stdout.startswith("usage: t6 ") and got.stderr == ""
    assert subprocess.run([BIN / "t6", "help"], capture_output=True, timeout=PATIENCE).returncode == 0
    # After a command the word is a question like any other.
    asked = subprocess.run([BIN / "t6", "ask", "--server", "127.0.0.1:1", "help"], capture_output=True, text=True, timeout=PATIENCE)
    assert asked.returncode == 3 and asked.stdout == ""


def test_interrupt_cancels_the_stream(daemon):
    command = [BIN / "t6", "ask", "--server", daemon.grpc, "--temperature", "1.5", "--seed", "5", "--max-tokens", "15000",
               "Tell me everything"]
    aborted = daemon.metric(FINISHED, finished_reason="abort")
    # Hot draws end soon by chance; of a few seeds one goes on long enough to be interrupted.
    for seed in range(20):
        command[command.index("--seed") + 1] = str(seed)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            got = b""
            while len(got) < 20 and (piece := process.stdout.read1(64)):
                got += piece
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
        daemon.wait_for_metric("vllm:num_requests_running", 0)
        if daemon.metric(FINISHED, finished_reason="abort") > aborted:
            assert process.returncode == 130
            return
    raise AssertionError("no answer was long enough to interrupt, or ctrl-C did nothing")
