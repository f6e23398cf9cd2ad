"""Settings of the gateway, as the environment gives them."""

import pytest
from pydantic import ValidationError

from serve.settings import GatewaySettings


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
