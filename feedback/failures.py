"""What redis-py raises, told to whoever asked: was it stored, and may they ask again?

- refused: Redis answered with an error. It checks disk (MISCONF), memory (OOM) and role (READONLY) before a script's or
  a transaction's first write, so nothing was stored.
- unreachable: no connection came about, so nothing was sent and nothing was stored.
- lost: the command may have arrived and the answer to it did not. With `appendfsync always` a server whose disk is full
  ends itself in the middle of a write, and this is all that its clients see of it.
- at one place only: the primary has it and too few replicas do, so a failover now would lose it.
"""

from redis.exceptions import AskError, ClusterCrossSlotError, ClusterDownError, RedisError, ResponseError

from feedback.errors import LedgerUnavailable

FAILURES = (RedisError, OSError, TimeoutError)
_OF_A_CLUSTER = (AskError, ClusterCrossSlotError, ClusterDownError)  # MOVED is an AskError


def unreachable(error: BaseException) -> LedgerUnavailable:
    return LedgerUnavailable(f"the ledger cannot be reached ({_name(error)}); nothing was stored; try again")


def refused_or_lost(error: BaseException) -> LedgerUnavailable:
    if isinstance(error, _OF_A_CLUSTER):
        return LedgerUnavailable(
            f"HEED_LEDGER_URL leads to a Redis cluster ({_name(error)}), which cannot be the ledger; nothing was "
            "stored. One server works, or Sentinels (redis+sentinel://)"
        )
    if isinstance(error, ResponseError):
        return LedgerUnavailable(f"the ledger refused the request ({_name(error)}); nothing was stored; try again")
    return LedgerUnavailable(
        f"the ledger's answer did not come ({_name(error)}), so whether the request was stored is not known; "
        "try again (a vote that is sent twice counts once)"
    )


def at_one_place_only() -> LedgerUnavailable:
    return LedgerUnavailable(
        "the ledger stored the request, but fewer replicas than HEED_LEDGER_REPLICAS have it, so that a failover could "
        "lose it; try again (a vote that is sent twice counts once)"
    )


def _name(error: BaseException) -> str:
    """Redis's word for its refusal where it has one (MISCONF, OOM); never its text, which names keys."""
    word = str(error).split(" ", 1)[0]
    if isinstance(error, ResponseError) and word.isalpha() and word.isupper():
        return word
    return type(error).__name__
