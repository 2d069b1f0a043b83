"""The library as its users get it: built by itself, installed to a prefix, and used from outside of the tree."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ.get("T6_BIN", ROOT / "build/release/bin"))
sys.path.insert(0, str(ROOT / "tools"))

from t6_daemon import Daemon  # noqa: E402

DOCUMENT = ("The museum opened in 1931 in Graz. Its founder, Clara Weiss, gave it four hundred clocks. "
            "Tickets cost six euros.")


def cmake(*arguments):
    done = subprocess.run(["cmake", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The folder with the examples' programs. ccache, if there is one, makes the second run short."""
    folder = tmp_path_factory.mktemp("t6client")
    ccache = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if subprocess.run(["which", "ccache"], capture_output=True).returncode == 0 else []
    cmake("-G", "Ninja", "-S", ROOT / "clients/cpp", "-B", folder / "library", "-DCMAKE_BUILD_TYPE=Release", *ccache)
    cmake("--build", folder / "library", "-j", 2)
    cmake("--install", folder / "library", "--prefix", folder / "prefix")
    subprocess.run(["cp", "-r", ROOT / "clients/cpp/examples", folder / "examples"], check=True)
    cmake("-G", "Ninja", "-S", folder / "examples", "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}", *ccache)
    cmake("--build", folder / "build", "-j", 2)
    for path in (folder / "prefix").rglob("*.cmake"):
        assert str(ROOT) not in path.read_text() and str(folder) not in path.read_text(), path
    return folder / "build"


@pytest.fixture(scope="module")
def daemon():
    with Daemon(BIN / "t6d", ROOT / "models/t6-docqa-14m", "--drain-grace", "0s") as running:
        yield running


def run(program, *arguments, typed=""):
    done = subprocess.run([program, *arguments], input=typed, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def test_chat_streaming(examples, daemon):
    code, out, err = run(examples / "chat_streaming", daemon.grpc, typed="Who founded the museum?\nWhen?\n")
    assert code == 0 and err == "" and out.count("> ") == 3 and len(out) > 12


def test_questions_about_one_document(examples, daemon, tmp_path):
    (tmp_path / "museum.txt").write_text(DOCUMENT)
    questions = {"When did the museum open?": "1931", "Who founded the museum?": "Clara Weiss",
                 "How much is a ticket?": "six euros"}
    code, out, err = run(examples / "ask_document", daemon.grpc, tmp_path / "museum.txt", *questions)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert all(answer in line for line, answer in zip(lines, questions.values(), strict=True)), lines
    cached = sorted(int(line.split(" (")[1].split()[0]) for line in lines)
    assert cached[1] > 30, lines  # one computed the document, the others waited for it


def test_an_error_is_shown(examples, daemon, tmp_path):
    code, _, err = run(examples / "ask_document", "127.0.0.1:1", "/dev/null", "Who?")
    assert code == 1 and "UNAVAILABLE" in err
