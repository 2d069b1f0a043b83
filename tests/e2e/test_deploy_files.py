"""What of deploy/ can be checked without starting it: the systemd unit, the compose file, the balancers' files."""

import json
import re
import signal
import subprocess

from conftest import BIN, MODEL, ROOT, TestDaemon, messages

UNIT = ROOT / "deploy/systemd/t6d.service"
COMPOSE = ROOT / "deploy/compose/compose.yaml"
VENV = ROOT / "build/deploy-venv/bin"


def directives():
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [tuple(line.split("=", 1)) for line in lines]


def test_the_unit_is_hardened():
    run = subprocess.run(["systemd-analyze", "security", "--offline=true", UNIT], stdout=subprocess.PIPE, text=True)
    exposure = float(re.search(r"Overall exposure level for t6d.service: ([\d.]+)", run.stdout)[1])
    print(f"\nsystemd-analyze security: exposure {exposure}")
    assert exposure <= 2
    assert "MemoryDenyWriteExecute" not in dict(directives()), "oneDNN could not run what it compiles"


def syscalls_of(name):
    """The names in one of systemd's sets, and in the sets that it names."""
    listing = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True, stdout=subprocess.PIPE, text=True)
    names = {line.strip() for line in listing.stdout.splitlines()[1:] if line.strip() and not line.strip().startswith("#")}
    return set().union(*(syscalls_of(n) if n.startswith("@") else {n} for n in names))


def test_the_unit_allows_every_system_call_that_the_daemon_makes(tmp_path):
    allowed = set()
    for value in (value for key, value in directives() if key == "SystemCallFilter"):
        for name in value.lstrip("~").split():
            named = syscalls_of(name) if name.startswith("@") else {name}
            allowed = allowed - named if value.startswith("~") else allowed | named
    trace = tmp_path / "trace"
    wrapper = tmp_path / "t6d"
    wrapper.write_text(f'#!/bin/sh\nexec strace -f -qq -o {trace} {BIN / "t6d"} "$@"\n')
    wrapper.chmod(0o755)
    with TestDaemon(MODEL, "--log-format", "json", binary=wrapper) as daemon:
        assert daemon.post("/v1/chat/completions", {"messages": messages("Who founded the museum?")})[0] == 200
        subprocess.run([BIN / "t6", "models", "--server", daemon.grpc], check=True, stdout=subprocess.DEVNULL)
        # strace passes no signal on; the daemon is its child.
        child = int(subprocess.run(["pgrep", "-P", str(daemon.process.pid)], check=True, stdout=subprocess.PIPE).stdout.split()[0])
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(child)], check=True)
        assert daemon.process.wait(60) == 0
    made = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", trace.read_text(), re.M))
    print(f"\n{len(made)} system calls: {' '.join(sorted(made))}")
    assert len(made) > 20 and made <= allowed, made - allowed


def test_compose_publishes_on_loopback_only_and_takes_every_right_away():
    program = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"
    text = subprocess.run([VENV / "python", "-c", program, COMPOSE], check=True, stdout=subprocess.PIPE).stdout
    services = json.loads(text)["services"]
    assert {"t6d-1", "t6d-2", "t6d-3", "haproxy", "prometheus", "grafana"} == set(services)
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        for volume in service["volumes"]:
            source = volume.replace("${T6_MODEL:-../../models/t6-docqa-14m}", "../../models/t6-docqa-14m").split(":")[0]
            assert not source.startswith(".") or (COMPOSE.parent / source).exists(), f"{name}: there is no {source}"
    for i in (1, 2, 3):
        replica = services[f"t6d-{i}"]
        assert replica["read_only"] and "ports" not in replica and replica["networks"] == ["inside"]
        assert services["haproxy"]["environment"][f"T6_HTTP_{i}"] == f"t6d-{i}:8000"


def test_the_balancers_take_their_files():
    subprocess.run(["haproxy", "-c", "-q", "-f", ROOT / "deploy/haproxy/haproxy.cfg"], check=True)
    subprocess.run([VENV / "envoy", "--mode", "validate", "-l", "error", "-c", ROOT / "deploy/envoy/envoy.yaml"], check=True)
