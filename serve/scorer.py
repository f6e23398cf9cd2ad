"""The scorer: a reward model that says how much people would like an answer, served where clients never reach.

It is vLLM's pooling runner with one label, the reward itself (docs/best-of.md says how to start one). Only differences
between answers to one prompt mean something.
"""

import asyncio
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from feedback.records import Message
from serve.engine import Engine, EngineRefused
from serve.upstream import EngineUnreachable

REFUSAL_CHARACTERS = 200


class ScorerFailed(Exception):
    """No reward came; says why, for the log."""


class Scored(BaseModel):
    probs: Annotated[list[FiniteFloat], Field(min_length=1, max_length=1)]


class Classified(BaseModel):
    """What `/classify` answers. More than one number is a classifier's opinion and no reward."""

    data: Annotated[list[Scored], Field(min_length=1, max_length=1)]


class Scorer:
    def __init__(self, engine: Engine, model: str, timeout_s: float) -> None:
        self.engine = engine
        self.model = model
        self._timeout_s = timeout_s

    async def rewards(self, prompt: list[Message], answers: list[str]) -> list[float]:
        """All of them or none, for a choice among those that could be scored would favour the short. Raises
        ScorerFailed."""
        try:
            async with asyncio.timeout(self._timeout_s), asyncio.TaskGroup() as scoring:
                rewards = [scoring.create_task(self._reward(prompt, answer)) for answer in answers]
        except TimeoutError:
            raise ScorerFailed(f"it took longer than {self._timeout_s:g} s") from None
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [reward.result() for reward in rewards]

    async def _reward(self, prompt: list[Message], answer: str) -> float:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        # By its name, or vLLM would score with the base and a head that was never trained; and without the sigmoid that
        # it puts on a single label, in which good answers are all 1.
        asked = {"model": self.model, "messages": messages, "use_activation": False}
        try:
            return Classified.model_validate_json(await self.engine.classify(asked)).data[0].probs[0]
        except EngineUnreachable as error:
            raise ScorerFailed(f"it does not answer ({error})") from error
        except EngineRefused as refused:
            raise ScorerFailed(f"it answered {refused.status}: {str(refused)[:REFUSAL_CHARACTERS]}") from refused
        except ValidationError as error:
            raise ScorerFailed("its answer is not one finite number; is it a reward model?") from error
