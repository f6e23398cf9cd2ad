"""Two means compared again and again, and never wrong more often than said: a confidence sequence.

Whoever looks at an ordinary interval after every vote and stops at the first that suits them is wrong far more often
than its 5 %. These hold at all times at once. For one stream of numbers in [0, 1] with mean p,

    M(p) = integral of t^S (1-t)^(n-S) over t ~ Beta(1/2, 1/2), divided by p^S (1-p)^(n-S),   S their sum,

starts at 1 and is expected never to grow: for 0s and 1s it is a martingale (the method of mixtures: Robbins 1970,
Ann. Math. Stat. 41), for what lies between a supermartingale, as x -> a^x b^(1-x) is convex. The product of two is one
as well, however the streams are interleaved, so by Ville's inequality the chance that it ever reaches 1/level at the
true pair of means is at most `level` (the sums over arms of Kaufmann & Koolen 2021, JMLR 22:246). The pairs of means
where it has not are a convex set; what is told of a difference or a ratio is that set seen from the side. Nothing here
is an approximation for large n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, lgamma, log, pi

NARROW = 1e-12
"""From 0 and from 1 at which a mean is taken for inside."""

INNER_STEPS = 40
"""Halvings for the mean within a region, to 1e-12."""

OUTER_STEPS = 16
"""Halvings for an end of an interval: differences to 3e-5, ratios to a thousandth."""

WIDEST_RATIO = 1000.0


@dataclass(frozen=True)
class Sample:
    """Numbers in [0, 1]: how many, and their sum."""

    n: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    @property
    def mixture(self) -> float:
        """log of the integral above; its prior's own constant is 1/pi."""
        hits, misses = self.total + 0.5, self.n - self.total + 0.5
        return lgamma(hits) + lgamma(misses) - lgamma(self.n + 1.0) - log(pi)


@dataclass(frozen=True)
class Region:
    """What the means of two samples can be, all looks taken together, with a chance of `level` to be wrong ever."""

    control: Sample
    canary: Sample
    level: float

    def excludes(self, shift: float = 0.0, factor: float = 1.0) -> bool:
        """Whether the canary's mean is not shift + factor times the control's, whatever that is."""
        return self._evidence(shift, factor) >= log(1 / self.level)

    def difference(self) -> tuple[float, float]:
        """Ends of the interval for the canary's mean less the control's."""
        if not (self.control.n and self.canary.n):
            return -1.0, 1.0
        middle = self.canary.total / self.canary.n - self.control.total / self.control.n
        return (
            _end(lambda shift: self.excludes(shift), middle, -1.0),
            _end(lambda shift: self.excludes(shift), middle, 1.0),
        )

    def ratio(self) -> tuple[float, float]:
        """Ends of the interval for the canary's mean by the control's; beyond a thousand it does not look."""
        if not (self.control.total and self.canary.total):
            return 0.0, inf
        middle = log(self.canary.total / self.canary.n) - log(self.control.total / self.control.n)
        widest = log(WIDEST_RATIO)
        if abs(middle) >= widest:
            return 0.0, inf
        low = _end(lambda scale: self.excludes(factor=exp(scale)), middle, -widest)
        high = _end(lambda scale: self.excludes(factor=exp(scale)), middle, widest)
        return (exp(low) if low > -widest else 0.0), (exp(high) if high < widest else inf)

    def _evidence(self, shift: float, factor: float) -> float:
        """The least log of the product along q = shift + factor p, which is convex; infinite where no p is allowed."""
        low, high = max(NARROW, (NARROW - shift) / factor), min(1 - NARROW, (1 - NARROW - shift) / factor)
        if low > high:
            return inf
        s, f = self.control.total, self.control.n - self.control.total
        u, g = self.canary.total, self.canary.n - self.canary.total
        for _ in range(INNER_STEPS):
            p = (low + high) / 2
            q = shift + factor * p
            if -s / p + f / (1 - p) + factor * (-u / q + g / (1 - q)) > 0:
                high = p
            else:
                low = p
        p = (low + high) / 2
        q = shift + factor * p
        likelihood = s * log(p) + f * log(1 - p) + u * log(q) + g * log(1 - q)
        return self.control.mixture + self.canary.mixture - likelihood


def _end(excludes: Callable[[float], bool], inside: float, outmost: float) -> float:
    """Where it begins to exclude on the way out; the outmost where it never does. Errs to the outside."""
    if not excludes(outmost):
        return outmost
    outside = outmost
    for _ in range(OUTER_STEPS):
        middle = (inside + outside) / 2
        if excludes(middle):
            outside = middle
        else:
            inside = middle
    return outside
