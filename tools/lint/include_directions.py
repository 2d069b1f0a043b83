#!/usr/bin/env python3
"""Checks who includes whom: the directions between the rooms of the house, as one table.

usage: include_directions.py [--self-test]
Prints FILE:LINE for every include against the table and fails if there is one. Only includes in quotes are looked at,
and of those the project's own, the generated ones (t6/v1/..., xds/...) and gRPC's and Protobuf's.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "server", "clients", "tests", "bench", "tools")

# What passes between rooms is plain data, shared by those who make it and those who read it.
PLAN = "engine/schedule/step_plan"
REQUEST = "engine/request engine/event_stream engine/token_output"
BACKEND = "engine/base/ engine/tensor/ engine/backend/"
ENGINE = "engine/"
WIRE = "t6/v1/ xds/ grpc google/protobuf/"

# A room is a path's longest prefix here; it may include itself and what its line names (prefixes as well).
ROOMS = {
    "engine/base/": "",
    "engine/tensor/": "engine/base/",
    "engine/text/": "engine/base/",
    "engine/checkpoint/": "engine/base/ engine/tensor/",
    "engine/backend/": f"engine/base/ engine/tensor/ {PLAN}",
    "engine/backend/factory": f"{BACKEND}",
    "engine/backend/cpu/": f"engine/base/ engine/tensor/ engine/backend/ {PLAN}",
    "engine/backend/cuda/": f"engine/base/ engine/tensor/ engine/backend/ {PLAN}",
    "engine/cache/": "engine/base/",
    "engine/cache/factor_cache": f"{BACKEND}",
    "engine/model/": f"{BACKEND} engine/checkpoint/ engine/cache/factor_cache {PLAN}",
    "engine/sampling/": f"{BACKEND} {REQUEST}",
    "engine/sampling/stop_rules": f"engine/base/ {REQUEST}",
    "engine/schedule/": f"engine/base/ engine/cache/ engine/sampling/stop_rules engine/step_runner {REQUEST}",
    # The engine's own files tie the rooms together; what they show to the server is the headers below.
    "engine/": ENGINE,
    "engine/engine.h": "engine/base/ engine/config engine/request engine/event_stream",
    "engine/event_stream": f"engine/base/ {REQUEST}",
    "engine/token_output": "engine/base/",
    "engine/request": "engine/base/",
    "engine/config": "engine/base/ engine/tensor/dtype",
    "engine/step_runner": f"engine/base/ {PLAN} engine/token_output",
    "server/": f"engine/base/ engine/text/ engine/engine.h engine/config.h {REQUEST} {WIRE}",
    "server/http/": f"server/ engine/base/ engine/text/ engine/engine.h engine/config.h {REQUEST} {WIRE}",
    "server/grpc/": f"server/ engine/base/ engine/text/ engine/engine.h engine/config.h {REQUEST} {WIRE}",
    "server/daemon": f"server/ engine/base/ engine/text/ engine/engine.h engine/config.h {REQUEST} {WIRE}",
    "server/main": "server/ engine/base/ engine/engine.h engine/config.h",
    "clients/": WIRE,
    "tools/": ENGINE,
    "bench/": f"{ENGINE} server/ clients/ tests/ {WIRE}",
    "tests/": f"{ENGINE} server/ clients/ tools/ bench/ {WIRE}",
}
# Of what a line above names, this stays closed: siblings never see each other, inner rooms are not for everyone.
CLOSED = {
    "engine/backend/": "engine/backend/cpu/ engine/backend/cuda/ engine/backend/factory",
    "engine/backend/cpu/": "engine/backend/cuda/ engine/backend/factory",
    "engine/backend/cuda/": "engine/backend/cpu/ engine/backend/factory",
    "engine/model/": "engine/backend/cpu/ engine/backend/cuda/ engine/backend/factory",
    "engine/sampling/": "engine/backend/cpu/ engine/backend/cuda/ engine/backend/factory",
    "engine/cache/": "engine/cache/factor_cache",
    "engine/cache/factor_cache": "engine/backend/cpu/ engine/backend/cuda/ engine/backend/factory",
    "engine/schedule/": "engine/cache/factor_cache",
    "engine/": "engine/backend/cpu/ engine/backend/cuda/",
    "server/": "server/http/ server/grpc/",
    "server/http/": "server/grpc/ server/daemon server/main",
    "server/grpc/": "server/http/ server/daemon server/main",
}
INCLUDE = re.compile(r'\s*#\s*include\s*[<"]([^>"]+)[>"]')
CHECKED = tuple(folder + "/" for folder in FOLDERS) + tuple(WIRE.split())


def longest_prefix(path, prefixes):
    return max((p for p in prefixes if path.startswith(p)), key=len, default=None)


def allowed(path, included):
    """Whether the file `path` may include `included` (both relative to the root)."""
    if not included.startswith(CHECKED):
        return True
    room = longest_prefix(path, ROOMS)
    if room is None:
        return False
    opened = longest_prefix(included, [room, *ROOMS[room].split()])
    closed = longest_prefix(included, CLOSED.get(room, "").split())
    return opened is not None and (closed is None or len(closed) < len(opened))


def check(root):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix not in (".h", ".cc", ".cu", ".cuh") or "/target/" in name:
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if match and not allowed(name, match[1]):
                    room = longest_prefix(name, ROOMS)
                    yield f"{name}:{number}: {room or 'no room'} may not include {match[1]}"


def self_test():
    good = [
        ("engine/model/t6_model.cc", "engine/backend/backend.h"),
        ("engine/model/t6_model.cc", "engine/cache/factor_cache.h"),
        ("engine/backend/cpu/gemm.cc", "engine/backend/params.h"),
        ("engine/backend/factory.cc", "engine/backend/cpu/cpu_backend.h"),
        ("engine/backend/backend.h", "engine/schedule/step_plan.h"),
        ("engine/schedule/scheduler.h", "engine/cache/cache_manager.h"),
        ("engine/engine.cc", "engine/schedule/scheduler.h"),
        ("server/chat_handler.cc", "t6/v1/chat.pb.h"),
        ("server/daemon.cc", "server/http/http_server.h"),
        ("clients/cli/main.cc", "clients/cli/options.h"),
        ("tests/kernels/gemm_test.cc", "engine/backend/cpu/gemm.h"),
        ("engine/base/status.h", "absl/status/status.h"),
    ]
    bad = [
        ("engine/base/metrics.cc", "engine/tensor/dtype.h"),
        ("engine/model/t6_model.cc", "engine/backend/cpu/gemm.h"),
        ("engine/model/t6_model.cc", "engine/cache/cache_manager.h"),
        ("engine/backend/backend.h", "engine/schedule/scheduler.h"),
        ("engine/backend/backend.h", "engine/backend/cpu/cpu_backend.h"),
        ("engine/backend/cpu/gemm.cc", "engine/backend/cuda/gemm_lt.h"),
        ("engine/cache/cache_manager.cc", "engine/cache/factor_cache.h"),
        ("engine/schedule/scheduler.cc", "engine/model/model_spec.h"),
        ("engine/schedule/scheduler.cc", "engine/backend/backend.h"),
        ("engine/sampling/stop_rules.cc", "engine/backend/backend.h"),
        ("engine/engine.h", "engine/model/t6_model.h"),
        ("engine/engine.cc", "engine/backend/cpu/cpu_backend.h"),
        ("engine/engine.cc", "t6/v1/chat.pb.h"),
        ("engine/text/tokenizer.cc", "grpcpp/grpcpp.h"),
        ("engine/engine.cc", "server/config.h"),
        ("server/chat_handler.cc", "engine/cache/prefix_tree.h"),
        ("server/chat_handler.cc", "server/http/router.h"),
        ("server/grpc/chat_service.cc", "server/http/router.h"),
        ("clients/cli/main.cc", "engine/base/status.h"),
    ]
    wrong = [f"{a} -> {b} should be allowed" for a, b in good if not allowed(a, b)]
    wrong += [f"{a} -> {b} should be refused" for a, b in bad if allowed(a, b)]
    return wrong


def main():
    wrong = self_test() if "--self-test" in sys.argv[1:] else list(check(ROOT))
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
