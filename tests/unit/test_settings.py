"""Settings of the gateway, as the environment gives them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from serve.settings import GatewaySettings
from tests.processes import ROOT


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_MODELS", "heed, other,")
    monkeypatch.setenv("HEED_CLIENT_KEYS", "")

    settings = GatewaySettings()

    assert settings.models == ("heed", "other")
    assert settings.client_keys == ()


def test_there_is_a_served_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_MODELS", ",")

    with pytest.raises(ValidationError, match="at least one served model"):
        GatewaySettings()


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in GatewaySettings.model_fields.items() if not field.description] == []


def test_a_secret_is_read_from_its_file_and_the_environment_goes_before_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "heed_operator_key").write_text("from a file\n")
    (tmp_path / "heed_client_keys").write_text("web\napp, kiosk\n")
    (tmp_path / "heed_judge_key").write_text("never seen")
    told = "from serve.settings import GatewaySettings as G; from serve.client import ClientSettings as C\n"
    told += "from trainer.settings import WorkshopSettings as W\n"
    told += "print([G().operator_key, G().client_keys, C().key, W().judge_key])"
    environ = {**os.environ, "HEED_SECRETS": str(tmp_path), "HEED_JUDGE_KEY": "from here", "HEED_OPERATOR_KEY": ""}

    # A process of its own: where secrets are is read once, as the rooms are imported.
    said = subprocess.run(
        [sys.executable, "-c", told], env=environ, cwd=ROOT, check=True, capture_output=True, text=True
    )

    assert ast.literal_eval(said.stdout) == ["from a file", ("web", "app", "kiosk"), "from a file", "from here"]
