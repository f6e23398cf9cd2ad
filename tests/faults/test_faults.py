"""Kills under load lose no acknowledged vote and count none twice; and the harness would notice if they did.

A few kills each; `make kills` strikes twenty times (docs/reliability.md).
"""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from feedback import votes
from feedback.connection import open_ledger
from feedback.settings import LedgerSettings
from tests.faults.book import NOTHING, About, Book, said, seen
from tests.faults.faults import FAULTS, Fault
from tests.faults.house import House, Strike
from tests.faults.trial import endure, table

HASTE = {"HEED_LEDGER_TIMEOUT_S": "2", "HEED_JOB_LEASE_S": "3"}  # what a killed process held is free sooner
VOTE = {"object": "vote", "id": "vote-1", "completion_id": "c", "rating": "up", "voter": "ann", "reasons": ["short"]}


@pytest.mark.parametrize("fault", FAULTS)
async def test_kills_under_load_lose_nothing_that_was_acknowledged_and_double_nothing(fault: str) -> None:
    row = await endure(FAULTS[fault], strikes=2, seed=1, clients=32, env=HASTE)

    assert row.problems == []
    assert row.audit is not None
    assert row.audit.sent == row.audit.found > 100
    assert row.audit.answers_sent == row.audit.answers_found > 10
    assert row.audit.duplicates == 0
    assert {"vote", "correction", "preference", "judgement", "withdrawal"} <= row.acts.keys()
    assert all(blow.in_flight > 0 for blow in row.blows)
    assert f"| {row.audit.sent:,} | {row.audit.found:,} | 0 |" in table([row])


async def test_votes_lost_and_votes_doubled_behind_the_voters_backs_are_found() -> None:
    async def tamper(house: House) -> Strike:
        strike = await house.kill("gateway")
        ledger = open_ledger(LedgerSettings(ledger_url=house.stack.ledger_url))
        given = [one for one in (await votes.page(ledger, limit=100))[0] if one.id.startswith("vote-")]
        for one in given[:8]:  # of several, for the crowd goes on and may give some again
            await votes.withdraw(ledger, one.id)
        for one in given[8:16]:
            copied = one.model_copy(update={"id": f"{one.id}-copied"})
            await ledger.redis.set(ledger.keys.vote(copied.id), orjson.dumps(copied.model_dump(exclude_none=True)))
            await ledger.redis.zadd(ledger.keys.votes, {copied.id: one.created})
        await ledger.close()
        return strike

    fault: Fault = replace(FAULTS["gateway"], strike=tamper)
    row = await endure(fault, strikes=1, seed=2, clients=4, env=HASTE)

    assert row.audit is not None
    assert row.audit.found < row.audit.sent
    assert row.audit.duplicates > 0
    assert any("-copied is a second record" in problem for problem in row.problems)
    assert any("and stands as ()" in problem for problem in row.problems)
    assert any(problem.startswith("heed check: broken: ") for problem in row.problems)


def test_the_book_balances_when_all_that_was_acknowledged_stands() -> None:
    book = Book()
    book.note(*seen(VOTE), act="vote")
    withdrawn = About("vote", ("d",), "ann")
    book.note(withdrawn, said(rating="up"), act="vote")
    book.note(withdrawn, NOTHING, act="withdrawal")
    book.answers["c"] = "text"

    audit = book.audit([VOTE], {"c": "text"})

    assert audit.problems == []
    assert (audit.sent, audit.found, audit.answers_sent, audit.answers_found) == (2, 2, 1, 1)


@pytest.mark.parametrize(
    ("standing", "answers", "word"),
    [
        ([], {"c": "text"}, "stands as ()"),
        ([VOTE | {"rating": "down"}], {"c": "text"}, "'down'"),
        ([VOTE, VOTE | {"id": "vote-2"}], {"c": "text"}, "second record"),
        ([VOTE, VOTE | {"id": "vote-2", "voter": "bob"}], {"c": "text"}, "nobody gave it"),
        ([VOTE], {}, "cannot be read"),
        ([VOTE], {"c": "another text"}, "cannot be read"),
    ],
)
def test_the_book_finds_what_is_lost_changed_doubled_or_invented(
    standing: list[dict[str, Any]], answers: dict[str, str], word: str
) -> None:
    book = Book()
    book.note(*seen(VOTE), act="vote")
    book.answers["c"] = "text"

    problems = book.audit(standing, answers).problems

    assert any(word in problem for problem in problems)


@pytest.mark.parametrize(("stands", "acted", "is_right"), [("up", 0, True), ("down", 1, True), (None, 0, False)])
def test_a_request_that_was_given_up_may_have_acted_or_not_and_nothing_else(
    stands: str | None, acted: int, is_right: bool
) -> None:
    book = Book()
    about, before = seen(VOTE)
    book.note(about, before, act="vote")
    book.abandon(about, seen(VOTE | {"rating": "down"})[1])

    audit = book.audit([VOTE | {"rating": stands}] if stands else [], {})

    assert (audit.abandoned, audit.abandoned_acted, not audit.problems) == (1, acted, is_right)
