"""The page docs/dpo.md: the claims with their figures, and every lesson in a table."""

from collections.abc import Sequence

from tests.toy.exact import Measured
from tests.toy.lessons import RECIPE
from tests.toy.study import BETAS, CHAINED, LOW, NOISY, NOISY_SFT, REPLAYED, TIGHT, TIGHT_WEIGHT, Study, dpo_at, spread


def written(studies: Sequence[Study], pairs: int, cpu_s: float) -> str:
    return TEXT.format(
        worlds=len(studies),
        pairs=f"{pairs:,}",
        minutes=f"{cpu_s / 60:.0f}",
        rate=f"{RECIPE['learning_rate']:g}",
        batch=RECIPE["batch_size"],
        epochs=f"{RECIPE['epochs']:g}",
        weight=f"{RECIPE['sft_weight']:g}",
        claims="\n".join(_claims(studies)),
        table="\n".join(_table(studies)),
    )


def _claims(studies: Sequence[Study]) -> list[str]:
    share = [study.lessons[dpo_at(beta)].efficiency for study in studies for beta in BETAS]
    over = [study.above_sft() for study in studies]
    cut = [study.leak_cut(dpo_at(LOW)) for study in studies]
    cut_more = [study.leak_cut(TIGHT) for study in studies]
    noisy = [study.gained(NOISY) - study.gained(NOISY_SFT) for study in studies]
    further = [study.lessons[CHAINED].divergence / study.lessons[REPLAYED].divergence for study in studies]
    return [
        "| claim | measured |",
        "|---|---|",
        f"| DPO gains 90 % of what can be gained at its KL | {spread(share)} of it, least {min(share):.2f} |",
        f"| and more than SFT on the chosen at SFT's KL | {spread(over)} more reward, least {min(over):.2f} |",
        f"| reward and KL grow as beta falls | in {sum(study.rises() for study in studies)} of {len(studies)} worlds |",
        f"| an SFT weight of {TIGHT_WEIGHT:g} cuts what goes outside at least threefold, beta {LOW:g} | "
        f"{spread(cut_more, 1)} times, least {min(cut_more):.2f}; a weight of {RECIPE['sft_weight']:g} "
        f"{spread(cut, 1)} times, least {min(cut):.2f} |",
        f"| a fifth of the labels flipped: DPO gains more than SFT | {spread(noisy)}, least {min(noisy):.2f} |",
        f"| a chained second round goes further from the base than one with replay | {spread(further)} times the KL |",
    ]


def _table(studies: Sequence[Study]) -> list[str]:
    lines = ["| lesson | reward | KL | share of the possible | outside | agreement |", "|---|---|---|---|---|---|"]
    for name in studies[0].lessons:
        found = [study.lessons[name] for study in studies]
        lines.append(f"| {name} | {' | '.join(_cells(found))} |")
    return lines


def _cells(found: Sequence[Measured]) -> list[str]:
    return [
        spread([each.reward for each in found]),
        spread([each.divergence for each in found]),
        spread([each.efficiency for each in found]) if found[0].divergence else "",
        spread([each.leak for each in found], 3),
        spread([each.accuracy for each in found], 3),
    ]


TEXT = """# DPO's claim, where everything can be counted

DPO promises the best reward for each distance from the base, with no reward model and no sampling. A chat cannot show
it: nobody knows the reward. A toy can: 4 prompts, 8^4 answers to each, a tiny Llama that gives them with uneven
probability, a reward that is the sum of each prompt's weights of symbols, and choices by Bradley and Terry's rule from
it. So the expected reward, the KL to the base and the best possible policy at that KL (the base times exp(reward /
beta), DPO's equation 4) are sums over all answers, not estimates.

    make reproduce

trains the project's own recipe, `trainer.dpo.train`, in {worlds} worlds ({minutes} minutes of CPU time) and writes this
page. {pairs} pairs, {epochs} epochs, batches of {batch}, rate {rate}, LoRA rank 16, SFT weight {weight} where nothing
else is said. Figures are means and standard deviations over the worlds.

![Reward gained against KL, and probability outside the answer space](images/dpo.svg)

{claims}

"Outside" is the probability of anything that is not four symbols and an end; reward and KL are of what is inside.
"Share of the possible" is the reward gained over the base's, divided by the most that can be gained at the same KL.
"Agreement" is the expected share of choices that the implicit reward foresees, knowing the reward itself about 0.80.

{table}

SFT on the chosen answers is the same recipe with a beta of nearly nothing, which leaves of its loss the likelihood
term alone. At its own KL it is little worse than DPO; but it cannot go further than to the distribution of chosen
answers, where beta can. Chained references are what the recipe refuses to have: the first round's adapter is merged
into a base of its own, and the second round has that for its reference.

What this does not show: that preferences generalise to prompts nobody voted on (the pocket model's rounds are for
that), or anything about large models. It shows that the machinery optimises what it says it does.
"""
