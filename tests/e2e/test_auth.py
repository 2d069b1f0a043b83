"""API keys on both ports of the real daemon, and what they are for: tenants that share no prefix."""

import json
import pathlib
import signal
import subprocess
import time

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import BIN, MODEL, messages, patiently
from test_http import JSON, send

LONG = "Answer the question from the document. Be short.\n\n" + "The museum in Graz has four hundred clocks. " * 40


def make_key(tenant):
    made = subprocess.run([BIN / "t6", "key", tenant, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(made.stdout)


@pytest.fixture(scope="module")
def keys():
    return {name: make_key(tenant) for name, tenant in (("a", "acme"), ("a2", "acme"), ("b", "other"))}


@pytest.fixture(scope="module")
def key_file(keys, tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("".join(key["line"] + "\n" for key in keys.values()))
    return path


@pytest.fixture(scope="module")
def guarded(start, key_file):
    return start(MODEL, "--api-key-file", key_file, "--cache-bytes", "64MiB")


def ask(daemon, key, system=LONG):
    client = openai.OpenAI(base_url=daemon.url + "/v1", api_key=key["key"], max_retries=0)
    answer = client.chat.completions.create(model="t6-docqa-14m", messages=messages("Where?", system), max_tokens=4)
    return answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens


def logged(daemon, text):
    """The log, once this is in it."""
    for _ in patiently():
        assert daemon.process.poll() is None
        if text in (log := daemon.log()):
            return log


def test_tenants_never_see_each_others_prefixes_and_a_tenants_keys_share_theirs(guarded, keys):
    prompt, cached = ask(guarded, keys["a"])
    assert prompt > 300 and cached == 0
    assert ask(guarded, keys["b"])[1] == 0, "another tenant's prefix was reused"
    assert ask(guarded, keys["a2"])[1] > 300, "the same tenant's other key does not share its prefixes"
    assert ask(guarded, keys["b"])[1] > 300


def test_over_http_what_is_open_and_what_is_not(guarded, keys):
    for path in ("/health", "/livez", "/readyz", "/metrics", "/version", "/"):
        assert guarded.get(path)[0] == 200
    body = json.dumps({"messages": messages("Where?"), "max_tokens": 1}).encode()
    for headers in (JSON, {**JSON, "Authorization": "Bearer nonsense"}):
        status, answer_headers, text = send(guarded, "POST", "/v1/chat/completions", body, headers)
        assert status == 401 and answer_headers["WWW-Authenticate"] == "Bearer"
        assert json.loads(text)["error"]["code"] == "invalid_api_key"
    good = {**JSON, "Authorization": "Bearer " + keys["a"]["key"]}
    assert send(guarded, "POST", "/v1/chat/completions", body, good)[0] == 200
    with pytest.raises(openai.AuthenticationError):
        ask(guarded, {"key": "nonsense"})
    log = logged(guarded, "tenant=acme")
    assert keys["a"]["key"] not in log and "nonsense" not in log


def test_over_grpc_and_with_t6(guarded, keys, wire):
    with grpc.insecure_channel(guarded.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        models = wire.models_pb2_grpc.ModelsStub(channel)
        for metadata in ((), (("authorization", "Bearer nonsense"),)):
            with pytest.raises(grpc.RpcError) as error:
                models.List(wire.models_pb2.ListModelsRequest(), metadata=metadata)
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        good = (("authorization", "Bearer " + keys["b"]["key"]),)
        assert models.List(wire.models_pb2.ListModelsRequest(), metadata=good).models
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    command = [BIN / "t6", "models", "--server", guarded.grpc]
    refused = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert refused.returncode == 1 and "--api-key" in refused.stderr
    subprocess.run([*command, "--api-key", keys["b"]["key"]], check=True, stdout=subprocess.PIPE)


def test_sighup_reads_the_keys_again_and_bad_ones_change_nothing(start, keys, tmp_path):
    path = pathlib.Path(tmp_path / "keys")
    path.write_text(keys["a"]["line"])
    daemon = start(MODEL, "--api-key-file", path)

    def becomes(key, status):
        for _ in patiently():
            if send(daemon, "GET", "/v1/models", None, {"Authorization": "Bearer " + key["key"]})[0] == status:
                return

    becomes(keys["a"], 200)
    path.write_text(keys["b"]["line"])
    daemon.process.send_signal(signal.SIGHUP)
    becomes(keys["b"], 200)
    becomes(keys["a"], 401)
    path.write_text("nonsense\n")
    daemon.process.send_signal(signal.SIGHUP)
    logged(daemon, "keys stay as they were")
    becomes(keys["b"], 200)
    assert daemon.stop() == 0


def test_refused_keys_are_logged_once_in_a_while_and_never_themselves(guarded, keys):
    for _ in range(30):
        assert send(guarded, "GET", "/v1/models", None, {"Authorization": "Bearer guessed-key"})[0] == 401
    lines = [line for line in logged(guarded, "without a known API key").splitlines() if "without a known API key" in line]
    assert len(lines) <= 1 + (time.monotonic() - guarded.started) / 10 and "over http" in lines[0]
    assert "guessed-key" not in guarded.log()


def test_sighup_without_keys_ends_nothing(start):
    daemon = start(MODEL)
    daemon.process.send_signal(signal.SIGHUP)
    logged(daemon, "SIGHUP: there is no --api-key-file")
    assert send(daemon, "GET", "/readyz")[0] == 200
    assert daemon.stop() == 0
