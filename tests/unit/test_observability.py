"""What dashboards, alerts and autoscalers ask for is what gateway and vLLM count, in their one query language."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import Metrics
from tests.composed import services
from tests.processes import ROOT

FOLDER = ROOT / "deploy" / "observability"
DASHBOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
RULES = yaml.safe_load((FOLDER / "prometheus" / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
ADAPTER = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "autoscaling" / "adapter.yaml").read_text())

Json = dict[str, Any]
Labels = dict[str, set[str]]
"""Of each series its labels, those that Prometheus adds left away."""


class Replica:
    is_up = True

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()


@pytest.fixture(scope="module")
def counted() -> Labels:
    """Series of a gateway that has counted one of each."""
    metrics = Metrics()
    metrics.of("heed", "live")
    for each in vars(metrics).values():
        if labels := getattr(each, "_labelnames", ()):
            each.labels(*labels)
    metrics.watch({"email": 1}, [Replica()], Counter())
    found: Labels = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def counted_by_vllm() -> set[str]:
    """As its source names them: importing it takes longer than all tests of this file."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    return set(re.findall(r'name="(vllm:\w+)"', source))


def panels(path: Path) -> list[Json]:
    return list(json.loads(path.read_text())["panels"])


def asked() -> Iterator[str]:
    """Each expression, Grafana's variables filled in."""
    yield from (alert["expr"] for alert in ALERTS)
    # Of the autoscalers; namespace and pod are Prometheus's own labels.
    yield from (rule["seriesQuery"].partition("{")[0] for rule in ADAPTER["rules"]["custom"])
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                yield target["expr"].replace("$__rate_interval", "1m").replace("$model", "heed")


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Raises ValueError where it is no PromQL."""
    found: list[promql_parser.VectorSelector] = []

    def look(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)
        elif isinstance(part, promql_parser.MatrixSelector):
            found.append(part.vector_selector)

    promql_parser.walk(promql_parser.parse(expression), look)
    return found


@pytest.mark.parametrize("expression", sorted(set(asked())))
def test_what_is_asked_for_is_counted(expression: str, counted: Labels, counted_by_vllm: set[str]) -> None:
    for selector in selectors(expression):
        if str(selector.name).startswith("vllm:"):
            assert selector.name in counted_by_vllm
            continue
        assert selector.name in counted
        assert {matcher.name for matcher in selector.matchers.matchers} <= counted[selector.name]


@pytest.mark.parametrize("expression", sorted(set(asked())))
def test_what_is_grouped_by_is_a_label(expression: str, counted: Labels) -> None:
    names = [str(selector.name) for selector in selectors(expression)]
    if any(name.startswith("vllm:") for name in names):
        return

    groups = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}

    assert all(groups <= counted[name] for name in names)


def test_every_metric_of_the_gateway_is_on_a_dashboard_or_in_an_alert(counted: Labels) -> None:
    def family(name: str) -> str:
        return re.sub("_(bucket|count|sum|created|total)$", "", name)

    shown = {family(str(selector.name)) for expression in asked() for selector in selectors(expression)}

    assert {family(name) for name in counted} - {"up"} <= shown


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_panel_says_what_it_shows_and_lies_over_no_other(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)
    assert all(panel["title"] and panel["description"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_dashboards_ask_the_source_that_is_provisioned_at_the_address_of_prometheus() -> None:
    (source,) = yaml.safe_load((FOLDER / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    used = {panel["datasource"]["uid"] for path in DASHBOARDS for panel in panels(path)}

    assert used == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    assert len({json.loads(path.read_text())["uid"] for path in DASHBOARDS}) == len(DASHBOARDS) == 2


def test_an_alert_says_what_it_means() -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)
    assert all(alert["annotations"]["summary"].endswith((".", "?")) for alert in ALERTS)


def test_prometheus_asks_gateway_and_engines_by_the_names_that_they_have() -> None:
    config = yaml.safe_load((FOLDER / "prometheus/prometheus.yaml").read_text())
    gateway, engines = config["scrape_configs"]
    names = {
        alias
        for service in services("replicas").values()
        for network in service["networks"].values()
        for alias in (network or {}).get("aliases", [])
    }

    assert gateway["static_configs"] == [{"targets": ["gateway:8000"]}]
    assert names == {"gateway", "engine", "engine-2"}
    assert names - {"gateway"} <= set(engines["dns_sd_configs"][0]["names"])
