"""The gate's worth in small: real jobs, two bad ones that stay off the air and a good one that goes live.

`make gate` tries all of them (docs/gate.md).
"""

from pathlib import Path

import pytest

from tests.catalogue import Case, both, by_taste, nan_in_weights, tried, written

pytestmark = pytest.mark.timeout(900)

GOOD = Case("steps", True, (by_taste("steps", 130),))
NAN = Case("NaN in the weights", False, (by_taste("steps", 100),), tamper=nan_in_weights)
ONE_VOTER = Case(
    "one voter's votes among others'", False, (both(by_taste("steps", 40), by_taste("lazy", 200, seed=1, people=1)),)
)


@pytest.mark.parametrize(
    ("case", "decision", "words"),
    [
        (GOOD, "pass", "held-out accuracy"),
        (NAN, "fail", "must be finite"),
        (ONE_VOTER, "canary-only", "should not be one voter's"),
    ],
    ids=["good", "nan", "one voter"],
)
async def test_a_good_job_goes_live_and_bad_ones_do_not(
    case: Case, decision: str, words: str, ledger_url: str, tmp_path: Path, pocket: Path
) -> None:
    outcome = await tried(case, ledger_url, tmp_path, pocket, written())

    assert outcome.decision == decision, outcome.reason
    assert outcome.goes_live is case.is_good
    assert words in outcome.reason
