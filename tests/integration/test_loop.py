"""The front of the circle, real: chat, vote and a refused job, on the stack that `make run` starts."""

import openai
import pytest

from tests.stack import Stack

pytestmark = pytest.mark.timeout(900)


def test_the_official_client_chats_and_lists_models(stack: Stack) -> None:
    client = stack.openai()

    whole = client.chat.completions.create(
        model="heed", messages=[{"role": "user", "content": "hi"}], n=2, logprobs=True, top_logprobs=2, seed=1
    )
    chunks = list(
        client.chat.completions.create(
            model="heed",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    names = [model.id for model in client.models.list()]

    assert whole.model == chunks[0].model == "heed-base"
    assert len(whole.choices) == 2
    assert whole.choices[0].logprobs is not None
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert {"heed", "heed-base"} <= set(names)
    assert client.models.retrieve("heed").id == "heed"
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "model_not_found"


def test_a_vote_right_after_the_last_byte_finds_its_completion(stack: Stack) -> None:
    client = stack.openai()

    for stream in (False, True):
        made = client.chat.completions.create(
            model="heed", messages=[{"role": "user", "content": "How do I make lemonade?"}], stream=stream
        )
        completion_id = [chunk.id for chunk in made][-1] if stream else made.id  # type: ignore[union-attr]
        with stack.http() as http:
            voted = http.post("/votes", json={"completion_id": completion_id, "rating": "up", "voter": "ann"})
            again = http.post("/votes", json={"completion_id": completion_id, "rating": "up", "voter": "ann"})
        assert voted.status_code == 200, voted.text
        assert (voted.json()["changed"], again.json()["changed"]) == (True, False)


def test_a_job_without_enough_pairs_is_refused_with_its_reason(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        stack.openai().fine_tuning.jobs.create(model="heed", training_file="ledger")

    assert refused.value.code == "too_few_pairs"
