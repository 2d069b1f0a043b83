"""The wheel, its types, and what its README promises."""

import re
import subprocess
import sys
import typing
import zipfile

from conftest import FOLDER, PATIENCE, ROOT, SITE, SYSTEM, WHEEL, pip

MYPY = [sys.executable, "-m", "mypy", "--config-file", ROOT / "clients/python/pyproject.toml", "--cache-dir", FOLDER / "mypy"]
README = (ROOT / "clients/python/README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def mypy(*what):
    done = subprocess.run([*MYPY, *what], capture_output=True, text=True, env={"MYPYPATH": str(SITE), "PATH": "/usr/bin"})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_is_whole():
    names = set(zipfile.ZipFile(WHEEL).namelist())
    stubs = {f"t6/v1/{proto.stem}_pb2{end}" for proto in (ROOT / "proto/t6/v1").glob("*.proto")
             for end in (".py", ".pyi", "_grpc.py")}
    assert stubs | {"t6client/py.typed", "t6client/service_config.json", "t6/py.typed", "t6client/__init__.py"} <= names
    assert WHEEL.name.endswith("-py3-none-any.whl")


def test_a_source_distribution_builds_by_itself(tmp_path):
    source = tmp_path / "source/clients/python"
    subprocess.run(["cp", "-r", FOLDER / "source", tmp_path], check=True)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path, archive)
    (wheel,) = tmp_path.glob("*.whl")
    assert zipfile.ZipFile(wheel).namelist() == zipfile.ZipFile(WHEEL).namelist()


def test_strict_types():
    mypy("--strict", "-p", "t6client")


def test_the_readmes_examples_have_types(tmp_path):
    assert len(EXAMPLES) >= 4
    for number, example in enumerate(EXAMPLES):
        path = tmp_path / f"example_{number}.py"
        path.write_text(example)
        mypy("--strict", path)


def test_the_readmes_examples_run(daemon, tmp_path):
    (tmp_path / "museum.txt").write_text(SYSTEM)
    for example in EXAMPLES:
        code = example.replace("127.0.0.1:50051", daemon.grpc)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(SITE)},
                              capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, code + done.stderr
        assert "Traceback" not in done.stderr and done.stdout.strip()


def test_every_field_of_the_wire_has_an_argument():
    """A field added to proto/t6/v1 gets an argument here, or this says which is missing."""
    import t6client
    from t6.v1 import chat_pb2, completions_pb2, tokenizer_pb2

    def fields(message):
        return set(message.DESCRIPTOR.fields_by_name)

    def arguments(params):
        return set(typing.get_type_hints(params)) - set(typing.get_type_hints(t6client.CallParams))

    sampling = fields(completions_pb2.SamplingOptions)
    assert fields(chat_pb2.ChatCompletionRequest) - {"messages", "sampling"} | sampling == arguments(t6client.ChatParams)
    assert fields(completions_pb2.CompletionRequest) - {"prompts", "sampling"} | sampling == arguments(
        t6client.CompletionParams)
    assert fields(tokenizer_pb2.TokenizeRequest) - {"prompt", "messages"} == arguments(t6client.TokenizeParams)
