"""How fast answers come, so that a known one comes as fast."""

import random
from dataclasses import dataclass

from feedback.records import Completion

MEMORY = 0.8
"""Share of what was known that a new answer leaves."""


@dataclass
class Pace:
    """Of the comparisons answered last; before the first one, what a small model does on two cores."""

    first_s: float = 0.2
    token_s: float = 0.02

    def saw(self, first_s: float, whole_s: float, answer: Completion) -> None:
        """A streamed answer began after `first_s` and ended after `whole_s`."""
        tokens = int((answer.usage or {}).get("completion_tokens") or 0)
        if tokens > 1:
            self.first_s = MEMORY * self.first_s + (1 - MEMORY) * first_s
            self.token_s = MEMORY * self.token_s + (1 - MEMORY) * (whole_s - first_s) / (tokens - 1)

    def wait_s(self, tokens: int) -> float:
        """For the first token and those after it; no two waits are the same."""
        return (self.first_s + self.token_s * (tokens - 1)) * random.uniform(0.7, 1.3)

    def gap_s(self) -> float:
        return self.token_s * random.uniform(0.5, 1.5)
