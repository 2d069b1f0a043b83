"""A damaged or hostile checkpoint: a message and a non-zero exit, never a signal or a hang.

200 mutations of a tiny checkpoint, as the official code writes it and as safetensors. A mutation that leaves a valid
checkpoint (a flipped bit of a weight) must serve, and stop cleanly.
"""

import json
import random
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import BIN, GOLDENS, PATIENCE
from t6_daemon import Daemon, StartError

MUTATIONS = 200
FLAGS = ("--drain-grace", "0s", "--cache-bytes", "16MiB", "--threads", "1")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The checkpoint in both formats."""
    torch_zip = GOLDENS / "variants/T6"
    safetensors = tmp_path_factory.mktemp("converted") / "T6"
    subprocess.run([BIN / "t6-checkpoint", "convert", torch_zip, safetensors], check=True, timeout=PATIENCE, capture_output=True)
    return [torch_zip, safetensors]


def flip(data, draw, lowest, highest):
    for _ in range(draw.choice([1, 1, 2, 8])):
        data[draw.randrange(lowest, highest)] = draw.choice([0, 0xFF, 0x80, draw.randrange(256)])


def mutate_bytes(data, draw):
    """Damages where it matters most: headers, directories, sizes; and here and there the whole."""
    size = len(data)
    kind = draw.randrange(8)
    if kind == 0:
        del data[draw.randrange(size):]
    elif kind == 1:
        at = draw.randrange(size)
        del data[at:at + draw.choice([1, 7, 64, 4096])]
    elif kind == 2:
        at = draw.randrange(size)
        data[at:at] = draw.randbytes(draw.choice([1, 8, 64]))
    elif kind == 3:
        flip(data, draw, 0, min(size, 2048))
    elif kind == 4:
        flip(data, draw, max(0, size - 3000), size)
    elif kind == 5:  # a size or an offset that is absurd
        at = draw.randrange(0, min(size, 2048) - 8) if draw.random() < 0.5 else draw.randrange(max(0, size - 3000), size - 8)
        data[at:at + 8] = struct.pack("<Q", draw.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, size, size * 2]))
    elif kind == 6:
        start = draw.randrange(size)
        chunk = data[start:start + draw.choice([16, 256])]
        at = draw.randrange(max(1, size - len(chunk)))
        data[at:at + len(chunk)] = chunk
    else:
        flip(data, draw, 0, size)


def mutate_json(text, draw):
    """Another value for one key, a missing key, or broken text."""
    value = json.loads(text)
    if draw.random() < 0.2:
        return text[:draw.randrange(len(text))]
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw.choice(keys)
        if not isinstance(node[key], (dict, list)) or not node[key] or draw.random() < 0.2:
            break
        node = node[key]
    if draw.random() < 0.25:
        del node[key]
    else:
        node[key] = draw.choice([None, -1, 0, 1, 3, 2**31, 2**62, 1e300, 0.5, "", "x" * 10000, [], {}, [[]], True, "\u0000"])
    return json.dumps(value)


def mutate(folder, draw):
    name = draw.choice(sorted(path.name for path in folder.iterdir() if path.name != "golden.json"))
    weights = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".safetensors")]
    if draw.random() < 0.6:
        name = weights[0]
    path = folder / name
    if draw.random() < 0.04:
        path.unlink()
    elif path.suffix == ".json":
        path.write_text(mutate_json(path.read_text(), draw))
    else:
        data = bytearray(path.read_bytes())
        mutate_bytes(data, draw)
        path.write_bytes(data)
    return name


def outcome(folder):
    """(what happened, exit code, output)."""
    try:
        with Daemon(BIN / "t6d", folder, *FLAGS, ready_timeout=PATIENCE) as daemon:
            return "served", daemon.stop(timeout=PATIENCE), daemon.log()
    except StartError as error:
        return "refused" if error.exit_code is not None else "hung", error.exit_code, error.output


def test_random_mutations(originals, tmp_path, capsys):
    def one(seed):
        draw = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(originals[seed % 2], folder)
        name = mutate(folder, draw)
        what, exit_code, output = outcome(folder)
        shutil.rmtree(folder)
        good = exit_code == 0 if what == "served" else what == "refused" and 0 < exit_code < 128 and output.strip()
        return what, None if good else f"seed {seed}, {name}: {what}, exit code {exit_code}\n{output[-800:]}"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(MUTATIONS)))
    with capsys.disabled():
        count = {what: sum(result[0] == what for result in results) for what in ("refused", "served", "hung")}
        print(f"\n{MUTATIONS} mutations: {count}", end=" ")
    assert not [problem for _, problem in results if problem]
    assert count["refused"] > MUTATIONS / 3


def test_what_is_wrong_is_named(originals, tmp_path):
    def refused(change, *quoted, of=0):
        folder = tmp_path / "case"
        shutil.copytree(originals[of], folder)
        change(folder)
        what, exit_code, output = outcome(folder)
        shutil.rmtree(folder)
        assert what == "refused" and exit_code > 0, output
        assert all(text in output for text in quoted), output

    def set_config(**values):
        def change(folder):
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return change

    def replace(old, new):
        def change(folder):
            path = next(path for path in folder.iterdir() if path.suffix in (".bin", ".safetensors"))
            data = path.read_bytes()
            assert old in data and len(old) == len(new)
            path.write_bytes(data.replace(old, new))
        return change

    refused(set_config(n_layer=3), "n_layer", "3", "2")
    refused(set_config(n_head=7), "n_head", "7", "5")
    name = "transformer.h.1.attn.c_proj.weight"
    rename = replace(name.encode(), name.replace("c_proj", "c_pork").encode())
    refused(rename, "transformer.h.1.attn.c_p", of=1)
    refused(rename, "data.pkl", "CRC")  # a zip would notice
    refused(set_config(rope_partial_factor=0.5), "rope_partial_factor")
    refused(set_config(rope_decay_base=0.999), "rope_decay_base")
    refused(lambda folder: (folder / "pytorch_model.bin").unlink(), str(tmp_path))
    refused(lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json")
    refused(lambda folder: (folder / "config.json").write_text("[1"), "config.json")
    hostile = json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../../../../etc/passwd"}})

    def escape(folder):
        (folder / "pytorch_model.bin").unlink()
        (folder / "pytorch_model.bin.index.json").write_text(hostile)
    refused(escape, "../../../../etc/passwd")


def test_a_pickle_is_never_executed(originals, tmp_path):
    """A checkpoint whose pickle would run a command in Python: refused, and the command did not run."""
    import pickle
    import zipfile
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return __import__("os").system, (f"touch {mark}",)

    folder = tmp_path / "evil"
    shutil.copytree(originals[0], folder)
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"lm_head.weight": Evil()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    what, exit_code, output = outcome(folder)
    assert what == "refused" and exit_code > 0 and "system" in output and not mark.exists(), output
