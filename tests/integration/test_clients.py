"""Clients that people use, as they come from PyPI: the official one, litellm, and Simon Willison's llm."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import CompletionUnknown
from feedback.records import Completion
from tests.gateways import OPERATOR, RunningGateway
from tests.scripted_engine import Script

MESSAGES: Any = [{"role": "user", "content": "hi"}]
CALL = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
LOOK: Any = {
    "type": "function",
    "function": {"name": "look", "strict": True, "parameters": {"type": "object", "properties": {}}},
}


class Count(BaseModel):
    n: int


async def newest(ledger: Ledger) -> Completion:
    (found,), _ = await completions.page(ledger, limit=1, newest_first=True)
    return found


async def test_the_official_client_chats_streams_and_lists_models(gateway: RunningGateway) -> None:
    client = gateway.openai

    whole = await client.chat.completions.create(model="heed", messages=MESSAGES, n=2, logprobs=True)
    chunks = [c async for c in await client.chat.completions.create(model="heed", messages=MESSAGES, stream=True)]
    names = [model.id async for model in client.models.list()]

    assert len(whole.choices) == 2
    assert whole.choices[0].logprobs is not None
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "a scripted answer"
    assert names == ["heed", "heed-base"]
    assert (await client.models.retrieve("heed-base")).id == "heed-base"
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert refused.value.code == "model_not_found"


async def test_every_field_of_the_official_clients_chat_is_taken_and_recorded(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    sampling: Any = {
        "frequency_penalty": 0.1,
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "max_completion_tokens": 20,
        "n": 2,
        "presence_penalty": 0.1,
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "seed": 1,
        "stop": ["x"],
        "temperature": 0.5,
        "top_p": 0.9,
    }
    without_effect: Any = {
        "modalities": ["text"],
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "x",
        "safety_identifier": "x",
        "service_tier": "auto",
        "verbosity": "low",
    }

    answer = await gateway.openai.chat.completions.create(
        model="heed",
        messages=MESSAGES,
        tools=[LOOK],
        tool_choice="auto",
        parallel_tool_calls=True,
        store=True,
        metadata={"a": "b"},
        user="ann",
        **sampling,
        **without_effect,
    )

    kept, sent = await completions.get(ledger, answer.id), gateway.engine.bodies[-1]
    assert sampling.items() <= sent.items()
    assert sampling.items() <= kept.params.items()
    assert not without_effect.keys() & sent.keys()
    assert (kept.user, kept.metadata, kept.tools) == ("ann", {"a": "b"}, [LOOK])
    assert [choice.logprobs is not None for choice in kept.choices] == [True, True]


async def test_the_official_clients_stream_helper_gathers_tool_calls_and_usage(
    gateway: RunningGateway, ledger: Ledger
) -> None:
    gateway.engine.scripts.append(Script(tokens=("x",), finish="tool_calls", tool_calls=[CALL]))

    async with gateway.openai.chat.completions.stream(
        model="heed", messages=MESSAGES, tools=[LOOK], stream_options={"include_usage": True}
    ) as stream:
        final = await stream.get_final_completion()

    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.function.name, call.function.arguments) for call in calls] == [("look", '{"at":1}')]
    assert final.usage is not None
    assert (await completions.get(ledger, final.id)).choices[0].message["tool_calls"] == [CALL]


async def test_the_official_client_parses_what_it_gave_a_schema_for(gateway: RunningGateway) -> None:
    gateway.engine.scripts += [Script(tokens=('{"n":', "3}"))] * 2

    chat = await gateway.openai.chat.completions.parse(model="heed", messages=MESSAGES, response_format=Count)
    response = await gateway.openai.responses.parse(model="heed", input="hi", text_format=Count)

    assert chat.choices[0].message.parsed == response.output_parsed == Count(n=3)
    forms = [body["response_format"]["json_schema"] for body in gateway.engine.bodies[-2:]]
    assert forms[0] == forms[1]


async def test_the_official_clients_text_completions_are_recorded(gateway: RunningGateway, ledger: Ledger) -> None:
    client = gateway.openai

    whole = await client.completions.create(model="heed", prompt="Once", n=2, max_tokens=20, stop=["x"], seed=1)
    stream = await client.completions.create(
        model="heed", prompt="Once", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert [choice.text for choice in whole.choices] == ["a scripted answer"] * 2
    assert chunks[-1].usage is not None
    for answer_id in (whole.id, chunks[0].id):
        assert (await completions.get(ledger, answer_id)).object == "text_completion"


async def test_what_the_official_client_does_not_store_is_nowhere(gateway: RunningGateway, ledger: Ledger) -> None:
    answer = await gateway.openai.chat.completions.create(model="heed", messages=MESSAGES, store=False)

    with pytest.raises(CompletionUnknown):
        await completions.get(ledger, answer.id)
    assert [stored async for stored in gateway.openai.chat.completions.list()] == []


async def test_the_official_client_sees_its_errors_by_their_classes(gateway: RunningGateway) -> None:
    client = gateway.openai

    with pytest.raises(openai.BadRequestError) as unknown:
        await client.chat.completions.create(model="heed", messages=MESSAGES, extra_body={"cache_salt": "x"})
    with pytest.raises(openai.BadRequestError) as long:
        await client.chat.completions.create(model="heed", messages=MESSAGES, max_tokens=5000)
    with pytest.raises(openai.NotFoundError) as embeddings:
        await client.embeddings.create(model="heed", input="x")

    assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "cache_salt")
    assert long.value.code == "context_length_exceeded"
    assert embeddings.value.code == "route_not_found"


LITELLM = """
import json, os, litellm
litellm.suppress_debug_info = True  # it is printed where the answer shall be
at = {"api_base": os.environ["GATEWAY"], "api_key": os.environ["KEY"], "model": "openai/heed", "num_retries": 0}
messages = [{"role": "user", "content": "hi"}]
whole = litellm.completion(messages=messages, temperature=0.5, metadata={"a": "b"}, **at)
chunks = list(litellm.completion(messages=messages, stream=True, **at))
tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
called = litellm.completion(messages=messages, tools=tools, **at)
response = litellm.responses(input="hi", **at)
text = litellm.text_completion(prompt="Once", **(at | {"model": "text-completion-openai/heed"}))
try:
    litellm.completion(messages=messages, **(at | {"model": "openai/gpt-9"}))
    refusal = None
