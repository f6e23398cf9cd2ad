"""Answers in the ledger without a gateway."""

from feedback import comparisons, completions
from feedback.connection import Ledger
from feedback.records import Choice, Comparison, Completion, Message, new_id, prompt_digest


async def answered(ledger: Ledger, prompt: str, said: str | Message, user: str | None = None) -> Completion:
    """A recorded completion of the base model with this one answer."""
    messages = [{"role": "user", "content": prompt}]
    message = {"role": "assistant", "content": said} if isinstance(said, str) else said
    completion = Completion(
        id=new_id("chatcmpl"),
        served_model="heed",
        adapter="heed-base",
        created=ledger.clock(),
        messages=messages,
        prompt_hash=prompt_digest(messages),
        choices=[Choice(index=0, message=message)],
        user=user,
    )
    await completions.record(ledger, completion)
    return completion


async def compared(ledger: Ledger, a: Completion, b: Completion, expected: str | None = None) -> Comparison:
    comparison = Comparison.model_validate(
        {
            "id": new_id("cmp"),
            "served_model": "heed",
            "created": ledger.clock(),
            "messages": a.messages,
            "prompt_hash": a.prompt_hash,
            "a": {"completion_id": a.id},
            "b": {"completion_id": b.id},
            "adapter_a": a.adapter,
            "adapter_b": b.adapter,
            "expected": expected,
        }
    )
    await comparisons.record(ledger, comparison)
    return comparison
