"""What the gateway counts, for Prometheus, declared in this one place.

Labels are slots (live, canary, previous, base, other) and not versions: a series for each version would never end.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

FIRST_BYTE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    def __init__(self) -> None:
        # A registry of its own: two gateways in one process (tests) must not count into each other.
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("heed_requests_total", "Requests by status.", ["method", "status"], registry=own)
        self.answers = Counter(
            "heed_answers_total",
            "Answers by how they ended: answered, refused, failed (engine), left (client).",
            ["slot", "outcome"],
            registry=own,
        )
        self.first_byte = Histogram(
            "heed_time_to_first_byte_seconds",
            "From the request's arrival to the answer's first byte.",
            ["slot"],
            registry=own,
            buckets=FIRST_BYTE_BUCKETS,
        )
        self.in_flight = Gauge("heed_in_flight", "Answers being given.", ["slot"], registry=own)
        self.retries = Counter("heed_retries_total", "Requests sent again before their first byte.", registry=own)
        self.unrecorded = Counter(
            "heed_unrecorded_total", "Answers given while the ledger could not be written.", registry=own
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

    def watch(self, redacted: Mapping[str, int]) -> None:
        """What redaction has replaced, by kind; it counts by itself, for not only the gateway's routes record."""
        self.registry.register(Redacted(redacted))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Redacted(Collector):
    def __init__(self, replaced: Mapping[str, int]) -> None:
        self._replaced = replaced

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("heed_redacted", "Values taken out before recording.", labels=["kind"])
        for kind, count in sorted(self._replaced.items()):
            family.add_metric([kind], count)
        yield family
