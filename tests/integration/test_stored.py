"""Stored answers by the official client: listed, read, changed, deleted."""

import openai
import pytest

from tests.gateways import RunningGateway


async def test_stored_answers_are_read_changed_and_deleted_as_at_openai(gateway: RunningGateway) -> None:
    client = gateway.openai
    first = (await gateway.chat("one")).json()["id"]
    second = (await gateway.chat("two")).json()["id"]

    listed = [stored.id async for stored in client.chat.completions.list(limit=1)]
    changed = await client.chat.completions.update(first, metadata={"seen": "yes"})
    deleted = await client.chat.completions.delete(second)

    assert listed == [first, second]
    assert changed.metadata == {"seen": "yes"}
    assert deleted.deleted
    assert (await client.chat.completions.retrieve(first)).choices[0].message.content == "a scripted answer"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.retrieve(second)


async def test_an_update_replaces_all_metadata_and_nothing_else(gateway: RunningGateway) -> None:
    client = gateway.openai
    stored = (await gateway.chat("one", metadata={"a": "b"}, temperature=0.5)).json()["id"]
    before = (await client.chat.completions.retrieve(stored)).to_dict()

    await client.chat.completions.update(stored, metadata={"c": "d"})

    after = (await client.chat.completions.retrieve(stored)).to_dict()
    signed_anew = {"vote_token": after["vote_token"]}  # by the second
    assert after == before | {"metadata": {"c": "d"}} | signed_anew
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.update(stored, metadata={"k": "v" * 513})
    assert (await client.chat.completions.retrieve(stored)).metadata == {"c": "d"}
    assert refused.value.code == "invalid_value"


async def test_a_list_is_narrowed_by_model_and_metadata_and_turned_round(gateway: RunningGateway) -> None:
    client = gateway.openai
    ids = [
        (await gateway.chat(str(i), metadata={"of": "ann" if i % 2 else "bob", "n": str(i)})).json()["id"]
        for i in range(4)
    ]

    anns = [stored.id async for stored in client.chat.completions.list(metadata={"of": "ann"}, order="desc", limit=1)]
    one = [stored.id async for stored in client.chat.completions.list(metadata={"of": "bob", "n": "2"})]
    concrete = [stored.id async for stored in client.chat.completions.list(model="heed-base")]

    assert anns == [ids[3], ids[1]]
    assert one == [ids[2]]
    assert concrete == ids
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.list(model="gpt-9")
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.list(order="sideways")  # type: ignore[arg-type]


async def test_the_messages_of_a_stored_answer_are_listed(gateway: RunningGateway) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    stored = (await gateway.chat(messages=messages)).json()["id"]

    listed = [message async for message in gateway.openai.chat.completions.messages.list(stored, limit=1)]

    assert [message.content for message in listed] == ["Be brief.", "one"]
    assert len({message.id for message in listed}) == 2
