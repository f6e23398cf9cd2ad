"""Keys: where they come from, and what is bound without them."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from serve.auth import CannotBind, check_binding
from serve.keyring import Keyring, operator_key
from serve.settings import GatewaySettings


def test_the_operators_key_is_made_once_for_its_owners_eyes(tmp_path: Path) -> None:
    made = operator_key(tmp_path / "var")

    path = tmp_path / "var" / "operator.key"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert operator_key(tmp_path / "var") == made
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_without_client_keys_nothing_but_loopback_is_bound(host: str, tmp_path: Path) -> None:
    with pytest.raises(CannotBind, match="HEED_CLIENT_KEYS"):
        check_binding(GatewaySettings(host=host, var=tmp_path))

    check_binding(GatewaySettings(host=host, var=tmp_path, client_keys=("key",)))
    check_binding(GatewaySettings(host=host, var=tmp_path, require_keys=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str, tmp_path: Path) -> None:
    check_binding(GatewaySettings(host=host, var=tmp_path))


def test_a_key_can_be_given_as_its_digest_and_its_digest_is_no_key(tmp_path: Path) -> None:
    digest = "sha256:" + hashlib.sha256(b"ann-key").hexdigest()
    keyring = Keyring(GatewaySettings(var=tmp_path, client_keys=(digest,), operator_key="op"))

    roles = {key: (found := keyring.identify(key)) and found.role for key in ("ann-key", digest, "other", "op")}

    assert roles == {"ann-key": "client", digest: None, "other": None, "op": "operator"}


def test_pages_of_any_origin_are_let_in_only_where_keys_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CannotBind, match="any web page"):
        check_binding(GatewaySettings(var=tmp_path, cors_origins=("*",)))

    check_binding(GatewaySettings(var=tmp_path, cors_origins=("*",), require_keys=True))
    check_binding(GatewaySettings(var=tmp_path, cors_origins=("https://chat.example.org",)))


@pytest.mark.parametrize(
    ("host", "is_known"), [("127.0.0.1:8000", True), ("[::1]:8000", True), ("evil.example", False)]
)
def test_hosts_of_this_machine_are_known(host: str, is_known: bool, tmp_path: Path) -> None:
    assert Keyring(GatewaySettings(var=tmp_path, operator_key="op")).knows_host(host) is is_known
