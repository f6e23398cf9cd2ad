"""Votes and preferences over HTTP."""

from tests.gateways import RunningGateway
from tests.scripted_engine import Script


async def answer(gateway: RunningGateway, text: str = "good", prompt: str = "q") -> str:
    gateway.engine.scripts.append(Script(tokens=(text,)))
    return str((await gateway.chat(prompt)).json()["id"])


async def test_a_vote_is_answered_with_what_is_stored(gateway: RunningGateway) -> None:
    completion_id = await answer(gateway)
    body = {"completion_id": completion_id, "rating": "down", "voter": "ann", "correction": "better", "reasons": ["x"]}

    first = await gateway.http.post("/v1/votes", json=body)
    again = await gateway.http.post("/v1/votes", json=body)
    other = await gateway.http.post("/v1/votes", json=body | {"rating": "up"})

    vote = first.json()
    assert first.status_code == 200
    assert vote["id"].startswith("vote-")
    wanted = {"object": "vote", "completion_id": completion_id, "choice": 0, "rating": "down", "voter": "ann"}
    assert vote.items() >= (wanted | {"model": "heed-base", "correction": "better", "changed": True}).items()
    assert {"created", "updated", "comment", "reasons"} <= vote.keys()
    assert again.json() == vote | {"changed": False}
    assert (other.json()["id"], other.json()["rating"], other.json()["changed"]) == (vote["id"], "up", True)


async def test_who_does_not_say_who_they_are_is_anonymous(gateway: RunningGateway) -> None:
    vote = await gateway.http.post("/v1/votes", json={"completion_id": await answer(gateway), "rating": "up"})

    assert vote.json()["voter"] == "anonymous"


async def test_votes_are_listed_read_and_withdrawn(gateway: RunningGateway) -> None:
    completion_id = await answer(gateway)
    ids = []
    for voter in ("ann", "bob"):
        body = {"completion_id": completion_id, "rating": "up", "voter": voter}
        ids.append((await gateway.http.post("/v1/votes", json=body)).json()["id"])

    listed = (await gateway.http.get("/v1/votes", params={"completion_id": completion_id})).json()
    paged = (await gateway.http.get("/v1/votes", params={"limit": 1})).json()
    rest = (await gateway.http.get("/v1/votes", params={"limit": 1, "after": paged["last_id"]})).json()
    one = await gateway.http.get(f"/v1/votes/{ids[0]}")
    gone = await gateway.http.delete(f"/v1/votes/{ids[0]}")
    missing = await gateway.http.get(f"/v1/votes/{ids[0]}")

    assert {vote["id"] for vote in listed["data"]} == set(ids)
    assert (paged["has_more"], rest["has_more"]) == (True, False)
    assert [paged["data"][0]["id"], rest["data"][0]["id"]] == ids
    assert one.json()["voter"] == "ann"
    assert gone.json() == {"id": ids[0], "object": "vote.deleted", "deleted": True}
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "vote_not_found")


async def test_a_preference_joins_answers_to_one_prompt_only(gateway: RunningGateway) -> None:
    good, bad, other = (
        await answer(gateway, "good"),
        await answer(gateway, "bad"),
        await answer(gateway, "x", "another"),
    )

    def between(chosen: str, rejected: str) -> dict[str, object]:
        return {"chosen": {"completion_id": chosen, "choice": 0}, "rejected": {"completion_id": rejected, "choice": 0}}

    given = await gateway.http.post("/v1/preferences", json=between(good, bad) | {"voter": "ann"})
    differ = await gateway.http.post("/v1/preferences", json=between(good, other))
    same = await gateway.http.post("/v1/preferences", json=between(good, good))
    stats = (await gateway.operator.get("/v1/stats")).json()
    pairs = [
        line async for line in (await gateway.operator.get("/v1/pairs", params={"format": "openai"})).aiter_lines()
    ]

    assert (given.status_code, given.json()["object"], given.json()["changed"]) == (200, "preference", True)
    assert given.json()["chosen"]["completion_id"] == good
    assert (differ.status_code, differ.json()["error"]["code"]) == (400, "prompts_differ")
    assert (same.status_code, same.json()["error"]["code"]) == (400, "same_answer")
    assert stats["pairs"]["by_source"] == {"preference": 1}
    assert (stats["votes"], stats["completions"], stats["serving"]["live"]) == (1, 3, "heed-base")
    assert len(pairs) == 1
    assert '"preferred_output":[{"role":"assistant","content":"good"}]' in pairs[0]


async def test_the_pairs_can_be_taken_out_for_trl_and_kto(gateway: RunningGateway) -> None:
    vote = {"completion_id": await answer(gateway, "bad"), "rating": "down", "correction": "good"}
    await gateway.http.post("/v1/votes", json=vote)

    trl = (await gateway.operator.get("/v1/pairs")).text.splitlines()
    kto = (await gateway.operator.get("/v1/pairs", params={"format": "kto"})).text.splitlines()

    assert len(trl) == 1
    assert '"rejected":[{"role":"assistant","content":"bad"}]' in trl[0]
    assert ['"label":true' in kto[0], '"label":false' in kto[1]] == [True, True]
