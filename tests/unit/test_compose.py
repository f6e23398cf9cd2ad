"""compose.yaml is a valid Compose file, and it runs what `heed up` runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve import stack
from serve.stack import Stack, StackSettings
from tests.processes import ROOT

# Each profile's name for a service of the design.
NAMES = {
    "cpu": {"ledger", "broker", "vllm", "gateway", "worker", "beat", "model", "console"},
    "gpu": {"ledger", "broker", "vllm-gpu", "gateway-gpu", "worker-gpu", "beat-gpu", "console"},
}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    loaded = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return dict(loaded["services"])


def flags(command: list[str]) -> dict[str, str]:
    """`--flag value` and `--flag=value` alike; a switch has no value."""
    found = {}
    for part, following in zip(command, [*command[1:], "--"], strict=True):
        if part.startswith("--"):
            name, _, value = part.partition("=")
            found[name] = value or ("" if following.startswith("--") else following)
    return found


def test_compose_yaml_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]

    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_a_profile_has_every_service_of_the_design(profile: str, services: dict[str, dict[str, Any]]) -> None:
    taken = {name for name, service in services.items() if profile in service.get("profiles", [profile])}

    assert taken == NAMES[profile]


def test_only_the_gateway_is_reached_from_outside_and_the_console_from_here(
    services: dict[str, dict[str, Any]],
) -> None:
    published = {name for name, service in services.items() if "ports" in service}

    assert published == {"gateway", "gateway-gpu", "console"}
    assert all(port.startswith("127.0.0.1:") for port in services["console"]["ports"])


def test_the_console_is_a_client_that_reaches_the_gateway_of_either_profile(
    services: dict[str, dict[str, Any]],
) -> None:
    assert services["console"]["environment"]["HEED_URL"] == "http://gateway:8000"
    assert services["console"]["networks"] == ["outside"]
    for name in ("gateway", "gateway-gpu"):
        assert services[name]["networks"]["outside"]["aliases"] == ["gateway"]


def test_only_the_gpu_profile_asks_for_a_gpu_and_for_one(services: dict[str, dict[str, Any]]) -> None:
    devices = {
        name: service["deploy"]["resources"]["reservations"]["devices"][0]["count"]
        for name, service in services.items()
        if "deploy" in service
    }

    assert devices == {"worker-gpu": 1, "vllm-gpu": 1}


@pytest.mark.parametrize(("name", "device"), [("vllm", "cpu"), ("vllm-gpu", "gpu")])
def test_the_engine_has_the_flags_that_heed_up_gives_it(
    name: str, device: stack.Device, services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    embedded = stack.engine(Stack(StackSettings(var=tmp_path), device, 1, (2,)), key="")
    elsewhere = {"--host", "--port", "--model"}  # a container has an address and a volume of its own

    composed = flags(services[name]["command"])

    wanted = flags(list(embedded.command))
    assert {k: v for k, v in composed.items() if k not in elsewhere} == {
        k: v for k, v in wanted.items() if k not in elsewhere
    }


@pytest.mark.parametrize("dockerfile", ["serve/Dockerfile", "trainer/Dockerfile"])
def test_an_image_runs_as_a_user_and_installs_the_lock(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text()

    assert "\nUSER heed\n" in text
    assert "-r requirements/" in text


def test_uv_has_one_version_in_the_images_and_on_a_laptop() -> None:
    (line,) = [
        x for x in (ROOT / "requirements" / "install.sh").read_text().splitlines() if x.startswith("UV_VERSION=")
    ]

    version = line.partition("=")[2]

    for dockerfile in ("serve/Dockerfile", "trainer/Dockerfile"):
        assert f"uv=={version} " in (ROOT / dockerfile).read_text()
