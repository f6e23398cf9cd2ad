"""deploy/kubernetes: it renders, an API server would take it, and it runs what compose.yaml runs, closed as tightly."""

import re
from importlib.metadata import version
from typing import Any

import kubernetes_validate
import pytest
import yaml

from feedback.settings import LedgerSettings
from serve.client import ClientSettings
from serve.console.settings import ConsoleSettings
from serve.settings import GatewaySettings
from tests.composed import services
from tests.manifests import FOLDER, Manifests, command, manifests, pod, rendered, told
from tests.processes import ROOT
from trainer.settings import WorkshopSettings

API = "1.37"
"""Of Kubernetes, whose schemas these are held to."""

VARIANTS = [("cpu",), ("gpu",), ("gpu", "autoscaling"), ("gpu", "autoscaling", "external-redis")]

COMPOSED = {
    "cpu": {
        "ledger": "ledger",
        "broker": "broker",
        "gateway": "gateway",
        "console": "console",
        "engine": "vllm",
        "worker": "worker",
        "beat": "beat",
    },
    "gpu": {
        "ledger": "ledger",
        "broker": "broker",
        "gateway": "gateway-gpu",
        "console": "console",
        "engine": "vllm-apart",
        "worker-training": "worker-apart",
        "beat": "beat-gpu",
    },
}
"""Workloads, and the services of compose.yaml that do the same."""

PROFILES = {"cpu": "cpu", "gpu": "two-gpu"}
"""Of compose.yaml, in which nothing is shared either."""

PAIRS = [(device, here, there) for device, names in COMPOSED.items() for here, there in names.items()]

UNITS = {"Gi": 2**30, "Mi": 2**20}


def named(found: Manifests, name: str) -> dict[str, Any]:
    """The container of the workload of this name."""
    (workload,) = (each for (_, called), each in found.items() if called == name and pod(each))
    (container,) = pod(workload)["containers"]
    return dict(container)


def workloads(found: Manifests) -> dict[str, dict[str, Any]]:
    return {name: each for (_, name), each in found.items() if pod(each)}


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_an_api_server_would_take_every_manifest(variant: tuple[str, ...]) -> None:
    for manifest in manifests(*variant).values():
        kubernetes_validate.validate(manifest, API, strict=True)


def test_an_unknown_field_is_seen() -> None:
    gateway = manifests("cpu")["Deployment", "gateway"]

    with pytest.raises(kubernetes_validate.utils.ValidationError, match="replica"):
        kubernetes_validate.validate(gateway | {"spec": gateway["spec"] | {"replica": 2}}, API, strict=True)


@pytest.mark.parametrize("device", COMPOSED)
def test_each_process_of_compose_yaml_is_here(device: str) -> None:
    assert workloads(manifests(device)).keys() == COMPOSED[device].keys() | {"model"}


@pytest.mark.parametrize(("device", "here", "there"), PAIRS)
def test_a_container_runs_the_command_line_of_compose_yaml(device: str, here: str, there: str) -> None:
    service = services(PROFILES[device])[there]

    wanted = (service.get("entrypoint") or []) + service["command"]

    assert command(named(manifests(device), here), manifests(device)) == wanted


@pytest.mark.parametrize(("device", "here", "there"), PAIRS)
def test_a_container_has_the_environment_of_compose_yaml(device: str, here: str, there: str) -> None:
    composed = services(PROFILES[device])[there].get("environment") or {}
    given = told(named(manifests(device), here), manifests(device))

    # One engine has one name there, and here one for each; what is shared is told to all that share it.
    assert {name: given.get(name) for name in composed if name != "HEED_ENGINES"} == {
        name: value for name, value in composed.items() if name != "HEED_ENGINES"
    }
    shared = manifests(device)["ConfigMap", "heed"]["data"].keys()
    assert given.keys() - composed.keys() <= shared


@pytest.mark.parametrize(("device", "here", "there"), PAIRS)
def test_a_container_has_the_memory_and_the_image_of_compose_yaml(device: str, here: str, there: str) -> None:
    service = services(PROFILES[device])[there]
    container = named(manifests(device), here)
    memory = container["resources"]["limits"]["memory"]

    assert int(memory[:-2]) * UNITS[memory[-2:]] == int(service["deploy"]["resources"]["limits"]["memory"])
    if service["image"].startswith("heed-"):
        name, _, device_tag = service["image"].partition(":")
        assert container["image"] == f"{name}:{version('heed')}" + (f"-{device_tag}" if device_tag else "")
    else:
        assert container["image"] == service["image"]


