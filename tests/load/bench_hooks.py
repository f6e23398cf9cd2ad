"""What keys, limits, vote tokens, metrics and logs cost each request: `python -m tests.load.bench_hooks`.

CPU time of one call in a loop of its own, where caches are warm: what they add to a request is at least this.
"""

import logging
import os
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

from feedback.credentials import digest_of
from feedback.records import Credential
from serve.keyring import Caller, Keyring
from serve.limits import Limits
from serve.logs import JsonLines, Lines, access, request_id, tell_end
from serve.metrics import Metrics
from serve.routing import Target
from serve.settings import GatewaySettings
from serve.tracing import Tracing
from serve.vote_tokens import VoteTokens

CALLS, ROUNDS = 10_000, 7
KEY = "heed-0123abcd-" + "x" * 43
ANSWER = "chatcmpl-" + "a" * 24
TARGET = Target("heed", "heed-v1-01234567")
USAGE = {"prompt_tokens": 7, "completion_tokens": 30}


def main() -> None:
    with tempfile.TemporaryDirectory() as var:
        settings = GatewaySettings(var=Path(var), require_keys=True)
        keyring = Keyring(settings)
    made = Credential(id="key-0123abcd", role="client", name="bench", digest=digest_of(KEY), created=1.0)
    keyring.learn({made.id: made})
    metrics, tracing, tokens = Metrics(), Tracing(), VoteTokens(1)
    limits, tokens.secret = Limits(settings, metrics), b"s" * 32
    limited, unlimited = Caller("key-1", "client", 10**9, 10**9), Caller("key-2", "client")
    seen = metrics.of("heed", "live")

    def count() -> None:
        metrics.request("POST", 200)
        seen.in_flight.inc()
        seen.in_flight.dec()
        seen.ended("answered", 1.0, 0.1, USAGE)
        metrics.ledger.observe(0.001)

    def end() -> None:
        tell_end("POST", "/v1/chat/completions", 200, 0.1, "key-1")

    show("find out whose key it is", lambda: keyring.identify(KEY))
    show("limits of requests and of tokens, both set", lambda: limits.admit(limited, 10).settle(40))
    show("the same, none set", lambda: limits.admit(unlimited, 10).settle(40))
    show("sign a vote token", lambda: tokens.sign(ANSWER, "key-1", "ann"))
    show("all metrics of a streamed answer", count)
    show("tracing, off", lambda: (tracing.asking(TARGET), tracing.recording()))
    access.setLevel(logging.WARNING)
    show("access line, off", end)
    access.setLevel(logging.INFO)
    access.propagate = False
    request_id.set("req-" + "a" * 24)
    with open(os.devnull, "w") as nowhere:
        for formatter in (Lines(), JsonLines()):
            handler = logging.StreamHandler(nowhere)
            handler.setFormatter(formatter)
            access.handlers = [handler]
            show(f"access line, {type(formatter).__name__}", end)


def show(what: str, call: Callable[[], object]) -> None:
    best_s = min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS
    print(f"| {what} | {best_s * 1e6:.1f} |")


if __name__ == "__main__":
    main()
