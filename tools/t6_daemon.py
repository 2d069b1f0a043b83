"""Starts a t6d on free ports, waits until it is ready, stops it. Shared by the demo, the benchmarks and the tests.

Standard library only. One Daemon owns one process, its log file and its temporary folder; use it as a context manager,
so that the process never outlives it.
"""

import json
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request


class StartError(Exception):
    """t6d ended, or was not ready in time; holds its exit code (None: it still ran) and what it printed."""

    def __init__(self, message, exit_code, output):
        super().__init__(f"{message}\n{output}")
        self.exit_code = exit_code
        self.output = output


class Daemon:
    def __init__(self, binary, model, *flags, ready_timeout=120.0, http="127.0.0.1:0", grpc="127.0.0.1:0"):
        self._folder = tempfile.TemporaryDirectory(prefix="t6d-")
        self.log_path = pathlib.Path(self._folder.name) / "log"
        self._hosts = {"http": http.rsplit(":", 1)[0], "grpc": grpc.rsplit(":", 1)[0]}
        self._port_file = pathlib.Path(self._folder.name) / "ports"
        command = [str(binary), "--model", str(model), "--http", http, "--grpc", grpc,
                   "--port-file", str(self._port_file), *map(str, flags)]
        self.started = time.monotonic()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready(self.started + ready_timeout)
        except BaseException:
            self.close()
            raise
        self.seconds_to_ready = time.monotonic() - self.started

    def _wait_until_ready(self, deadline):
        while True:
            exit_code = self.process.poll()
            if exit_code is not None:
                raise StartError(f"t6d exited with {exit_code}", exit_code, self.log())
            if self._port_file.exists():
                ports = json.loads(self._port_file.read_text())
                self.http, self.grpc = (f"{self._hosts[name]}:{ports[name]}" for name in ("http", "grpc"))
                if self._ready():
                    return
            if time.monotonic() > deadline:
                raise StartError("t6d is not ready in time", None, self.log())
            time.sleep(0.005)

    def _ready(self):
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def log(self):
        return self.log_path.read_text(errors="replace")

    @property
    def url(self):
        return f"http://{self.http}"

    def get(self, path, timeout=300):
        """GET: (status, body as text)."""
        return self._send(urllib.request.Request(self.url + path), timeout)

    def post(self, path, body, timeout=300):
        """POST of JSON: (status, the answer's JSON)."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        status, text = self._send(request, timeout)
        return status, json.loads(text)

    def _send(self, request, timeout):
        # No proxy: the daemon is on this machine, whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self, timeout=300):
        """SIGTERM, then the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
