"""The container image from a clean clone: built by deploy/docker/build_image, then run as it would be by any engine that
is told --read-only, --cap-drop ALL and no-new-privileges, as the image's own user. Needs root for the chroot.

T6_IMAGE_TARGET is cpu (the default) or cuda, whose code takes long to compile: a ctest entry of its own. images.py has the
other settings.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import pytest

import fleet
import images
from conftest import MODEL, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import demo  # noqa: E402

TARGET = os.environ.get("T6_IMAGE_TARGET", "cpu")
MOST_MIB = 120  # over the base, and for cuda besides cuBLAS

# Runs inside a mount namespace of its own: the image's root read-only, the model beside it, then the image's user with
# every capability gone. `exec` all the way, so that the process is t6d itself.
ENTER = """
set -e
mount --bind "$ROOT_FS" "$ROOT_FS"
mkdir -p "$ROOT_FS/model"
mount --bind -o ro "$MODEL" "$ROOT_FS/model"
mount -t proc proc "$ROOT_FS/proc"
mount -o remount,bind,ro "$ROOT_FS"
exec chroot "$ROOT_FS" /usr/bin/setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs \
  --inh-caps=-all --ambient-caps=-all --bounding-set=-all "$@"
"""


def size_mib(image):
    """What its files take, as `du` counts them."""
    with images.container_of(image) as (_, root):
        used = subprocess.run(["du", "-sxk", root], check=True, stdout=subprocess.PIPE, text=True)
        return int(used.stdout.split()[0]) / 1024


@pytest.fixture(scope="module")
def image():
    name = images.build(TARGET, anew=True)
    return types.SimpleNamespace(name=name, settings=json.loads(images.buildah("inspect", "--type", "image", name)))


@pytest.fixture(scope="module")
def enter(image):
    """enter(program, *arguments): a process of the image."""
    with images.container_of(image.name) as (_, root):
        environment = dict(entry.split("=", 1) for entry in image.settings["Docker"]["config"]["Env"])
        environment |= {"PATH": os.environ["PATH"], "ROOT_FS": str(root), "MODEL": str(MODEL)}

        def start(*command, **how):
            return subprocess.Popen(["unshare", "-m", "sh", "-c", ENTER, "enter", *command], env=environment, text=True, **how)

        yield start


def test_the_settings(image):
    config = image.settings["Docker"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"][0] == "/usr/local/bin/t6d", "a shell in front would keep the signals"
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/t6", "health"]
    assert config["StopSignal"] == "SIGTERM"
    labels = config["Labels"]
    assert re.fullmatch("[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.version"] and labels["org.opencontainers.image.title"] == "t6d"


def test_the_size(image):
    base, whole = size_mib(images.BASE), size_mib(image.name)
    with images.container_of(image.name) as (_, root):
        cublas = sum(path.stat().st_size for path in root.glob("usr/local/lib/libcublas*")) / 2**20
    print(f"\nbase {base:.0f} MiB, image {whole:.0f} MiB: {whole - base - cublas:.0f} MiB over it, and {cublas:.0f} of cuBLAS")
    assert whole - base - cublas <= MOST_MIB
    assert (cublas > 0) == (TARGET == "cuda")


def test_nothing_that_builds_and_no_driver_is_inside(image):
    """A driver in the image would hide the machine's, which the container engine puts there."""
    with images.container_of(image.name) as (_, root):
        files = [path for folder in ("usr", "opt") for path in (root / folder).rglob("*") if not path.is_dir()]
        names = {path.name for path in files}
        ours = {path.name for path in files if path.is_relative_to(root / "usr/local")}
    unwanted = {name for name in names if re.match(r"(g\+\+|gcc|cmake|cargo|rustc|nvcc|ptxas|libcuda\.so|libnvidia-).*", name)}
    assert not unwanted and not any(name.endswith((".h", ".hpp", ".cuh", ".a")) for name in names)
    libraries = ours - {"t6d", "t6"}
    assert {re.sub(r"\.so\..*", "", name) for name in libraries} == ({"libcublasLt"} if TARGET == "cuda" else set())


@pytest.mark.skipif(any(pathlib.Path("/dev").glob("nvidia*")), reason="there is a GPU")
def test_device_cuda_says_plainly_that_there_is_no_gpu(image, enter):
    process = enter(*image.settings["Docker"]["config"]["Entrypoint"], "--device", "cuda", stderr=subprocess.PIPE)
    last_line = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 1
    assert last_line.startswith("t6d: ") and ("NVIDIA driver" if TARGET == "cuda" else "not in this build") in last_line


def test_answers_the_demos_questions_as_nobody_on_a_read_only_root(image, enter):
    http, grpc = fleet.free_ports(2)
    entrypoint = image.settings["Docker"]["config"]["Entrypoint"]
    process = enter(*entrypoint, "--http", http, "--grpc", grpc, "--served-model-name", "t6-docqa-14m",
                    "--threads", "1", "--drain-grace", "0s", "--device", "cpu", stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not ready(http):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.1)
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        assert os.readlink(f"/proc/{process.pid}/exe").endswith("/usr/local/bin/t6d"), "process 1 is not t6d"
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["10001"] * 4 and fields["NoNewPrivs"] == "1"
        assert all(int(fields[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"))
        assert enter("/usr/local/bin/t6", "health", "--server", grpc, stdout=subprocess.DEVNULL).wait(30) == 0
        touched = enter("/bin/touch", "/tmp/x", stderr=subprocess.PIPE)
        assert "Read-only file system" in touched.communicate()[1]
        assert answers_over_grpc(enter, grpc) == demo.QUESTIONS
        rows = demo.over_http(target(http), "t6-docqa-14m")
        assert {question: answer.strip() for question, answer, *_ in rows} == demo.QUESTIONS
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        print(f"\n{len(demo.QUESTIONS)} questions over gRPC and HTTP, as uid 10001 without capabilities; SIGTERM: exit 0")
    finally:
        process.kill()
        process.wait()


def answers_over_grpc(enter, grpc):
    """The questions over gRPC, by the image's own client, the document on its standard input."""
    asking = enter("/usr/local/bin/t6", "ask", "--server", grpc, "--json", "--document", "-", *demo.QUESTIONS,
                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    answers = [json.loads(line) for line in asking.communicate(demo.DOCUMENT, timeout=60)[0].splitlines()]
    return {answer["question"]: answer["answer"].strip() for answer in answers}


def target(http):
    daemon = demo.Daemon.__new__(demo.Daemon)  # one that somebody else started
    daemon.http = http
    return daemon


def ready(http):
    try:
        return fleet.get(http, "/readyz") == 200
    except OSError:
        return False
