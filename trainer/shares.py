"""Shares of habits among answers, and a picture of them before and after a training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feedback.proportions import wilson
from trainer.habits import BROKEN, HABITS, Habit, Verdict

SHOWN: tuple[Verdict, ...] = (*HABITS, BROKEN)


@dataclass(frozen=True)
class Shares:
    counts: Counter[Verdict]

    @property
    def n(self) -> int:
        return self.counts.total()

    def of(self, habit: Verdict) -> float:
        return self.counts[habit] / self.n

    def interval(self, habit: Verdict) -> tuple[float, float]:
        """95 %, Wilson."""
        return wilson(self.counts[habit], self.n)

    def text(self, habit: Verdict) -> str:
        low, high = self.interval(habit)
        return f"{100 * self.of(habit):5.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def table(before: Shares, after: Shares, taste: Habit) -> list[str]:
    """A line for each habit, the preferred one first, with 95 % Wilson intervals."""
    habits = sorted(SHOWN, key=lambda habit: habit != taste)
    lines = [f"  {'':10}{f'before, n = {before.n}':22}{f'after, n = {after.n}':22}"]
    return lines + [f"  {habit:10}{before.text(habit):22}{after.text(habit):22}".rstrip() for habit in habits]


def draw(
    before: Shares, after: Shares, taste: Habit, margins: Sequence[tuple[int, float]], name: str, out: Path
) -> None:
    """Bars of habits with 95 % intervals, and the reward margin over the steps of training, as PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (bars, curve) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for offset, shares, label, colour in ((-0.2, before, "before", "#b8bcc4"), (0.2, after, "after", "#2f6fde")):
        heights = [100 * shares.of(habit) for habit in SHOWN]
        spans = [shares.interval(habit) for habit in SHOWN]
        below = [max(0.0, h - 100 * low) for h, (low, _) in zip(heights, spans, strict=True)]
        above = [max(0.0, 100 * high - h) for h, (_, high) in zip(heights, spans, strict=True)]
        places = [index + offset for index in range(len(SHOWN))]
        bars.bar(places, heights, 0.38, yerr=[below, above], capsize=3, color=colour, label=label)
    bars.set_xticks(range(len(SHOWN)), [f"{habit}\n(preferred)" if habit == taste else habit for habit in SHOWN])
    bars.set_ylabel("share of answers, %")
    bars.set_ylim(0, 100)
    bars.set_title("Habits on topics nobody voted on")
    bars.legend(frameon=False)
    curve.plot([step for step, _ in margins], [margin for _, margin in margins], color="#2f6fde")
    curve.axhline(0, color="#b8bcc4", linewidth=0.8)
    curve.set_xlabel("step")
    curve.set_ylabel("rewards/margins")
    curve.set_title(f"DPO of {name}")
    for axes in (bars, curve):
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    pyplot.close(figure)
