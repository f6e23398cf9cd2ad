"""Texts of several workers are one text that a Prometheus reads, in which no two series are the same."""

from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import Metrics
from serve.siblings import merged


def test_the_series_of_all_workers_stand_together_under_one_head() -> None:
    one, two = Metrics(), Metrics()
    one.request("GET", 200)
    two.request("GET", 200)
    two.request("POST", 503)
    two.retries.inc(2)
    two.of("heed", "live").ended("answered", 0.5, 0.1, None)

    text = merged({"1": one.text(), "2": two.text()}).decode()

    families = {family.name: family for family in text_string_to_metric_families(text)}
    requests = {
        tuple(sorted(s.labels.items())): s.value for s in families["heed_requests"].samples if "_total" in s.name
    }
    assert requests == {
        (("method", "GET"), ("status", "200"), ("worker", "1")): 1,
        (("method", "GET"), ("status", "200"), ("worker", "2")): 1,
        (("method", "POST"), ("status", "503"), ("worker", "2")): 1,
    }
    assert {s.labels["worker"]: s.value for s in families["heed_retries"].samples if "_total" in s.name} == {
        "1": 0,
        "2": 2,
    }
    assert text.count("# TYPE heed_retries_total counter\n") == 1
    buckets = [s for s in families["heed_answer_seconds"].samples if s.labels.get("le") == "+Inf"]
    assert [(s.labels["worker"], s.value) for s in buckets] == [("2", 1)]
    assert families["heed_requests"].documentation == "Requests by status."
