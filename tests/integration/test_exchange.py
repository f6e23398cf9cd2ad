"""In and out: what is exported and imported again is the same, and nothing is taken twice or half."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from feedback import completions, erasure, formats, imports, pairs, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.errors import LedgerUnavailable
from feedback.formats import Format, Given, Preferred, Rated
from feedback.imports import Report, Source
from feedback.records import AnswerRef, Choice, Completion, Message, Pair, Vote, new_id, prompt_digest
from feedback.settings import LedgerSettings
from tests.gateways import RunningGateway
from tests.processes import free_port

Json = dict[str, Any]


async def answered(ledger: Ledger, prompt: str, *answers: str) -> Completion:
    messages = [{"role": "user", "content": prompt}]
    made = Completion(
        id=new_id("chatcmpl"),
        served_model="heed",
        adapter="heed-base",
        created=1000.0,
        messages=messages,
        prompt_hash=prompt_digest(messages),
        choices=[Choice(index=i, message={"role": "assistant", "content": text}) for i, text in enumerate(answers)],
    )
    await completions.record(ledger, made)
    return made


async def taught(ledger: Ledger, format: Format) -> None:
    """Pairs of every source: a preference, a correction and two thumbs. KTO has no room for two pairs of one prompt."""
    one = await answered(ledger, "first\u2028question", "good\n\n", "bad \U0001f600")
    other = await answered(ledger, "second question", "wrong")
    third = await answered(ledger, "third question", "liked", "disliked")
    ref = [AnswerRef(completion_id=one.id, choice=choice) for choice in (0, 1)]
    await votes.prefer(ledger, chosen=ref[0], rejected=ref[1], voter="ann")
    await votes.cast(ledger, completion_id=other.id, rating="down", voter="ann", correction="right")
    await votes.cast(ledger, completion_id=third.id, choice=0, rating="up", voter="bob")
    await votes.cast(ledger, completion_id=third.id, choice=1, rating="down", voter="bob")
    if format != "kto":
        again = await answered(ledger, "second question", "")
        await votes.cast(ledger, completion_id=again.id, rating="down", voter="ann", correction="right and long")


async def standing(ledger: Ledger) -> list[Pair]:
    await pairs.settle(ledger)
    return await pairs.get_many(ledger, await pairs.ids(ledger))


def texts(found: list[Pair]) -> set[str]:
    return {json.dumps([pair.prompt, pair.chosen, pair.rejected]) for pair in found}


async def take(ledger: Ledger, given: list[Given], source: Source = "trl") -> Report:
    return await imports.take(ledger, list(enumerate(given, 1)), source, 100)


async def broken(ledger: Ledger) -> list[str]:
    return [sentence async for sentence in violations(ledger)]


def lines_of(rows: list[Json]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


JSONL = {"content-type": "application/jsonl"}


@pytest.mark.parametrize("format", ["trl", "openai", "kto"])
async def test_what_is_exported_and_imported_into_an_empty_ledger_is_the_same_pairs(
    gateway: RunningGateway, ledger: Ledger, format: Format
) -> None:
    await taught(ledger, format)
    before = await standing(ledger)
    exported = (await gateway.operator.get("/v1/pairs", params={"format": format})).content
    await ledger.redis.flushdb()

    first = await gateway.operator.post("/v1/import", params={"format": format}, content=exported, headers=JSONL)
    after = await standing(ledger)
    again = await gateway.operator.post("/v1/import", params={"format": format}, content=exported, headers=JSONL)

    count = exported.count(b"\n")
    assert len(before) == (3 if format == "kto" else 4)
    assert texts(after) == texts(before)
    assert len(after) == len(before)
    assert first.json().items() >= {"object": "import", "lines": count, "imported": count, "rejected": 0}.items()
    assert again.json().items() >= {"lines": count, "imported": 0, "duplicates": count, "rejected": 0}.items()
    assert await standing(ledger) == after
    assert await broken(ledger) == []


async def test_kto_takes_out_answers_in_no_pair_too_by_majority_and_once(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    liked = await answered(ledger, "lone question", "liked", "argued about", "preferred", "outdone")
    for voter, rating in (("ann", "up"), ("bob", "up"), ("carl", "down")):
        await votes.cast(ledger, completion_id=liked.id, choice=0, rating=rating, voter=voter)  # type: ignore[arg-type]
    await votes.cast(ledger, completion_id=liked.id, choice=1, rating="up", voter="ann")
    await votes.cast(ledger, completion_id=liked.id, choice=1, rating="down", voter="bob")
    ref = [AnswerRef(completion_id=liked.id, choice=choice) for choice in (2, 3)]
    await votes.prefer(ledger, chosen=ref[0], rejected=ref[1], voter="ann")
    await votes.cast(ledger, completion_id=liked.id, choice=2, rating="up", voter="ann")

    reply = await gateway.operator.get("/v1/pairs", params={"format": "kto"})

    found = [json.loads(line) for line in reply.text.splitlines()]
    assert [(row["completion"][0]["content"], row["label"]) for row in found] == [
        ("preferred", True),
        ("outdone", False),
        ("liked", True),
    ]
    await ledger.redis.flushdb()
    again = await gateway.operator.post("/v1/import?format=kto", content=reply.content, headers=JSONL)
    assert again.json()["imported"] == 3


TEXTS = some.text(alphabet=some.characters(exclude_categories=["Cs"]), max_size=30)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(asked=some.lists(some.tuples(TEXTS, TEXTS, TEXTS), max_size=6, unique_by=lambda texts: texts[0]))
def test_pairs_of_any_texts_survive_the_way_through_the_ledger(
    ledger_url: str, asked: list[tuple[str, str, str]]
) -> None:
    """In by one format, out and in by the other, into two empty ledgers."""
    teaching = [
        Preferred(
            [{"role": "user", "content": prompt}],
            {"role": "assistant", "content": good},
            {"role": "assistant", "content": bad},
        )
        for prompt, good, bad in asked
        if good.strip() != bad.strip()
    ]

    async def way() -> tuple[set[str], set[str]]:
        ledger = open_ledger(LedgerSettings(ledger_url=ledger_url), "round-trip")
        try:
            seen = []
            rows = [{"prompt": one.prompt, "chosen": [one.chosen], "rejected": [one.rejected]} for one in teaching]
            ways: list[tuple[Format, Format]] = [("trl", "openai"), ("openai", "trl")]
            for source, format in ways:
                await ledger.redis.flushdb()
                given = [Given([formats.read(row, source)]) for row in rows]
                assert (await take(ledger, given, source)).imported == len(rows)
                found = await standing(ledger)
                seen.append(texts(found))
                rows = [row for pair in found for row in formats.rows(pair, format)]
            return seen[0], seen[1]
        finally:
            await ledger.close()

    first, second = asyncio.run(way())

    assert first == second == {json.dumps([one.prompt, one.chosen, one.rejected]) for one in teaching}


async def test_every_line_is_taken_or_named_and_what_is_refused_leaves_nothing(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(40)]
    content = lines_of(rows[:20]) + b'{"prompt": "my secret"}\n\nnot json\n' + lines_of(rows[20:])

    answer = (await gateway.operator.post("/v1/import?format=trl", content=content, headers=JSONL)).json()

    assert (answer["lines"], answer["imported"], answer["rejected"]) == (42, 40, 2)
    assert [reject["line"] for reject in answer["rejects"]] == [21, 23]
    assert "chosen is missing" in answer["rejects"][0]["reason"]
    assert "my secret" not in json.dumps(answer)
    assert len((await completions.page(ledger, limit=100))[0]) == 80
    assert len(await standing(ledger)) == 40


async def test_an_import_comes_as_a_form_an_array_or_lines(gateway: RunningGateway, ledger: Ledger) -> None:
    rows = [{"prompt": "q", "completion": "good", "label": True}, {"prompt": "q", "completion": "bad", "label": False}]
    where = {"format": "kto"}

    form = await gateway.operator.post(
        "/v1/import", params=where, files={"file": ("x.json", json.dumps(rows).encode())}
    )
    array = await gateway.operator.post("/v1/import", params=where, json=rows)
    lines = await gateway.operator.post("/v1/import", params=where, content=lines_of(rows), headers=JSONL)

    assert [reply.json()["imported"] for reply in (form, array, lines)] == [2, 0, 0]
    assert [reply.json()["duplicates"] for reply in (form, array, lines)] == [0, 2, 2]
    (pair,) = await standing(ledger)
    assert (pair.source, pair.adapters) == ("thumbs", ["imported"])


async def test_an_imported_answer_is_a_completion_like_any_other(gateway: RunningGateway, ledger: Ledger) -> None:
    row = {"prompt": "q", "completion": "good", "label": True}
    await gateway.operator.post("/v1/import?format=kto", content=lines_of([row]), headers=JSONL)

    ((vote,), _) = await votes.page(ledger)
    assert isinstance(vote, Vote)
    stored = (await gateway.http.get(f"/v1/chat/completions/{vote.completion_id}")).json()
    own = {"completion_id": vote.completion_id, "rating": "down", "voter": "ann"}
    voted = await gateway.http.post("/v1/votes", json=own)

    assert (vote.voter, vote.model, vote.rating) == ("import:kto", "imported", "up")
    assert stored["choices"][0]["message"] == {"role": "assistant", "content": "good"}
    assert stored["metadata"] == {"source": "kto"}
    assert voted.status_code == 200


def rated(rating: Any, at: float | None) -> Given:
    asked: list[Message] = [{"role": "user", "content": "q"}]
    return Given([Rated(asked, {"role": "assistant", "content": "a"}, rating)], by="ann", at=at)


async def test_of_contrary_lines_the_later_stands_in_whatever_order_and_however_often_they_come(ledger: Ledger) -> None:
    early, late = rated("up", 100.0), rated("down", 200.0)

    one = await take(ledger, [early, late], "openwebui")
    other = await take(ledger, [late, early], "openwebui")

    ((vote,), _) = await votes.page(ledger)
    assert isinstance(vote, Vote)
    assert (vote.rating, vote.created, vote.updated) == ("down", 100.0, 200.0)
    assert (one.imported, other.imported, other.duplicates, other.rejected) == (2, 0, 2, 0)


async def test_of_contrary_lines_without_times_the_first_stands_and_the_other_is_named(ledger: Ledger) -> None:
    for _ in range(2):
        report = await take(ledger, [rated("up", None), rated("down", None)], "kto")

        assert [number for number, _ in report.rejects] == [2]
        assert "says the contrary" in report.rejects[0][1]
    ((vote,), _) = await votes.page(ledger)
    assert isinstance(vote, Vote)
    assert vote.rating == "up"


async def test_a_time_to_come_is_now(ledger: Ledger) -> None:
    await take(ledger, [rated("up", ledger.clock() + 1000)], "openwebui")

    ((vote,), _) = await votes.page(ledger)
    assert vote.updated <= ledger.clock()


async def test_an_import_that_meets_no_ledger_says_so(tmp_path: Path) -> None:
    settings = LedgerSettings(ledger_url=f"redis://127.0.0.1:{free_port()}/0", var=tmp_path)
    nowhere = open_ledger(settings)

    with pytest.raises(LedgerUnavailable):
        await take(nowhere, [rated("up", None)], "kto")
    await nowhere.close()


async def test_an_import_that_was_cut_off_is_completed_by_the_next_run(ledger: Ledger) -> None:
    """What is left of a line that did not make it is a completion without a vote, which expires."""
    given = rated("up", None)
    await take(ledger, [given], "kto")
    ((vote,), _) = await votes.page(ledger)
    await votes.withdraw(ledger, vote.id)
    assert isinstance(vote, Vote)
    assert await ledger.redis.ttl(ledger.keys.completion(vote.completion_id)) > 0

    report = await take(ledger, [given], "kto")

    assert report.imported == 1
    assert await ledger.redis.ttl(ledger.keys.completion(vote.completion_id)) == -1
    assert await broken(ledger) == []


async def test_an_import_and_a_file_need_the_operators_key_and_a_type_that_no_page_sends(
    gateway: RunningGateway,
) -> None:
    body = lines_of([{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    plain = {"content-type": "text/plain"}

    stranger = await gateway.http.post("/v1/import?format=trl", content=body, headers=JSONL)
    odd = await gateway.operator.post("/v1/import?format=trl", content=body, headers=plain)
    elsewhere = await gateway.operator.post("/v1/votes", content=body, headers=JSONL)
    unknown = await gateway.operator.post("/v1/import?format=csv", content=body, headers=JSONL)
    formless = await gateway.operator.post("/v1/import?format=trl", files={"other": b"x"})

    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "missing_api_key")
    assert (odd.status_code, elsewhere.status_code) == (415, 415)
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "format")
    assert (formless.status_code, formless.json()["error"]["param"]) == (400, "file")


async def test_a_page_of_pairs_goes_on_where_it_was_although_its_last_pair_is_gone(ledger: Ledger) -> None:
    """All of one time, so that only their order tells the place."""
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(pairs.BATCH + 10)]
    frozen = open_ledger(ledger.settings, clock=lambda: 1000.0)
    await take(frozen, [Given([formats.read(row, "trl")]) for row in rows])
    await frozen.close()
    everything = [pair.id for pair in await standing(ledger)]
    found = pairs.pages(ledger)

    first = [pair.id for pair in await anext(found)]
    last = (await pairs.get_many(ledger, first[-1:]))[0]
    await votes.withdraw(ledger, last.opinions[0])
    await pairs.settle(ledger)
    rest = [pair.id async for page in found for pair in page]

    assert [*first, *rest] == everything
    assert await pairs.count(ledger) == len(everything) - 1


async def test_a_walk_misses_nothing_when_its_last_member_moves_away(ledger: Ledger) -> None:
    names = [f"m{i:02}" for i in range(10)]
    for moved_to in (0.5, 4.5, 4.0, 99.0):
        await ledger.redis.delete("walked")
        await ledger.redis.zadd("walked", {name: float(place) for place, name in enumerate(names)})
        walk = completions.walk(ledger, "walked", 5)

        first = await anext(walk)
        await ledger.redis.zadd("walked", {first[-1]: moved_to})
        rest = [name async for some in walk for name in some]

        assert first == names[:5]
        assert [name for name in rest if name != first[-1]] == names[5:]
        assert await ledger.redis.zscore("walked", first[-1]) == moved_to


async def test_a_source_can_be_erased_like_any_voter(ledger: Ledger) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(5)]
    await take(ledger, [Given([formats.read(row, "trl")]) for row in rows])

    erased = await erasure.of_voter(ledger, "import:trl")

    assert (erased.votes, erased.pairs) == (5, 5)
    assert await standing(ledger) == []
