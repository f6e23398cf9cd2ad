"""The Responses API by the official client: its objects, its events, its tools, and the ledger behind it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import CompletionUnknown
from tests.gateways import RunningGateway, running_gateway
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

LOOK: Any = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}},
    "strict": True,
}
CALL = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as engine:
        yield engine


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine) as gateway:
        yield gateway


async def test_a_response_is_a_recorded_chat_completion(gateway: RunningGateway, ledger: Ledger) -> None:
    response = await gateway.openai.responses.create(
        model="heed",
        input="How do I fly a kite?",
        instructions="Be brief.",
        max_output_tokens=50,
        temperature=0.5,
        metadata={"a": "b"},
        extra_body={"top_k": 5},
    )

    kept = await completions.get(ledger, response.id.replace("resp-", "chatcmpl-"))
    assert (response.output_text, response.status, response.model) == ("a scripted answer", "completed", "heed-base")
    assert (response.instructions, response.metadata, response.temperature) == ("Be brief.", {"a": "b"}, 0.5)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 3)
    assert kept.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I fly a kite?"},
    ]
    assert kept.params == {"temperature": 0.5, "max_completion_tokens": 50, "top_k": 5}
    assert gateway.engine.bodies[-1]["messages"] == kept.messages


async def test_a_response_is_voted_on_by_its_id(gateway: RunningGateway) -> None:
    response = await gateway.openai.responses.create(model="heed", input="q")

    voted = await gateway.http.post("/v1/votes", json={"completion_id": response.id, "rating": "up"})
    listed = await gateway.operator.get("/v1/votes", params={"completion_id": response.id})

    assert (voted.status_code, voted.json()["rating"]) == (200, "up")
    assert [vote["id"] for vote in listed.json()["data"]] == [voted.json()["id"]]


async def test_a_stream_has_the_official_clients_typed_events_and_is_kept_before_its_end(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    events = []
    async for event in await gateway.openai.responses.create(model="heed", input="q", stream=True):
        if event.type == "response.completed":
            assert await completions.get(ledger, event.response.id.replace("resp-", "chatcmpl-"))
        events.append(event)

    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    end: Any = events[-1]
    assert end.response.output_text == "a scripted answer"
    assert end.response.usage.total_tokens == 10
    assert (await gateway.openai.responses.retrieve(end.response.id)).output == end.response.output


async def test_the_official_clients_stream_helper_puts_the_answer_together(gateway: RunningGateway) -> None:
    async with gateway.openai.responses.stream(model="heed", input="q") as stream:
        final = await stream.get_final_response()

    assert final.output_text == "a scripted answer"


async def test_tools_are_called_and_answered(gateway: RunningGateway, ledger: Ledger) -> None:
    client = gateway.openai
    gateway.engine.scripts.append(Script(tokens=("",), finish="tool_calls", tool_calls=[CALL]))
    called = await client.responses.create(
        model="heed", input="q", tools=[LOOK], tool_choice={"type": "function", "name": "look"}
    )

    result: Any = [{"type": "function_call_output", "call_id": "call-1", "output": "a kite"}]
    answered = await client.responses.create(model="heed", input=result, tools=[LOOK], previous_response_id=called.id)

    (call,) = called.output
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.call_id) == ("look", '{"at":1}', "call-1")
    first, second = gateway.engine.bodies[-2:]
    function = {name: LOOK[name] for name in ("name", "description", "parameters", "strict")}
    assert first["tools"] == [{"type": "function", "function": function}]
    assert first["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert second["messages"][1]["tool_calls"] == [CALL]
    assert second["messages"][2] == {"role": "tool", "tool_call_id": "call-1", "content": "a kite"}
    assert answered.output_text == "a scripted answer"
    assert answered.previous_response_id == called.id
    assert (await client.responses.retrieve(called.id)).tools[0].to_dict() == LOOK


async def test_streamed_tool_calls_come_as_events(gateway: RunningGateway) -> None:
    gateway.engine.scripts.append(Script(tokens=("x",), finish="tool_calls", tool_calls=[CALL]))

    stream = await gateway.openai.responses.create(model="heed", input="q", tools=[LOOK], stream=True)
    events: list[Any] = [event async for event in stream]

    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.name, event.arguments) for event in done] == [("look", '{"at":1}')]
    assert events[-1].response.output == [e.item for e in events if e.type == "response.output_item.done"]


async def test_a_conversation_goes_on_from_a_stored_response_with_new_instructions(gateway: RunningGateway) -> None:
    client = gateway.openai
    first = await client.responses.create(model="heed", input="one", instructions="Be brief.")
    second = await client.responses.create(
        model="heed", input="two", instructions="Rhyme.", previous_response_id=first.id
    )

    items = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=1)]

    assert gateway.engine.bodies[-1]["messages"] == [
        {"role": "system", "content": "Rhyme."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "a scripted answer"},
        {"role": "user", "content": "two"},
    ]
    assert [(item.role, item.content[0].text) for item in items] == [  # type: ignore[union-attr, index]
        ("user", "one"),
        ("assistant", "a scripted answer"),
        ("user", "two"),
    ]


async def test_output_given_back_as_input_is_the_same_conversation(gateway: RunningGateway) -> None:
    first = await gateway.openai.responses.create(model="heed", input="one")
    history: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        *(item.to_dict() for item in first.output),
        {"role": "user", "content": "two"},
    ]

    await gateway.openai.responses.create(model="heed", input=history)

    assert gateway.engine.bodies[-1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "a scripted answer"},
        {"role": "user", "content": "two"},
    ]


async def test_a_schema_and_logprobs_are_asked_of_the_engine(gateway: RunningGateway) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    form: Any = {"type": "json_schema", "name": "count", "schema": schema, "strict": True}

    response = await gateway.openai.responses.create(
        model="heed", input="q", text={"format": form}, include=["message.output_text.logprobs"], top_logprobs=2
    )

    sent, message = gateway.engine.bodies[-1], response.output[0]
    assert sent["response_format"]["json_schema"] == {"name": "count", "schema": schema, "strict": True}
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    assert [told.token for told in message.content[0].logprobs or ()] == ["a", " scripted", " answer"]
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.to_dict() == form


async def test_an_answer_cut_short_is_incomplete(gateway: RunningGateway) -> None:
    gateway.engine.scripts += [Script(finish="length")] * 2

    whole = await gateway.openai.responses.create(model="heed", input="q")
    events = [event async for event in await gateway.openai.responses.create(model="heed", input="q", stream=True)]

    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert events[-1].type == "response.incomplete"


async def test_a_response_not_stored_cannot_be_read_or_continued(gateway: RunningGateway, ledger: Ledger) -> None:
    client = gateway.openai
    response = await client.responses.create(model="heed", input="q", store=False)

    with pytest.raises(openai.NotFoundError) as unread:
        await client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as uncontinued:
        await client.responses.create(model="heed", input="q", previous_response_id=response.id)

    assert unread.value.code == "response_not_found"
    assert uncontinued.value.code == "previous_response_not_found"
    with pytest.raises(CompletionUnknown):
        await completions.get(ledger, response.id.replace("resp-", "chatcmpl-"))


async def test_a_response_is_deleted_and_a_chat_is_none(gateway: RunningGateway) -> None:
    client = gateway.openai
    response = await client.responses.create(model="heed", input="q")
    chat = (await gateway.chat()).json()["id"]

    await client.responses.delete(response.id)

    for gone in (response.id, chat.replace("chatcmpl-", "resp-"), chat):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(gone)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ({"tools": [LOOK], "tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"n": 2}, "n"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(
    gateway: RunningGateway, fields: dict[str, Any], param: str
) -> None:
    reply = await gateway.http.post("/v1/responses", json={"model": "heed", "input": "q"} | fields)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert gateway.engine.bodies == [] or "q" not in json.dumps(gateway.engine.bodies[-1].get("messages"))


async def test_a_failure_within_a_stream_is_raised_by_the_official_client(gateway: RunningGateway) -> None:
    gateway.engine.scripts.append(Script(error_after=2))

    stream = await gateway.openai.responses.create(model="heed", input="q", stream=True)

    with pytest.raises(openai.APIError) as failed:
        [event async for event in stream]

    assert failed.value.code == "engine_failed"


async def test_one_keys_responses_are_unknown_to_another(
    ledger: Ledger, tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with running_gateway(ledger, tmp_path, engine, client_keys=("ann", "bob")) as gateway:
        ann = gateway.openai.with_options(api_key="ann")
        bob = gateway.openai.with_options(api_key="bob")
        response = await ann.responses.create(model="heed", input="q")

        with pytest.raises(openai.NotFoundError):
            await bob.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError):
            await bob.responses.create(model="heed", input="q", previous_response_id=response.id)
        assert (await ann.responses.retrieve(response.id)).output_text == "a scripted answer"