except litellm.NotFoundError as error:
    refusal = error.status_code
print(json.dumps({
    "whole": [whole.id, whole.choices[0].message.content],
    "streamed": [chunks[0].id, "".join(c.choices[0].delta.content or "" for c in chunks)],
    "called": called.choices[0].message.tool_calls[0].function.name,
    "response": response.output[0].content[0].text,
    "text": text.choices[0].text,
    "refusal": refusal,
}))
"""


async def ran(gateway: RunningGateway, tmp_path: Path, *command: str) -> str:
    """What a client in a process of its own printed; warnings of its own libraries are its own affair."""
    env = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "VIRTUAL_ENV")},
        "HOME": str(tmp_path),
        "GATEWAY": f"{gateway.url}/v1",
        "KEY": OPERATOR,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks GitHub for prices
        "LLM_USER_PATH": str(tmp_path / "llm"),
    }
    running = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    out, err = await running.communicate()
    assert running.returncode == 0, err.decode()
    return out.decode()


async def test_litellm_chats_streams_calls_tools_and_is_recorded(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path
) -> None:
    gateway.engine.scripts += [Script(), Script(), Script(finish="tool_calls", tool_calls=[CALL])]

    told = json.loads(await ran(gateway, tmp_path, sys.executable, "-c", LITELLM))

    for completion_id, text in (told["whole"], told["streamed"]):
        assert text == "a scripted answer"
        assert (await completions.get(ledger, completion_id)).choices[0].message["content"] == text
    assert (told["called"], told["refusal"]) == ("look", 404)
    assert told["response"] == told["text"] == "a scripted answer"


async def test_llm_prompts_streams_and_goes_on_with_a_conversation(
    gateway: RunningGateway, ledger: Ledger, tmp_path: Path
) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    model = {"model_id": "mine", "model_name": "heed", "api_base": f"{gateway.url}/v1", "api_key_name": "mine"}
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    llm = [sys.executable, "-m", "llm"]

    first = await ran(gateway, tmp_path, *llm, "-m", "mine", "--key", OPERATOR, "one", "-s", "Be brief.")
    second = await ran(gateway, tmp_path, *llm, "-c", "-m", "mine", "--key", OPERATOR, "--no-stream", "two")

    assert first.strip() == second.strip() == "a scripted answer"
    kept = await newest(ledger)
    assert [message["content"] for message in kept.messages][-3:] == ["one", "a scripted answer", "two"]
