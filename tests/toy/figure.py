"""The figure: what each lesson gained for how far it went, against the most that can be gained, and what it leaked."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

from tests.toy.lessons import RECIPE
from tests.toy.study import BASE, BETAS, CHAINED, LEAKY, LOW, NOISY, REPLAYED, SFT, TIGHT, TIGHT_WEIGHT, Study, dpo_at

BLUE, GREY, ORANGE, RED = "#2f6fde", "#8a909c", "#e0862a", "#c8403a"


def draw(studies: Sequence[Study], out: Path) -> None:
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "heed"  # the same numbers give the same file
    from matplotlib import pyplot

    figure, (frontier, leaks) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 1.6))
    _frontier(frontier, studies)
    _leaks(leaks, studies)
    for axes in (frontier, leaks):
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


def _frontier(axes: Any, studies: Sequence[Study]) -> None:
    furthest = 1.05 * max(found.divergence for study in studies for found in study.lessons.values())
    grid = [at for at, _ in studies[0].frontier if at <= furthest]
    best = [mean(study.frontier[step][1] for study in studies) for step in range(len(grid))]
    axes.plot(grid, best, color="black", linewidth=1, label="the most that can be gained")
    axes.plot(grid, [0.9 * gain for gain in best], color="black", linewidth=0.8, linestyle=":", label="90 % of it")
    dots = (
        ([dpo_at(beta) for beta in BETAS], BLUE, "o", f"DPO, beta {', '.join(f'{beta:g}' for beta in BETAS)}"),
        ([SFT], ORANGE, "s", SFT),
        ([NOISY], BLUE, "x", NOISY),
        ([REPLAYED], GREY, "^", "round 2 from the base with replay"),
        ([CHAINED], RED, "v", "round 2, chained"),
    )
    for names, colour, marker, label in dots:
        found = [(study.lessons[name].divergence, study.gained(name)) for study in studies for name in names]
        axes.scatter(*zip(*found, strict=True), color=colour, marker=marker, s=28, label=label, zorder=3)
    axes.set_xlabel("KL to the base, nats an answer")
    axes.set_ylabel("expected reward gained")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title(f"{len(studies)} worlds")


def _leaks(axes: Any, studies: Sequence[Study]) -> None:
    shown = {BASE: "base", LEAKY: "without", dpo_at(LOW): f"{RECIPE['sft_weight']:g}", TIGHT: f"{TIGHT_WEIGHT:g}"}
    for place, (name, colour) in enumerate(zip(shown, (GREY, RED, BLUE, BLUE), strict=True)):
        heights = [100 * study.lessons[name].leak for study in studies]
        axes.bar(place, mean(heights), 0.6, color=colour)
        axes.scatter([place] * len(heights), heights, color="black", s=8, zorder=3)
    axes.set_xticks(range(len(shown)), shown.values())
    axes.set_ylabel("probability outside the answer space, %")
    axes.set_title(f"By weight of the SFT term, beta {LOW:g}")
