"""Vote tokens: a browser's right to vote on the one answer it was given, without a key.

A token names a completion, the voter, the key that asked and when it expires, and is signed (HMAC-SHA256) with a
secret that all gateways have from the ledger. The voter is the request's `user`, or else a name made of the
completion's, so that nobody can vote as somebody else.
"""

import base64
import hmac
import time
from collections.abc import Callable
from typing import NamedTuple

import orjson
from pydantic import TypeAdapter, ValidationError

from serve.errors import Refused
from serve.protocol import Voter

HEADER = "x-heed-vote-token"

_VOTER: TypeAdapter[str] = TypeAdapter(Voter)


class Ballot(NamedTuple):
    completion_id: str
    voter: str
    client: str
    expires: int


class VoteTokens:
    def __init__(self, hours: float, clock: Callable[[], float] = time.time) -> None:
        self.secret = b""
        """Empty until the ledger has told it."""
        self._lifetime_s = hours * 3600
        self._clock = clock

    def sign(self, completion_id: str, client: str, user: str | None) -> str | None:
        """None where there are no tokens, or `user` is no name that could vote."""
        if not (self.secret and self._lifetime_s):
            return None
        voter = f"reader-{completion_id.removeprefix('chatcmpl-')}"
        if user:
            try:
                voter = _VOTER.validate_python(user)
            except ValidationError:
                return None
        payload = orjson.dumps((completion_id, voter, client, int(self._clock() + self._lifetime_s)))
        return f"{_text(payload)}.{_text(self._mac(payload))}"

    def headers(self, completion_id: str, client: str, user: str | None) -> list[tuple[bytes, bytes]]:
        """Of the answer."""
        token = self.sign(completion_id, client, user)
        return [(HEADER.encode(), token.encode())] if token else []

    def read(self, token: str) -> Ballot:
        """Raises Refused (401)."""
        payload, mac = (_bytes(part) for part in (*token.split(".", 1), "")[:2])
        if not self.secret or not hmac.compare_digest(mac, self._mac(payload)):
            raise Refused(
                401,
                "invalid_vote_token",
                f"{HEADER} is not one that this gateway signed; send it as it came with the answer, or send a key",
            )
        ballot = Ballot(*orjson.loads(payload))
        if ballot.expires < self._clock():
            raise Refused(
                401,
                "vote_token_expired",
                "the vote token has expired (HEED_VOTE_TOKEN_HOURS); the stored completion has a new one",
            )
        return ballot

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self.secret, b"vote token 1:" + payload, "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """b"" for what is no base64, which no signature fits."""
    try:
        return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, UnicodeEncodeError):
        return b""
