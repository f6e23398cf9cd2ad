"""deploy/kubernetes as kubectl's kustomize renders it, without a cluster."""

import functools
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.processes import ROOT, said

KUBECTL = str(Path(sys.executable).with_name("kubectl"))
FOLDER = ROOT / "deploy" / "kubernetes"

Json = dict[str, Any]
Manifests = dict[tuple[str, str], Json]
"""By kind and name, the digest of a generated name left away."""


def rendered(overlay: Mapping[str, str]) -> Manifests:
    """What kustomize makes of an overlay of these files, by path, that lies beside ours. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "kubernetes"
        shutil.copytree(FOLDER, folder)
        for file, text in overlay.items():
            (folder / "overlay" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "overlay" / file).write_text(text)
        told = said([KUBECTL, "kustomize", str(folder / "overlay")], Path(name))
    return {(each["kind"], _plain(each)): each for each in yaml.safe_load_all(told)}


@functools.cache
def manifests(device: str, *components: str) -> Manifests:
    """Of one of our overlays, with some of our components."""
    return rendered(
        {
            "kustomization.yaml": yaml.safe_dump(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "namespace": "heed",
                    "resources": [f"../{device}"],
                    "components": [f"../{component}" for component in components],
                }
            )
        }
    )


def _plain(manifest: Json) -> str:
    name = str(manifest["metadata"]["name"])
    return re.sub("-[a-z0-9]{10}$", "", name) if manifest["kind"] == "ConfigMap" else name


def pod(manifest: Json) -> Json:
    """What its pods are, where it makes some; else empty."""
    template: Json = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return template


def told(container: Json, found: Manifests) -> dict[str, str]:
    """The environment that a container gets from its manifest and the ConfigMaps; of a Secret, its name and the key."""
    env: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            (data,) = (
                each["data"]
                for (kind, _), each in found.items()
                if kind == "ConfigMap" and each["metadata"]["name"] == source["configMapRef"]["name"]
            )
            env |= data
    for given in container.get("env", ()):
        if "valueFrom" in given:
            secret = given["valueFrom"]["secretKeyRef"]
            env[given["name"]] = f"{secret['name']}/{secret['key']}"
        else:
            env[given["name"]] = given["value"]
    return env


def command(container: Json, found: Manifests) -> list[str]:
    """Its command line, variables put in as kubelet does."""
    env = told(container, found)
    return [re.sub(r"\$\((\w+)\)", lambda name: env[name[1]], part) for part in container["command"]]
