"""DPO's claim in small: one world where reward, divergence and the best policy are exact (docs/dpo.md has all of it).

The margins are wide; docs/dpo.md tells what is usual.
"""

import json
import subprocess
import sys

import pytest

from tests.processes import ROOT
from tests.toy.study import BETAS, LOW, SFT, TIGHT, Study, dpo_at

PAIRS = 1500
pytestmark = pytest.mark.timeout(900)  # a minute of CPU time, on a machine that others may use


@pytest.fixture(scope="module")
def study() -> Study:
    command = [sys.executable, "-W", "ignore", "-m", "tests.toy.reproduce", "--world", "0", "--small"]
    made = subprocess.run(
        [*command, "--pairs", str(PAIRS)], cwd=ROOT, check=True, capture_output=True, text=True, timeout=880
    )
    return Study.read(json.loads(made.stdout.splitlines()[-1]))


def test_dpo_gains_nearly_all_that_can_be_gained_at_its_divergence(study: Study) -> None:
    for beta in BETAS:
        assert study.lessons[dpo_at(beta)].efficiency > 0.8


def test_dpo_is_no_worse_than_sft_on_the_chosen_at_its_divergence_and_goes_on_from_there(study: Study) -> None:
    # With 3,000 pairs DPO is above SFT in every world of docs/dpo.md, by 0.02 to 0.05; half of them do not show that.
    assert study.above_sft() > -0.05
    assert study.gained(dpo_at(LOW)) > 1.5 * study.gained(SFT)


def test_beta_moves_along_the_frontier(study: Study) -> None:
    assert study.rises()


def test_the_sft_term_cuts_what_goes_outside_the_answers(study: Study) -> None:
    # With 3,000 pairs threefold and more (docs/dpo.md). With half of them there is little to cut: from the base's 0.5 %
    # outside to 2.3 % without the term on one CPU, and to 1.2 % with it.
    assert study.leak_cut(TIGHT) > 1.5
