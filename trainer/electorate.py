"""The electorate: whose opinions a job rests on. Names stay here; numbers and digests go into its files."""

from collections import defaultdict
from collections.abc import Iterable

from pydantic import BaseModel, Field

from feedback.records import digest
from trainer.dataset import Lesson


class Electorate(BaseModel):
    pairs: int = Field(0, description="That rest on somebody's vote.")
    voters: int = 0
    largest_share: float = 0.0
    is_sole: bool = Field(False, description="Nobody but this one has ever voted on the served model.")
    bunches: dict[str, str] = Field(default_factory=dict, description="For each held-out pair, whose it is: a digest.")

    def bunch(self, pair_id: str) -> str:
        """Pairs of one voter come together; a pair of nobody's is on its own."""
        return self.bunches.get(pair_id, pair_id)


def of(taught: Iterable[Lesson], measured: Iterable[Lesson], known_voters: int) -> Electorate:
    """`taught` is what the job trains on and is measured by, `measured` what it is measured by; `known_voters` counts
    everybody who ever voted on the served model."""
    loads: dict[str, float] = defaultdict(float)
    pairs = 0
    for pair in taught:
        names = pair.needed or pair.voters
        pairs += bool(names)
        for name in names:
            loads[name] += 1 / len(names)
    return Electorate(
        pairs=pairs,
        voters=len(loads),
        largest_share=max(loads.values()) / pairs if pairs else 0.0,
        is_sole=len(loads) == 1 and known_voters <= 1,
        bunches={pair.id: digest("voter", names[0])[:16] for pair in measured if (names := pair.needed or pair.voters)},
    )