def test_the_model_is_made_as_compose_yaml_makes_it_and_then_said_to_be_there() -> None:
    said = ' && mkdir -p "/state/ready/$HEED_BASE_MODEL"'
    (_, _, pocket) = command(named(manifests("cpu"), "model"), manifests("cpu"))
    (_, _, downloaded) = command(named(manifests("gpu"), "model"), manifests("gpu"))
    base = manifests("gpu")["ConfigMap", "heed"]["data"]["HEED_BASE_MODEL"]
    download = " ".join(services("two-gpu")["model-gpu"]["command"])

    assert pocket == services("cpu")["model"]["command"][2] + said
    assert downloaded.replace('"$HEED_BASE_MODEL"', base, 1) == download + said


@pytest.mark.parametrize("device", COMPOSED)
def test_engine_and_workers_wait_for_what_the_model_says(device: str) -> None:
    waiting = {name for name, each in workloads(manifests(device)).items() if "initContainers" in pod(each)}

    assert waiting == {name for name in COMPOSED[device] if name.startswith(("engine", "worker"))}
    for name in waiting:
        (first,) = pod(workloads(manifests(device))[name])["initContainers"]
        assert '"/state/ready/$HEED_BASE_MODEL"' in first["command"][2]
        assert first["securityContext"] == named(manifests(device), name)["securityContext"]


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_every_setting_of_heed_that_is_given_exists(variant: tuple[str, ...]) -> None:
    rooms = (GatewaySettings, LedgerSettings, WorkshopSettings, ClientSettings, ConsoleSettings)
    known = {f"HEED_{name.upper()}" for room in rooms for name in room.model_fields} | {"HEED_SECRETS"}
    found = manifests(*variant)

    given = {name for each in workloads(found).values() for name in told(pod(each)["containers"][0], found)}

    assert {name for name in given if name.startswith("HEED_")} <= known


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_a_pod_is_closed_and_bounded(variant: tuple[str, ...]) -> None:
    for name, each in workloads(manifests(*variant)).items():
        spec = pod(each)
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert re.search(r":v?\d+\.\d+\.\d+", container["image"])


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_what_a_pod_mounts_and_a_service_selects_is_there(variant: tuple[str, ...]) -> None:
    found = manifests(*variant)
    labelled = [each["spec"]["template"]["metadata"]["labels"] for each in workloads(found).values()]

    def selects(selector: dict[str, str]) -> bool:
        return any(selector.items() <= labels.items() for labels in labelled)

    for each in workloads(found).values():
        volumes = {volume["name"]: volume for volume in pod(each).get("volumes", ())}
        volumes |= {claim["metadata"]["name"]: claim for claim in each["spec"].get("volumeClaimTemplates", ())}
        for container in [*pod(each)["containers"], *pod(each).get("initContainers", ())]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes.keys()
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in found
    for (kind, name), each in found.items():
        if kind == "Service":
            assert selects(each["spec"]["selector"]), name
        if kind in ("PodDisruptionBudget", "NetworkPolicy"):
            assert selects((each["spec"].get("selector") or each["spec"]["podSelector"]).get("matchLabels", {})), name


def test_only_the_gateway_reaches_the_engines_and_only_our_processes_the_ledger() -> None:
    def let_in(name: str) -> list[Any]:
        spec = manifests("gpu")["NetworkPolicy", name]["spec"]
        assert spec["podSelector"] == {"matchLabels": {"app": name}}
        (rule,) = spec["ingress"]
        return list(rule["from"])

    nobody = manifests("gpu")["NetworkPolicy", "nobody"]["spec"]

    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert let_in("engine") == [{"podSelector": {"matchLabels": {"app": "gateway"}}}]
    for name, apps in (("ledger", ["gateway", "worker", "beat"]), ("broker", ["worker", "beat"])):
        expression = {"key": "app", "operator": "In", "values": apps}
        assert let_in(name) == [{"podSelector": {"matchExpressions": [expression]}}]
    for name in ("engine", "ledger", "broker"):
        assert "Egress" in manifests("gpu")["NetworkPolicy", name]["spec"]["policyTypes"]
        assert "egress" not in manifests("gpu")["NetworkPolicy", name]["spec"]


