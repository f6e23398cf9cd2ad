"""The commands that are HTTP clients, against a running gateway."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import datasets
import pytest

from feedback import pairs, votes
from feedback.connection import Ledger
from tests.gateways import OPERATOR, RunningGateway, running_gateway
from tests.processes import ROOT
from tests.scripted_engine import scripted_engine

HEED = str(Path(sys.executable).with_name("heed"))


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def heed(gateway: RunningGateway, *words: str, typed: str = "", key: str = OPERATOR) -> tuple[int, str]:
    """Exit code and output of a command, as a person types it."""
    env = {"HEED_URL": gateway.url, "HEED_VAR": str(gateway.var), "HEED_OPERATOR_KEY": key, "COLUMNS": "200"}
    done = await asyncio.to_thread(
        subprocess.run,
        [HEED, *words],
        input=typed,
        env={**os.environ, **env},
        cwd=ROOT,
        timeout=60,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, str(done.stdout)


async def test_a_chat_in_the_terminal_streams_votes_and_corrects(gateway: RunningGateway, ledger: Ledger) -> None:
    typed = "+\nHow do I fly a kite?\n+\n++ run faster\n/new\n/what\n"
    code, shown = await heed(gateway, "chat", "--voter", "ann", typed=typed)

    (vote,), _ = await votes.page(ledger)
    assert code == 0
    assert "There is no answer to vote on yet" in shown
    assert "a scripted answer\nheed-base" in shown
    assert vote.model_dump().items() >= {"voter": "ann", "rating": "down", "correction": "run faster"}.items()


async def test_pairs_are_shown_with_why_the_rest_is_left_out(gateway: RunningGateway) -> None:
    first = (await gateway.chat("q")).json()["id"]
    vote = {"completion_id": first, "voter": "ann"}
    await gateway.http.post("/v1/votes", json=vote | {"rating": "down", "correction": "better"})
    lone = (await gateway.chat("other")).json()["id"]
    await gateway.http.post("/v1/votes", json=vote | {"completion_id": lone, "rating": "up"})

    code, shown = await heed(gateway, "pairs")

    assert code == 0
    assert "correction" in shown
    assert "A job would be refused: too few pairs." in shown
    assert "mean length 6 characters chosen, 17 rejected; the chosen one is longer in 0%" in shown
    assert "lone thumb" in shown
    assert "unpaired answers: 1 liked, 0 disliked" in shown


async def test_adapters_are_listed_promoted_and_rolled_back(gateway: RunningGateway) -> None:
    one = await gateway.register(1, b"one")

    promoted = await heed(gateway, "promote", one)
    listed = await heed(gateway, "adapters")
    back = await heed(gateway, "rollback", "--reason", "worse")
    again = await heed(gateway, "rollback")

    assert (promoted, back) == ((0, f"{one} is live.\n"), (0, "heed-base is live.\n"))
    assert f"live: {one}   before it: heed-base" in listed[1]
    assert again[0] == 1
    assert "nothing was live before heed-base" in again[1]


async def test_what_the_gate_found_of_an_adapter_is_shown_with_its_reasons(gateway: RunningGateway) -> None:
    criterion = {"id": "G4", "name": "distance from the base", "outcome": "hold", "reason": "0.2 nats a token"}
    gate = {"decision": "canary-only", "passed": False, "reasons": ["far"], "eta": 0.5, "criteria": [criterion]}
    judged = await gateway.register(1, b"one", gate=gate)
    unjudged = await gateway.register(2, b"two")

    code, shown = await heed(gateway, "adapters", "show", judged)
    _, other = await heed(gateway, "adapters", "show", unjudged)
    missing, said = await heed(gateway, "adapters", "show", "heed-v9-00000000")

    assert (code, missing) == (0, 1)
    assert "The gate leaves it to an operator: far. It is published with 50% of its strength." in shown
    assert all(words in shown for words in ("G4", "distance from the base", "hold", "0.2 nats a token"))
    assert "It was not examined." in other
    assert "no adapter 'heed-v9-00000000'" in said


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question\u2028{number}", "chosen": "good", "rejected": "bad"} for number in range(count)]


async def test_a_file_is_imported_once_and_every_line_that_cannot_be_is_named(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path
) -> None:
    """More lines than go in one request, so that numbers are those of the file."""
    file, lines = tmp_path / "pairs.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows(600)]
    lines.insert(550, '{"prompt": "my secret"}')
    file.write_text("\n".join([*lines[:3], "", *lines[3:], "[1]"]))

    first = await heed(gateway, "import", str(file), "--format", "trl")
    again = await heed(gateway, "import", str(file), "--format", "trl")

    assert first[0] == again[0] == 1
    assert "line 552: rejected is missing" in first[1] or "line 552: chosen is missing" in first[1]
    assert "line 603: it is a list" in first[1]
    assert "602 lines: 600 imported, 0 were there, 2 rejected." in first[1]
    assert "602 lines: 0 imported, 600 were there, 2 rejected." in again[1]
    assert "my secret" not in first[1]
    assert await pairs.count(ledger) == 600


async def test_an_array_is_imported_item_by_item(gateway: RunningGateway, ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_text(json.dumps([*rows(510), {}], indent=1))

    code, shown = await heed(gateway, "import", str(file), "--format", "trl")

    assert code == 1
    assert "line 511: prompt is missing" in shown
    assert await pairs.count(ledger) == 510


@pytest.mark.parametrize(("format", "lines"), [("trl", 3), ("openai", 3), ("kto", 6)])
async def test_pairs_are_exported_to_a_file_that_can_be_imported_again(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path, format: str, lines: int
) -> None:
    given, out = tmp_path / "pairs.jsonl", tmp_path / "new" / "out.jsonl"
    given.write_text("\n".join(map(json.dumps, rows(3))))
    await heed(gateway, "import", str(given), "--format", "trl")

    exported = await heed(gateway, "export", "--format", format, "--out", str(out))
    await ledger.redis.flushdb()
    imported = await heed(gateway, "import", str(out), "--format", format)

    assert exported == (0, f"{lines} rows are in {out}.\n")
    assert out.read_bytes().count(b"\n") == lines
    assert imported == (0, f"{lines} lines: {lines} imported, 0 were there, 0 rejected.\n")
    assert await pairs.count(ledger) == 3
    assert list(out.parent.iterdir()) == [out]


async def test_parquet_holds_what_trl_reads_and_says_what_it_has_no_place_for(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    given, out = tmp_path / "pairs.jsonl", tmp_path / "pairs.parquet"
    picture = {"prompt": [{"role": "user", "content": [{"type": "image_url"}]}], "chosen": "good", "rejected": "bad"}
    given.write_text("\n".join(map(json.dumps, [*rows(2), picture])))
    await heed(gateway, "import", str(given), "--format", "trl")

    code, shown = await heed(gateway, "export", "--format", "parquet", "--out", str(out))

    found = datasets.Dataset.from_parquet(str(out), cache_dir=str(tmp_path / "cache")).to_list()
    assert code == 0
    assert "1 pairs hold more than text" in shown
    assert f"2 rows are in {out}" in shown
    assert [row["chosen"] for row in found] == [[{"role": "assistant", "content": "good"}]] * 2
    assert {row["prompt"][0]["content"] for row in found} == {row["prompt"] for row in rows(2)}
    assert found[0].keys() == {"id", "prompt", "chosen", "rejected"}


async def test_a_file_that_cannot_be_read_or_written_is_one_sentence(gateway: RunningGateway, tmp_path: Path) -> None:
    torn = tmp_path / "torn.json"
    torn.write_text('[{"prompt": "my secret"')

    read = await heed(gateway, "import", str(torn), "--format", "trl")
    written = await heed(gateway, "export", "--out", str(tmp_path))

    assert read == (1, "the file begins like a JSON array and is not valid JSON\n")
    assert written[0] == 1
    assert f"{tmp_path} cannot be written" in written[1]
    assert not list(tmp_path.parent.glob(".*.part"))


async def test_what_cannot_be_done_is_one_sentence(gateway: RunningGateway) -> None:
    too_few = await heed(gateway, "train")
    nothing = await heed(gateway, "jobs")
    wrong_key = await heed(gateway, "jobs", key="wrong")
    await gateway.http.aclose()

    assert too_few[0] == 1
    assert "pairs to train on" in too_few[1]
    assert nothing[0] == 0
    assert wrong_key[0] == 1
    assert "the key is not the operator's" in wrong_key[1]
    assert not any("Traceback" in shown for _, shown in (too_few, nothing, wrong_key))


async def test_a_gateway_that_is_open_to_strangers_does_not_start(tmp_path: Path) -> None:
    env = {**os.environ, "HEED_HOST": "0.0.0.0", "HEED_VAR": str(tmp_path), "HEED_CLIENT_KEYS": ""}
    command = [sys.executable, "-m", "serve"]

    done = await asyncio.to_thread(
        subprocess.run, command, env=env, cwd=ROOT, timeout=60, capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "Set HEED_CLIENT_KEYS, or bind to 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


async def test_prompts_and_honeypots_are_queued_from_a_file(gateway: RunningGateway, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "How do I fly a kite?"},
        {"prompt": "What are seven and five?", "chosen": "Twelve.", "rejected": "Blue."},
        {"prompt": "Sum?", "chosen": "same", "rejected": "same"},
        {"question": "?"},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))

    code, told = await heed(gateway, "prompts", str(file))
    _, again = await heed(gateway, "prompts", str(file))
    _, listed = await heed(gateway, "prompts")
    _, pots = await heed(gateway, "prompts", "--honeypots")
    found = (await gateway.operator.get("/v1/prompts?honeypots=true")).json()["data"]
    removed = await heed(gateway, "prompts", "--remove", found[0]["id"])

    assert code == 1
    assert "2 prompts are new in the queue, 0 were there, 2 lines were refused." in told
    assert "line 3: the chosen and the rejected answer say the same" in told
    assert "line 4: prompt is missing" in told
    assert "0 prompts are new in the queue, 2 were there" in again
    assert "How do I fly a kite?" in listed
    assert "Twelve." not in listed
    assert "Twelve." in pots
    assert removed == (0, f"{found[0]['id']} is removed.\n")


async def test_an_adapter_is_tried_shown_and_no_longer_tried(gateway: RunningGateway) -> None:
    before = await heed(gateway, "canary")
    one = await gateway.register(1, b"one")
    tried = await heed(gateway, "canary", one, "--percent", "100")
    answer = (await gateway.chat()).json()["model"]
    stopped = await heed(gateway, "canary", "--stop", "--reason", "enough")
    shown = await heed(gateway, "canary")
    again = await heed(gateway, "canary", "--stop")

    assert before == (0, "No adapter was tried yet: heed canary ID --percent 10\n")
    assert tried[0] == 0
    assert f"{one} is tried on 100 % of users and conversations, against heed-base; it waits" in tried[1]
    assert "wait: it has 0 votes and what is live 0: both sides need some" in tried[1]
    assert answer == one
    assert stopped == (0, f"{one} is no longer tried; heed-base answers everybody.\n")
    assert "enough" in shown[1]
    assert again == (1, "No adapter is tried as a canary of heed.\n")
