"""The systemd unit under a real systemd: the image's files and Debian's systemd, as process 1 of namespaces of its own.

Needs root and a kernel that lets it mount cgroup2; touches nothing of this machine's own services.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import images
from conftest import MODEL, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import demo  # noqa: E402

# Not a chroot: systemd's PrivateUsers needs a root that the kernel takes for one.
BOOT = """
set -e
mount --make-rprivate /
mount --bind "$ROOT_FS" "$ROOT_FS"
cd "$ROOT_FS"
mkdir -p .old var/lib/t6d/model
mount --bind -o ro "$MODEL" var/lib/t6d/model
pivot_root . .old
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount --rbind /.old/dev /dev
umount -l /.old
mount --make-rshared /
exec env -i container=t6d PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target
"""
KEYS = """[Service]
Environment="T6D_FLAGS=--api-key-file /run/credentials/t6d.service/keys"
LoadCredential=keys:/etc/t6d-keys
"""


STREAM = """
import http.client, json
connection = http.client.HTTPConnection("127.0.0.1:8000", timeout=60)
body = json.dumps({"prompt": "The", "max_tokens": 1800, "ignore_eos": True, "stream": True})
connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
response = connection.getresponse()
response.readline()
print("first", flush=True)
if b"data: [DONE]" in response.read():
    print("done", flush=True)
"""


class Machine:
    """A systemd and what runs under it."""

    def __init__(self, root):
        self.root = root
        self.booting = subprocess.Popen(
            ["unshare", "-m", "-p", "-u", "-i", "-n", "-C", "--fork", "sh", "-c", BOOT], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "ROOT_FS": str(root), "MODEL": str(MODEL)})
        self.pid = None
        self.enter_network = None
        deadline = time.monotonic() + 60
        children = pathlib.Path(f"/proc/{self.booting.pid}/task/{self.booting.pid}/children")
        while not self.is_up():
            assert self.booting.poll() is None and time.monotonic() < deadline, self.end()
            time.sleep(0.2)
            self.pid = (children.read_text().split() or [None])[0]
        self.enter_network = ["nsenter", "-t", self.pid, "-n"]

    def is_up(self):
        return self.pid and self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def run(self, *command, check=True, stdin=""):
        enter = ["nsenter", "-t", self.pid, "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w"]
        return subprocess.run([*enter, *command], check=check, input=stdin, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=120)

    def properties(self, *names):
        shown = self.run("systemctl", "show", "t6d", *(f"-p{name}" for name in names)).stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    def wait_until_healthy(self):
        deadline = time.monotonic() + 30
        while self.run("t6", "health", check=False).returncode != 0:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self):
        return self.run("journalctl", "-u", "t6d", "--no-pager", "-o", "cat", check=False).stdout

    def ask(self, *more, check=True):
        return self.run("t6", "ask", "--document", "-", *more, check=check, stdin=demo.DOCUMENT)

    def end(self):
        """Ends process 1, and with it all that runs there. What it printed."""
        if self.pid:
            os.kill(int(self.pid), signal.SIGKILL)
        self.booting.kill()
        return self.booting.communicate()[0]


@pytest.fixture(scope="module")
def machine():
    with images.container_of(images.build("cpu")) as (container, root):
        # On a machine without a user t6d, which is where DynamicUser makes one.
        images.buildah("run", "--user", "0", container, "--", "sh", "-c",
                       "apt-get update -qq && apt-get install -y -qq --no-install-recommends systemd >/dev/null 2>&1 && userdel t6d")
        (root / "etc/systemd/system/t6d.service").write_bytes((ROOT / "deploy/systemd/t6d.service").read_bytes())
        running = Machine(root)
        yield running
        running.end()


def test_it_starts_and_answers_without_rights(machine):
    machine.run("systemctl", "start", "t6d")
    machine.wait_until_healthy()
    pid = machine.properties("MainPID")["MainPID"]
    status = dict(re.findall(r"^(\w+):\t(.*)$", machine.run("cat", f"/proc/{pid}/status").stdout, re.M))
    assert 61184 <= int(status["Uid"].split()[0]) <= 65519, "not a dynamic user"
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert all(int(status[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"))
    question, wanted = next(iter(demo.QUESTIONS.items()))
    assert machine.ask(question).stdout.strip() == wanted


def test_stop_waits_for_the_answer_that_runs(machine):
    streaming = [*machine.enter_network, sys.executable, "-c", STREAM]
    with subprocess.Popen(streaming, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as stream:
        assert stream.stdout.readline() == "first\n"
        machine.run("systemctl", "stop", "t6d")
        assert stream.stdout.read() == "done\n", "the stream was cut"
    ended = machine.properties("Result", "ExecMainStatus", "ActiveState")
    assert ended == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}


def test_it_comes_back_when_it_is_killed(machine):
    machine.run("systemctl", "start", "t6d")
    machine.wait_until_healthy()
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "t6d")
    deadline = time.monotonic() + 20
    while machine.properties("NRestarts")["NRestarts"] != "1":
        assert time.monotonic() < deadline, machine.log()
        time.sleep(0.1)
    machine.wait_until_healthy()


def test_keys_come_as_a_credential(machine):
    made = machine.run("t6", "key", "acme", "--json").stdout
    key, line = (re.search(rf'"{name}": *"([^"]*)"', made)[1] for name in ("key", "line"))
    (machine.root / "etc/t6d-keys").write_text(line + "\n")
    drop_in = machine.root / "etc/systemd/system/t6d.service.d/keys.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(KEYS)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "t6d")
    machine.wait_until_healthy()
    question = next(iter(demo.QUESTIONS))
    assert machine.ask(question, check=False).returncode == 1
    assert machine.ask("--api-key", key, question).stdout.strip() == demo.QUESTIONS[question]
    assert key not in machine.log()