def test_keys_come_from_secrets_that_are_not_here() -> None:
    found = manifests("gpu", "external-redis")
    made = re.findall(r"--from-file=secrets/(\w+)", (ROOT / "docs/kubernetes.md").read_text())
    volumes = {volume["name"]: volume for volume in pod(found["Deployment", "gateway"])["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in named(found, "gateway")["volumeMounts"]}

    assert not [name for kind, name in found if kind == "Secret"]
    assert volumes["keys"]["secret"]["secretName"] == "heed-keys"
    assert mounts["keys"] == told(named(found, "gateway"), found)["HEED_SECRETS"]
    assert made == [secret["source"] for secret in services("cpu")["gateway"]["secrets"]]


def test_a_gateway_gets_requests_when_it_can_answer_and_goes_after_they_have_ended() -> None:
    gateway = manifests("cpu")["Deployment", "gateway"]
    spec, container = pod(gateway), named(manifests("cpu"), "gateway")
    patience = container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]

    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz?chat=true"
    assert patience >= GatewaySettings().engine_wait_s
    assert spec["terminationGracePeriodSeconds"] > (
        container["lifecycle"]["preStop"]["sleep"]["seconds"] + GatewaySettings().drain_s
    )
    assert gateway["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert gateway["spec"]["replicas"] > manifests("cpu")["PodDisruptionBudget", "gateway"]["spec"]["minAvailable"]


def test_there_is_one_beat_at_a_time() -> None:
    spec = manifests("gpu")["Deployment", "beat"]["spec"]

    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_engine_and_worker_have_a_card_each_and_share_none() -> None:
    found = manifests("gpu")
    cards = {name: named(found, name)["resources"]["limits"].get("nvidia.com/gpu") for name in workloads(found)}

    assert {name: count for name, count in cards.items() if count} == {"engine": 1, "worker-training": 1}
    assert found["ConfigMap", "heed"]["data"]["HEED_GPU_POLICY"] == "dedicated"


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_the_gateway_knows_every_engine_that_there_may_be(variant: tuple[str, ...]) -> None:
    found = manifests(*variant)
    engine = found["StatefulSet", "engine"]["spec"]
    scaler = found.get(("HorizontalPodAutoscaler", "engine"))
    most = scaler["spec"]["maxReplicas"] if scaler else engine["replicas"]

    known = told(named(found, "gateway"), found)["HEED_ENGINES"].split(",")

    assert known == [f"http://engine-{number}.{engine['serviceName']}:8000" for number in range(most)]
    assert ("replicas" in engine) == (scaler is None)


def test_an_autoscaler_asks_for_what_the_adapter_gives() -> None:
    found = manifests("gpu", "autoscaling")
    rules = yaml.safe_load((FOLDER / "autoscaling/adapter.yaml").read_text())["rules"]["custom"]
    given = {rule["name"]["as"] for rule in rules}

    asked = {
        metric["pods"]["metric"]["name"]
        for (kind, _), each in found.items()
        if kind == "HorizontalPodAutoscaler"
        for metric in each["spec"]["metrics"]
        if metric["type"] == "Pods"
    }

    assert asked == given
    for (kind, name), each in found.items():
        if kind == "HorizontalPodAutoscaler":
            target = each["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in found
            annotations = found[target["kind"], name]["spec"]["template"]["metadata"]["annotations"]
            assert annotations["prometheus.io/port"] == str(named(found, name)["ports"][0]["containerPort"])


def test_a_redis_of_somebody_else_takes_the_place_of_ours() -> None:
    found = manifests("gpu", "external-redis")
    page = (ROOT / "docs/kubernetes.md").read_text()

    assert set(re.findall(r"--from-literal=(\w+)=", page)) == {"ledger", "broker"}
    assert not [name for _, name in found if name in ("ledger", "broker")]
    for name in ("gateway", "worker-training", "beat"):
        assert told(named(found, name), found)["HEED_LEDGER_URL"] == "heed-redis/ledger"
    for name in ("worker-training", "beat"):
        assert told(named(found, name), found)["HEED_BROKER_URL"] == "heed-redis/broker"
        assert "readinessProbe" not in named(found, name)


def test_an_overlay_of_ones_own_and_another_pool_are_as_the_docs_say() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    files = dict(re.findall(r"```yaml\n# (overlay/\S+)\n(.*?)```", page, re.DOTALL))

    found = rendered({name.removeprefix("overlay/"): text for name, text in files.items()})

    for manifest in found.values():
        kubernetes_validate.validate(manifest, API, strict=True)
    pools = {name: pod(each) for name, each in workloads(found).items() if name.startswith("worker")}
    assert pools.keys() == {"worker-training", "worker-large"}
    assert pools["worker-large"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pools["worker-large"]["securityContext"]["runAsNonRoot"]
    assert found["PersistentVolumeClaim", "state"]["spec"]["storageClassName"] == "shared-files"
    assert named(found, "gateway")["image"].startswith("registry.example.org/")
    assert told(named(found, "gateway"), found)["HEED_MODELS"] == "support"
    assert "--served-model-name=support-base" in command(named(found, "engine"), found)
