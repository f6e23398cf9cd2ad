"""Which keys open the gateway, and for whom: those of the settings, and those of the ledger, held here in memory.

Keys are kept as digests and compared in constant time. Those of the ledger are read anew when one was made or revoked
(serve/accord.py); while the ledger is down, the known ones go on working.
"""

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from feedback import credentials
from feedback.records import Credential, Role
from serve.settings import GatewaySettings

LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
ANONYMOUS = "anonymous"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request, by their key."""

    name: str
    """The default voter, and the `client` of what is recorded."""
    role: Role
    requests_per_minute: int | None = None
    """None: the gateway's default; 0: any number."""
    tokens_per_minute: int | None = None

    @property
    def is_operator(self) -> bool:
        return self.role == "operator"

    @property
    def reads_all(self) -> bool:
        """Whether stored answers and votes of everybody are theirs to read."""
        return self.role != "client"


NOBODY = Caller(ANONYMOUS, "client")


class Keyring:
    def __init__(self, settings: GatewaySettings, clock: Callable[[], float] = time.time) -> None:
        self._operator = _stored(settings.operator_key or operator_key(settings.var))
        self._clients = [_stored(key) for key in settings.client_keys]
        self._hosts = LOCAL_NAMES | set(settings.allowed_hosts)
        self._made: Mapping[str, Credential] = {}
        self._seen: dict[str, int] = {}
        self._clock = clock
        self.used: set[str] = set()
        """Ids of the ledger's keys that came, since somebody last took them from here; each once a minute."""
        self.is_open = not (self._clients or settings.require_keys)
        """No key is asked for: whoever reaches us is a client."""

    def learn(self, made: Mapping[str, Credential]) -> None:
        """The ledger's keys as they are now."""
        self._made = made

    def identify(self, key: str) -> Caller | None:
        """Who has this key; None where nobody has, or it was revoked."""
        if credential_id := credentials.id_of(key):
            return self._holder(credential_id, key)
        digest = hashlib.sha256(key.encode()).hexdigest()
        name = f"key-{digest[:12]}"
        if hmac.compare_digest(digest, self._operator):
            return Caller(name, "operator")
        # All are compared, so that the time taken does not tell which one matched.
        if sum(hmac.compare_digest(digest, known) for known in self._clients):
            return Caller(name, "client")
        return None

    def _holder(self, credential_id: str, key: str) -> Caller | None:
        found = self._made.get(credential_id)
        if found is None or found.revoked is not None or not credentials.is_key_of(found, key):
            return None
        minute = int(self._clock() // 60)
        if self._seen.get(found.id) != minute:
            self._seen[found.id] = minute
            self.used.add(found.id)
        return Caller(found.id, found.role, found.requests_per_minute, found.tokens_per_minute)

    def knows_host(self, host: str) -> bool:
        """Whether a Host header may be answered."""
        return not self.is_open or re.sub(r":\d+$", "", host).lower() in self._hosts


def operator_key(var: Path) -> str:
    """The key in var/operator.key; made at the first start, for its owner's eyes only."""
    path = var / "operator.key"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        var.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".operator.key.{os.getpid()}")
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"heed-{secrets.token_urlsafe(24)}\n")
    try:
        os.link(made, path)  # complete or not there at all, and the first of two starting at once wins
    except FileExistsError:
        pass
    finally:
        made.unlink()
    return path.read_text().strip()


def _stored(setting: str) -> str:
    """The digest of a key that a setting gives plain or as its digest."""
    is_digest = re.fullmatch(r"sha256:[0-9a-f]{64}", setting)
    return setting.removeprefix("sha256:") if is_digest else hashlib.sha256(setting.encode()).hexdigest()
