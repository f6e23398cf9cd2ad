"""What the gateway counts, for Prometheus, declared in this one place.

Labels are served models, which the settings name, and slots (live, canary, previous, base, other) and not versions: a
series for each version would never end. Nothing is counted per token: an answer is looked at when it has ended.
"""

from collections import Counter as Count
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
WHOLE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
LEDGER_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}
OUTCOMES = ("answered", "refused", "failed", "left")


class Metrics:
    def __init__(self) -> None:
        # A registry of its own: two gateways in one process (tests) must not count into each other.
        self.registry = CollectorRegistry()
        own, which = self.registry, ["model", "slot"]
        self._requests = Counter("heed_requests_total", "Requests by status.", ["method", "status"], registry=own)
        self.answers = Counter(
            "heed_answers_total",
            "Answers by how they ended: answered, refused, failed (engine), left (client).",
            [*which, "outcome"],
            registry=own,
        )
        self.first_token = Histogram(
            "heed_time_to_first_token_seconds",
            "From a streamed request's arrival to its answer's first byte.",
            which,
            registry=own,
            buckets=FIRST_TOKEN_BUCKETS,
        )
        self.per_token = Histogram(
            "heed_time_per_token_seconds",
            "Mean time between the tokens of a streamed answer after its first; one observation an answer.",
            which,
            registry=own,
            buckets=PER_TOKEN_BUCKETS,
        )
        self.whole = Histogram(
            "heed_answer_seconds",
            "From the request's arrival to the end of its whole answer.",
            which,
            registry=own,
            buckets=WHOLE_BUCKETS,
        )
        self.in_flight = Gauge("heed_in_flight", "Answers being given.", which, registry=own)
        self.tokens = Counter(
            "heed_tokens_total", "Tokens that the engine counted: prompt, completion.", [*which, "kind"], registry=own
        )
        self.retries = Counter("heed_retries_total", "Requests sent again before their first byte.", registry=own)
        self.unrecorded = Counter(
            "heed_unrecorded_total", "Answers given while the ledger could not be written.", registry=own
        )
        self.ledger = Histogram(
            "heed_ledger_seconds", "How long an answer's record took.", registry=own, buckets=LEDGER_BUCKETS
        )
        self.limited = Counter(
            "heed_limited_total", "Requests refused by a key's limit of requests or tokens.", ["kind"], registry=own
        )
        self.best_of = Counter(
            "heed_best_of_total",
            "Requests for the best of several answers: chosen, or unscored (the scorer failed, the first was given).",
            ["outcome"],
            registry=own,
        )
        self.votes = Counter(
            "heed_votes_total", "Votes and preferences that changed something.", ["kind"], registry=own
        )
        self.swaps = Counter("heed_swaps_total", "Swaps by outcome: live, rejected.", ["outcome"], registry=own)
        self.engine_up = Gauge("heed_engines_up", "Engines that answer.", registry=own)
        self.generation = Gauge("heed_generation", "How often the live pointer has moved.", ["model"], registry=own)
        self._counted: dict[tuple[str, int], Counter] = {}
        self._seen: dict[tuple[str, str], Seen] = {}

    def request(self, method: str, status: int) -> None:
        counted = self._counted.get((method, status))
        if counted is None:
            known = method if method in METHODS else "other"
            counted = self._requests.labels(known, status)
            if known == method:
                self._counted[method, status] = counted
        counted.inc()

    def of(self, model: str, slot: str) -> "Seen":
        """What is counted of a served model's slot; finding its series anew costs as much as counting."""
        seen = self._seen.get((model, slot))
        if seen is None:
            seen = self._seen[model, slot] = Seen(self, model, slot)
        return seen

    def watch(self, redacted: Mapping[str, int], replicas: Iterable["Watched"], waiting: Count[str]) -> None:
        """What counts by itself: values redacted, by kind; replicas, by their place in the settings; requests that wait
        for one."""
        self.registry.register(Redacted(redacted))
        self.registry.register(Replicas(replicas, waiting))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Seen:
    """The series of one served model's slot."""

    def __init__(self, metrics: Metrics, model: str, slot: str) -> None:
        self.in_flight = metrics.in_flight.labels(model, slot)
        self._answers = {outcome: metrics.answers.labels(model, slot, outcome) for outcome in OUTCOMES}
        self._first_token = metrics.first_token.labels(model, slot)
        self._per_token = metrics.per_token.labels(model, slot)
        self._whole = metrics.whole.labels(model, slot)
        self._prompt = metrics.tokens.labels(model, slot, "prompt")
        self._completion = metrics.tokens.labels(model, slot, "completion")

    def ended(self, outcome: str, whole_s: float, first_s: float | None, usage: Mapping[str, int] | None) -> None:
        """An answer; `first_s` where it was streamed, `usage` where the engine told it, both None where it did not."""
        self._answers[outcome].inc()
        if first_s is not None:
            self._first_token.observe(first_s)
        if outcome != "answered":
            return
        self._whole.observe(whole_s)
        if usage is None:
            return
        told = usage.get("completion_tokens") or 0
        self._prompt.inc(usage.get("prompt_tokens") or 0)
        self._completion.inc(told)
        if first_s is not None and told > 1:
            self._per_token.observe((whole_s - first_s) / (told - 1))


class Watched(Protocol):
    """A replica, as far as it is counted."""

    @property
    def is_up(self) -> bool: ...

    @property
    def in_flight(self) -> Count[str]: ...


class Replicas(Collector):
    def __init__(self, replicas: Iterable[Watched], waiting: Count[str]) -> None:
        self._replicas = replicas
        self._waiting = waiting

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("heed_replica_up", "Whether a replica answers.", labels=["replica"])
        busy = GaugeMetricFamily("heed_replica_in_flight", "Requests at a replica.", labels=["replica"])
        for place, replica in enumerate(self._replicas):
            up.add_metric([str(place)], replica.is_up)
            busy.add_metric([str(place)], replica.in_flight.total())
        yield from (up, busy)
        yield GaugeMetricFamily("heed_queue", "Requests that wait for a replica.", value=self._waiting.total())


class Redacted(Collector):
    def __init__(self, replaced: Mapping[str, int]) -> None:
        self._replaced = replaced

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("heed_redacted", "Values taken out before recording.", labels=["kind"])
        for kind, count in sorted(self._replaced.items()):
            family.add_metric([kind], count)
        yield family
