"""Keys: where they come from, and what is bound without them."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from serve.auth import CannotBind, Keys, check_binding, operator_key
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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str, tmp_path: Path) -> None:
    check_binding(GatewaySettings(host=host, var=tmp_path))


def test_a_key_can_be_given_as_its_digest_and_its_digest_is_no_key(tmp_path: Path) -> None:
    digest = "sha256:" + hashlib.sha256(b"ann-key").hexdigest()
    keys = Keys(GatewaySettings(var=tmp_path, client_keys=(digest,), operator_key="op"))

    assert keys.is_client("ann-key")
    assert not keys.is_client(digest)
    assert not keys.is_client("other")
    assert keys.is_operator("op")
    assert not keys.is_operator("ann-key")


@pytest.mark.parametrize(
    ("host", "is_known"), [("127.0.0.1:8000", True), ("[::1]:8000", True), ("evil.example", False)]
)
def test_hosts_of_this_machine_are_known(host: str, is_known: bool, tmp_path: Path) -> None:
    assert Keys(GatewaySettings(var=tmp_path, operator_key="op")).knows_host(host) is is_known
