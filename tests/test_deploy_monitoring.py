"""The dashboard, the alerts and the scrape configuration of deploy/, against what a real worker and producer say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from metrics_scrapes import Said, names, numbers
from promql_parser import VectorSelector, walk
from promql_parser import parse as parse_promql

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "aoi-line.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
FILLED = {"$__rate_interval": "1m", "$__range": "1h", "$line": ".*"}
PROMETHEUS_OWN = {"up"}


def filled(expression: str) -> str:
    """As Grafana sends it; a variable that Grafana does not know stays, and the parser refuses it."""
    for variable, value in FILLED.items():
        expression = expression.replace(variable, value)
    return expression


QUERIES = [(f"{p['title']}, {t['refId']}", filled(t["expr"])) for p in PANELS for t in p["targets"]]
QUERIES += [(rule["alert"], rule["expr"]) for rule in RULES]


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """The metrics that an expression asks for, and the labels it matches them by; fails where it does not parse."""
    nodes: list[Any] = []
    walk(parse_promql(query), nodes.append)
    found = [node for node in nodes if isinstance(node, VectorSelector)]
    return [(node.name or "", {matcher.name for matcher in node.matchers.matchers}) for node in found]


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_query_parses_and_asks_for_what_is_told(said: Said, where: str, query: str) -> None:
    """Every metric and label that a panel or an alert names is in the output of a running worker or producer."""
    labels: dict[str, set[str]] = {}
    for name, has in (*numbers(said.worker), *numbers(said.producer)):
        labels.setdefault(name, set()).update(dict(has))
    asked = selectors(query)
    assert asked
    for name, matched in asked:
        assert name in labels.keys() | PROMETHEUS_OWN, f"{where}: {name} does not exist"
        assert matched <= labels.get(name, set()) | {"job", "instance"}, f"{where}: {name} has no such label"
    grouped = {label for by in re.findall(r"\bby \(([^)]*)\)", query) for label in re.split(r",\s*", by)}
    assert grouped <= set().union(*(labels.get(name, set()) for name, _ in asked)), where


def test_ledger_numbers_are_never_summed_over_processes(said: Said) -> None:
    """Every process tells the same ledger: without max or min first, three processes would count each frame thrice."""
    ledger = names(said.worker) & names(said.producer)
    for where, query in QUERIES:
        for name in (name for name in ledger if name.startswith("aoi_") and re.search(rf"\b{name}\b", query)):
            assert re.search(rf"(max|min) by \([^)]*\) \((rate\(|increase\()?{name}\b", query), f"{where}: {name}"


def test_dashboard_is_one_for_any_datasource_and_line() -> None:
    """It imports without edits: the datasource and the line are variables that every query uses; nothing overlaps."""
    assert [v["name"] for v in BOARD["templating"]["list"]] == ["datasource", "line"]
    own = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == own, panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == own, panel["title"]
            assert 'line=~"$line"' in target["expr"], panel["title"]
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    numbered = [panel["id"] for panel in BOARD["panels"]]
    assert len(numbered) == len(set(numbered))


def test_dashboard_fits_grafanas_own_schema() -> None:
    """Read and written again by Grafana's SDK, made from Grafana's schema: nothing lost, so nothing misspelt."""
    if sys.version_info < (3, 11):
        pytest.skip("Grafana's SDK needs Python 3.11")
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    plugins.register_default_plugins()
    written = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(BOARD)))
    assert list(lost(BOARD, written, "")) == []


def lost(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from lost(value, found[key], f"{path}/{key}") if key in found else [f"{path}/{key}"]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif wanted != found:
        yield path


def test_alerts_say_what_happened_and_what_to_do() -> None:
    """Each has a severity, a summary that names the line or the process, and a next step; what must not be is there."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "{{ $labels." in rule["annotations"]["summary"], rule["alert"]
        assert len(rule["annotations"]["description"]) > 20
    asked = " ".join(rule["expr"] for rule in RULES)
    needed = ("ledger_balanced", "workers_alive", "deadline_failsafe", "dead_frames", "engine_errors", "stream_up")
    assert all(word in asked for word in needed)


def test_scrape_config_loads_the_alerts_and_gives_up_in_time() -> None:
    """The rules it names lie beside it, and a scrape may take longer than the process ever waits for its stream."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}}' in " ".join(rule["expr"] for rule in RULES)
    assert 2.0 < float(job["scrape_timeout"].rstrip("s")) < float(config["global"]["scrape_interval"].rstrip("s"))
