"""The Helm chart: lints, renders in several shapes into what two versions of Kubernetes and the CRDs accept, and refuses
values that contradict each other with a message that says what to change.

Needs `./bootstrap --deploy`: build/deploy-venv with helm in bin/ and the CRDs in crds/. T6_BIN names the folder of t6d.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/t6d"
VENV = pathlib.Path(sys.prefix)
HELM = VENV / "bin/helm"
BIN = pathlib.Path(os.environ.get("T6_BIN", ROOT / "build/release/bin"))
MODEL = ROOT / "models/t6-docqa-14m"
KUBERNETES = ["1.29", "1.34"]  # before and after the native preStop sleep
DIGEST = "sha256:" + "0" * 64

SHAPES = {
    "defaults": {},
    "everything": {
        "replicaCount": 3,
        "image": {"repository": "example/t6d", "digest": DIGEST},
        "imagePullSecrets": [{"name": "pull"}],
        "model": {"name": "docqa", "claim": {"create": True, "storageClassName": "fast", "subPath": "docqa"}},
        "flags": {"max-num-seqs": 128, "cache-bytes": "4GiB", "max-step-ms": 12.5, "log-format": "json"},
        "apiKeys": {"lines": [f"acme {DIGEST}", f"beta {DIGEST}"]},
        "drain": {"preStopSeconds": 10, "graceSeconds": 5, "deadlineSeconds": 120},
        "terminationGracePeriodSeconds": 180,
        "probes": {"readiness": "grpc"},
        "podAnnotations": {"a": "b"}, "podLabels": {"team": "search"}, "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "t6", "operator": "Exists", "effect": "NoSchedule"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                                       "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "t6d"}}}],
        "priorityClassName": "serving",
        "service": {"type": "LoadBalancer", "annotations": {"x": "y"}},
        "podDisruptionBudget": {"minAvailable": 2},
        "autoscaling": {"enabled": True, "minReplicas": 3},
        "networkPolicy": {"enabled": True, "clients": [{"podSelector": {"matchLabels": {"role": "gateway"}}}]},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True}, "grafanaDashboard": {"enabled": True},
        "inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"},
                          "objectives": [{"name": "chat", "priority": 10}, {"name": "batch", "priority": -1}],
                          "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}],
                                        "hostnames": ["llm.example.com"]}},
    },
    "gpu_from_init": {
        "gpu": {"count": 1, "runtimeClassName": "nvidia"},
        "model": {"source": "emptyDir", "emptyDir": {"sizeLimit": "40Gi"},
                  "init": {"image": "fetch:1", "command": ["fetch"], "args": ["example", "/model"],
                           "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]}},
        "networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]},
        "strategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
    },
    "in_image_and_bare": {
        "replicaCount": 1, "model": {"source": "image"}, "ports": {"adminEnabled": False},
        "apiKeys": {"existingSecret": "keys"}, "drain": {"preStopSeconds": 0}, "service": {"headless": False},
        "podDisruptionBudget": {"enabled": False}, "serviceAccount": {"create": False},
        "serviceMonitor": {"enabled": True}, "listen": "[::]",
    },
}

REFUSED = {
    "grace shorter than the drain": ({"terminationGracePeriodSeconds": 30}, "terminationGracePeriodSeconds is 30"),
    "a drain that grew": ({"terminationGracePeriodSeconds": 60, "drain": {"deadlineSeconds": 90}}, "are 105"),
    "a flag of the chart's": ({"flags": {"drain-grace": "1s"}}, "flags.drain-grace is set by the chart"),
    "two devices": ({"flags": {"device": "cpu"}, "gpu": {"count": 1}}, "contradicts gpu.count"),
    "an empty volume": ({"model": {"source": "emptyDir"}}, "nothing would fill the volume"),
    "init without a volume": ({"model": {"source": "image", "init": {"image": "x"}}}, "no volume for model.init"),
    "init into a read-only claim": (
        {"model": {"init": {"image": "x"}, "claim": {"accessModes": ["ReadOnlyMany"]}}}, "cannot write into a claim"),
    "keys twice": ({"apiKeys": {"existingSecret": "a", "lines": [f"t {DIGEST}"]}}, "both set"),
    "no replica may go": ({"replicaCount": 2, "podDisruptionBudget": {"minAvailable": 2}}, "lets no node be drained"),
    "more least than most": ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "above autoscaling.maxReplicas"),
    "init behind the policy": (
        {"networkPolicy": {"enabled": True}, "model": {"init": {"image": "x"}}}, "allows no egress"),
    "a pool without a picker": ({"inferencePool": {"enabled": True}}, "endpointPicker.name"),
    "a route without a pool": ({"inferencePool": {"httpRoute": {"enabled": True}}}, "set inferencePool.enabled too"),
    "a route without a gateway": (
        {"inferencePool": {"enabled": True, "endpointPicker": {"name": "p"}, "httpRoute": {"enabled": True}}},
        "needs parentRefs"),
    "one port twice": ({"ports": {"grpc": 8000}}, "two of them are the same"),
    "schema: an unknown key": ({"replicas": 3}, "replicas"),
    "schema: a negative number": ({"replicaCount": -1}, "replicaCount"),
    "schema: a key instead of its digest": ({"apiKeys": {"lines": ["acme secret"]}}, "lines"),
    "schema: a GPU that nobody would use": ({"gpu": {"count": 2}}, "count"),
    "schema: an unknown source": ({"model": {"source": "s3"}}, "source"),
}


def helm(*arguments):
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=120)


def render(values, tmp_path, kubernetes=KUBERNETES[-1]):
    path = tmp_path / "values.yaml"
    path.write_text(json.dumps(values))
    return helm("template", "demo", CHART, "--kube-version", kubernetes + ".0", "--namespace", "llm", "-f", path)


def rendered(values, tmp_path, kubernetes=KUBERNETES[-1]):
    result = render(values, tmp_path, kubernetes)
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def only(documents, kind):
    found = [d for d in documents if d["kind"] == kind]
    assert len(found) == 1, (kind, [d["kind"] for d in documents])
    return found[0]


def container(documents):
    return only(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def closed(schema):
    """A CRD's schema as JSON Schema that refuses what it does not name, as the API server would prune."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
    if "(?i)" in str(schema.get("pattern", "")):  # Go takes it anywhere, Python at the start
        schema["pattern"] = "(?i)" + schema["pattern"].replace("(?i)", "")
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@functools.cache
def custom_schemas():
    schemas = {}
    for path in sorted((VENV / "crds").glob("*.yaml")):
        for crd in filter(None, yaml.safe_load_all(path.read_text())):
            for version in crd["spec"]["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                schemas[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = schema
    return schemas


def check(document, kubernetes):
    key = document["apiVersion"], document["kind"]
    if key in custom_schemas():
        jsonschema.validate(document, custom_schemas()[key])
    else:
        kubernetes_validate.validate(document, kubernetes, strict=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_lint(shape, tmp_path):
    path = tmp_path / "values.yaml"
    path.write_text(json.dumps(SHAPES[shape]))
    result = helm("lint", "--strict", CHART, "--kube-version", KUBERNETES[-1] + ".0", "-f", path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kubernetes_and_the_crds_accept_it(shape, kubernetes, tmp_path):
    documents = rendered(SHAPES[shape], tmp_path, kubernetes)
    for document in documents:
        check(document, kubernetes)
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names)), names
    if shape == "everything":
        assert {"InferencePool", "InferenceObjective", "HTTPRoute", "ServiceMonitor", "PrometheusRule", "NetworkPolicy",
                "HorizontalPodAutoscaler", "PodDisruptionBudget", "PersistentVolumeClaim", "Secret",
                "ConfigMap"} <= {d["kind"] for d in documents}


def test_the_checks_can_fail(tmp_path):
    documents = rendered(SHAPES["everything"], tmp_path)
    for kind in ("Deployment", "InferencePool", "ServiceMonitor", "HTTPRoute"):
        broken = only(documents, kind)
        broken["spec"]["surprise"] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(broken, KUBERNETES[-1])


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused(case, tmp_path):
    values, message = REFUSED[case]
    result = render(values, tmp_path)
    assert result.returncode != 0 and message in result.stderr, result.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pod_has_time_to_drain(shape, tmp_path):
    documents = rendered(SHAPES[shape], tmp_path)
    pod, arguments = only(documents, "Deployment")["spec"]["template"]["spec"], container(documents)["args"]
    flag = {name: int(re.search(rf"--{name}=(\d+)s", " ".join(arguments))[1]) for name in ("drain-grace", "drain-deadline")}
    pre_stop = container(documents).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= pre_stop + flag["drain-grace"] + flag["drain-deadline"] + 5
    # Out of the endpoints before it serves no more: two probes fail within the grace.
    readiness = container(documents)["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= pre_stop + flag["drain-grace"]


def test_a_busy_pod_is_not_restarted(tmp_path):
    """Handlers may keep the HTTP port waiting; the port for health has a thread of its own."""
    for enabled, port in ((True, "admin"), (False, "http")):
        pod = container(rendered({"ports": {"adminEnabled": enabled}}, tmp_path))
        assert pod["livenessProbe"]["httpGet"] == {"path": "/livez", "port": port}


def test_older_clusters_sleep_in_the_container(tmp_path):
    hook = container(rendered({}, tmp_path, "1.29"))["lifecycle"]["preStop"]
    assert hook == {"exec": {"command": ["sleep", "5"]}}
    assert container(rendered({}, tmp_path, "1.34"))["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}


@pytest.mark.parametrize("shape", SHAPES)
def test_pods_can_do_little(shape, tmp_path):
    pod = only(rendered(SHAPES[shape], tmp_path), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False
    for each in pod["containers"] + pod.get("initContainers", []):
        context = each["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_selectors_find_the_pods_and_names_agree(tmp_path):
    documents = rendered(SHAPES["everything"], tmp_path)
    deployment = only(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"] for port in container(documents)["ports"]}
    for kind, path in (("InferencePool", ("selector", "matchLabels")), ("PodDisruptionBudget", ("selector", "matchLabels")),
                       ("NetworkPolicy", ("podSelector", "matchLabels"))):
        selector = functools.reduce(dict.__getitem__, path, only(documents, kind)["spec"])
        assert selector.items() <= labels, kind
    for service in (d for d in documents if d["kind"] == "Service"):
        assert service["spec"]["selector"].items() <= labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    monitor = only(documents, "ServiceMonitor")["spec"]
    watched = [d for d in documents if d["kind"] == "Service"
               and monitor["selector"]["matchLabels"].items() <= d["metadata"]["labels"].items()]
    assert len(watched) == 1 and monitor["endpoints"][0]["port"] in {p["name"] for p in watched[0]["spec"]["ports"]}
    test_pod = only(documents, "Pod")["metadata"]["labels"].items()
    assert not watched[0]["spec"]["selector"].items() <= test_pod, "the test pod must not get requests"
    pool = only(documents, "InferencePool")
    assert pool["spec"]["targetPorts"] == [{"number": 8000}]
    assert only(documents, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][0]["name"] == pool["metadata"]["name"]
    scaler = only(documents, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert [m["pods"]["metric"]["name"] for m in scaler["metrics"]] == ["vllm:num_requests_waiting"]
    assert "replicas" not in deployment["spec"], "the autoscaler's business"
    assert only(documents, "PrometheusRule")["spec"] == yaml.safe_load(
        (ROOT / "deploy/prometheus/t6d.rules.yml").read_text())
    assert json.loads(only(documents, "ConfigMap")["data"]["t6d.json"])["uid"] == "t6d"


def test_gpus(tmp_path):
    documents = rendered(SHAPES["gpu_from_init"], tmp_path)
    assert container(documents)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "--device=cuda" in container(documents)["args"]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "gpu" not in shape])
def test_t6d_takes_the_flags(shape, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"acme {DIGEST}\n")
    arguments = [re.sub(r"^(--model=).*", rf"\g<1>{MODEL}", a) for a in container(rendered(SHAPES[shape], tmp_path))["args"]]
    arguments = [re.sub(r"^(--api-key-file=).*", rf"\g<1>{keys}", a) for a in arguments]
    result = subprocess.run([BIN / "t6d", *arguments, "--plan"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
