"""Replicas of the real t6d behind the real balancers, on loopback only, and clients that keep count.

Everything is bounded in number and time. A Fleet owns its daemons, a balancer its process and files.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time

import grpc

from conftest import MODEL, PATIENCE, ROOT, TestDaemon, patiently

MODEL_NAME = "t6-docqa-14m"
SERVICE_CONFIG = (ROOT / "proto/t6/v1/service_config.json").read_text()


# A loopback address of this process's own: what another process binds meanwhile is not among its free ports.
HOST = "127.{}.{}.{}".format(64 + (os.getpid() >> 16) % 64, (os.getpid() >> 8) % 256, 1 + os.getpid() % 254)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"127.0.0.1,localhost,{HOST}"


def free_ports(n):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind((HOST, 0))
        return [f"{HOST}:{one.getsockname()[1]}" for one in sockets]


class Fleet:
    """Daemons at addresses that they keep over a restart."""

    def __init__(self, n, *flags, grace="2s"):
        self.flags = ("--threads", 1, "--drain-grace", grace, "--drain-deadline", "60s", *flags)
        self.http, self.grpc = free_ports(n), free_ports(n)
        self.daemons = [self._start(i) for i in range(n)]

    def _start(self, i):
        return TestDaemon(MODEL, *self.flags, http=self.http[i], grpc=self.grpc[i])

    def restart(self, i):
        """SIGTERM, the whole drain, and a new one in its place."""
        assert self.daemons[i].stop(timeout=90) == 0
        self.daemons[i].close()
        self.daemons[i] = self._start(i)

    def kill(self, i):
        self.daemons[i].process.send_signal(signal.SIGKILL)
        self.daemons[i].process.wait()

    def totals(self, name, **labels):
        return [daemon.metric(name, **labels) for daemon in self.daemons]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for daemon in self.daemons:
            daemon.close()


class Balancer:
    """A process with one HTTP and one gRPC address in front of addresses of replicas.

    `steady`: nothing but its key decides where a request goes. What else the files that ship go by, a machine that is
    busy decides too: load, which counts the request before until its thread has run to its end, and health, of which a
    replica that was not scheduled for a second has none.
    """

    def __init__(self, http, grpc_addresses, steady=False):
        self.http, self.grpc, self.stats = free_ports(3)
        self.steady = steady
        self.folder = tempfile.TemporaryDirectory(prefix="t6-balancer-")
        self.log_path = pathlib.Path(self.folder.name) / "log"
        command, environment = self.command(http, grpc_addresses)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=subprocess.STDOUT)

    def wait(self, grpc_too=True):
        """Until it has found every replica well and sends requests of both kinds to somebody."""
        for _ in patiently():
            assert self.process.poll() is None, self.log_path.read_text()
            try:
                health = {name: is_well for name, is_well in self.health() if grpc_too or name.startswith("http")}
                if health and all(health.values()) and get(self.http, "/v1/models") == 200:
                    break
            except (OSError, http.client.HTTPException):
                pass
        if grpc_too:
            with channel(self.grpc) as one:
                grpc.channel_ready_future(one).result(timeout=PATIENCE)
        return self

    def edited(self, text):
        """The file that ships, for a balancer that is to be steady."""
        return edited(text, self.STEADY) if self.steady else text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def edited(text, edits):
    for old, new in edits.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


class HAProxy(Balancer):
    service_config = SERVICE_CONFIG
    STEADY = {"hash-balance-factor 125": "", "timeout check 1s": f"timeout check {PATIENCE}s"}

    def command(self, http, grpc_addresses):
        path = pathlib.Path(self.folder.name) / "haproxy.cfg"
        path.write_text(self.edited((ROOT / "deploy/haproxy/haproxy.cfg").read_text()))
        environment = {"T6_HTTP_BIND": self.http, "T6_GRPC_BIND": self.grpc, "T6_STATS_BIND": self.stats}
        for i, (one, other) in enumerate(zip(http, grpc_addresses), 1):
            environment |= {f"T6_HTTP_{i}": one, f"T6_GRPC_{i}": other}
        return ["haproxy", "-db", "-f", str(path)], environment

    def health(self):
        """By cluster and replica: whether the last answer to a probe was good."""
        for row in csv.DictReader(get_text(self.stats, "/;csv").removeprefix("# ").splitlines()):
            if row["check_status"]:
                yield f"{row['pxname']} {row['svname']}", row["check_status"].endswith("OK")


class RoundRobin(HAProxy):
    """HAProxy as it is without affinity, for comparison."""

    def edited(self, text):
        return edited(text, {"hash-type consistent sdbm avalanche": "", "hash-balance-factor 125": "",
                             "balance hash var(txn.k)": "balance roundrobin"})


class Envoy(Balancer):
    service_config = "{}"
    STEADY = {"consistent_hashing_lb_config: { hash_balance_factor: 125 }": "update_merge_window: 0s", "{ timeout: 1s,": f"{{ timeout: {PATIENCE}s,"}

    def command(self, http, grpc_addresses):
        text = self.edited((ROOT / "deploy/envoy/envoy.yaml").read_text())
        addresses = {"127.0.0.1:8000": self.http, "127.0.0.1:50051": self.grpc, "127.0.0.1:9901": self.stats}
        for i, (one, other) in enumerate(zip(http, grpc_addresses), 1):
            addresses |= {f"127.0.0.1:800{i}": one, f"127.0.0.1:5006{i}": other}
        for shipped, ours in addresses.items():
            old = "{{ address: {}, port_value: {} }}".format(*shipped.split(":"))
            assert old in text, old
            text = text.replace(old, "{{ address: {}, port_value: {} }}".format(*ours.split(":")))
        path = pathlib.Path(self.folder.name) / "envoy.yaml"
        path.write_text(text)
        envoy = ROOT / "build/deploy-venv/bin/envoy"
        return [str(envoy), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"], {}

    def health(self):
        for line in get_text(self.stats, "/clusters").splitlines():
            if "::health_flags::" in line:
                name, _, flags = line.partition("::health_flags::")
                yield name, flags == "healthy"

    def wait(self, grpc_too=True):
        super().wait(grpc_too)
        if not self.steady:
            time.sleep(1.5)  # what it finds gets into its rings within its window for that, a second
        return self


def get(address, path):
    with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def get_text(address, path):
    with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def channel(address, service_config="{}"):
    return grpc.insecure_channel(address, options=[
        ("grpc.enable_http_proxy", 0), ("grpc.service_config", service_config), ("grpc.use_local_subchannel_pool", 1)])


@dataclasses.dataclass
class Result:
    started: float
    document: int = 0
    first: float | None = None  # when the first token came
    ended: float = 0.0
    prompt: int = 0
    cached: int = 0
    error: str = ""  # what the client was told; empty: a whole answer


class Documents:
    """n texts of about 600 tokens that share no beginning, and a question each time a new one."""

    PLACES = "Graz Linz Wels Steyr Krems Baden Hall Bruck Lienz Enns".split()
    THINGS = "clocks maps bells coins masks looms lamps organs saddles globes".split()

    def __init__(self, n, seed=7):
        draw = random.Random(seed)
        self.texts = [f"Report {draw.randrange(10**9)}. " + " ".join(
            f"The house in {draw.choice(self.PLACES)} has {draw.randrange(10, 999)} {draw.choice(self.THINGS)}."
            for _ in range(38)) for _ in range(n)]

    def messages(self, document, question):
        return [{"role": "system", "content": "Answer the question from the document. Be short.\n\n" + self.texts[document]},
                {"role": "user", "content": f"What is in house {question}?"}]


def ask_http(address, documents, document, question, tokens):
    """One streamed chat over a connection of its own."""
    result = Result(time.monotonic(), document)
    body = json.dumps({"model": MODEL_NAME, "messages": documents.messages(document, question), "max_tokens": tokens,
                       "ignore_eos": True, "temperature": 1, "seed": question, "stream": True,
                       "stream_options": {"include_usage": True}})
    try:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=120)) as connection:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                result.error = f"HTTP {response.status}"
            else:
                read_events(response, result)
    except (OSError, http.client.HTTPException) as error:
        result.error = f"{type(error).__name__}: {error}"
    result.ended = time.monotonic()
    return result


def lines_of(response):
    """Of a chunked body; raises IncompleteRead when it was cut, which iterating over the response does not."""
    rest = b""
    while piece := response.read1(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


def read_events(response, result):
    done = False
    for line in lines_of(response):
        if not line.startswith(b"data: "):
            continue
        result.first = result.first or time.monotonic()
        if line.startswith(b"data: [DONE]"):
            done = True
        elif b'"usage"' in line and (usage := json.loads(line[6:]).get("usage")):
            result.prompt, result.cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
        elif b'"error"' in line:
            result.error = line.decode()
    if not done and not result.error:
        result.error = "the stream ended without [DONE]"


class GrpcClient:
    """Streams over one channel, with the service config that ships where the balancer does not replay by itself."""

    def __init__(self, front, wire):
        self.channel = channel(front.grpc, front.service_config)
        self.pb, self.stub = wire.chat_pb2, wire.chat_pb2_grpc.ChatStub(self.channel)

    def __call__(self, documents, document, question, tokens):
        result = Result(time.monotonic(), document)
        request = self.pb.ChatCompletionRequest(
            model=MODEL_NAME, messages=[self.pb.ChatMessage(**m) for m in documents.messages(document, question)])
        request.sampling.max_tokens, request.sampling.ignore_eos = tokens, True
        request.sampling.temperature, request.sampling.seed = 1, question
        try:
            for chunk in self.stub.StreamCompletion(request, timeout=120):
                result.first = result.first or time.monotonic()
                if chunk.HasField("usage"):
                    result.prompt, result.cached = chunk.usage.prompt_tokens, chunk.usage.cached_tokens
        except grpc.RpcError as error:
            result.error = f"{error.code().name}: {error.details()}"
        result.ended = time.monotonic()
        return result


class Load:
    """Closed loops of clients until stop() or their count of requests: results by the time they ended."""

    def __init__(self, ask, clients, per_client, choose, documents, tokens):
        self.ask, self.per_client, self.choose = ask, per_client, choose
        self.documents, self.tokens = documents, tokens
        self.stopping = threading.Event()
        self.pool = concurrent.futures.ThreadPoolExecutor(clients)
        self.futures = [self.pool.submit(self._client, i) for i in range(clients)]

    def _client(self, i):
        results = []
        for turn in range(self.per_client):
            if self.stopping.is_set():
                break
            question = i * self.per_client + turn
            results.append(self.ask(self.documents, self.choose(question), question, self.tokens))
        return results

    def stop(self):
        self.stopping.set()
        return self.wait()

    def wait(self, timeout=110):
        deadline = time.monotonic() + timeout
        try:
            return [r for f in self.futures for r in f.result(max(0.1, deadline - time.monotonic()))]
        finally:
            self.stopping.set()
            self.pool.shutdown(wait=True, cancel_futures=True)


def over_http(address):
    return lambda documents, document, question, tokens: ask_http(address, documents, document, question, tokens)


def cached_ratio(results):
    return sum(r.cached for r in results) / sum(r.prompt for r in results)


def errors(results):
    return [r.error for r in results if r.error]
