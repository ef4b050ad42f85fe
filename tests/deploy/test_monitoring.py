"""Alerts and dashboard against what server and bridge really expose, and against the operators' guide."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from scripts.generate import ROOT
from tests.deploy_support import DEPLOY
from tests.system import System
from tests.upstream import UpstreamProcess

RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "grafana" / "memoryos.json").read_text())
GUIDE = (ROOT / "docs" / "operations.md").read_text()
ADDED = {"instance", "job"}
"""Labels that Prometheus itself adds."""
FREE = {"code", "method", "route"}
"""Labels whose values depend on what was called."""

Series = dict[str, list[dict[str, str]]]


def targets() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query as Prometheus would get it."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


QUERIES = [pytest.param(expr, id=f"{where}-{n}") for n, (where, expr) in enumerate(targets())]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """Name -> label sets of every series that a bridge and its server show after a little of everything."""
    with (
        UpstreamProcess() as upstream,
        System(tmp_path_factory.mktemp("monitoring"), {"OPENAI_BASE_URL": upstream.base_url}) as system,
    ):
        chat = {"model": "fake-1", "messages": [{"role": "user", "content": "I live in Porto."}]}
        assert system.post("/v1/chat/completions", chat)[0] == 200
        assert system.post("/v1/memory/retrieve", {"user_id": "ann", "query": "Where?"})[0] == 200
        text = system.get("/metrics")[1]
    series: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(dict(sample.labels))
    return series


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


def grouped(node: Any) -> Iterator[tuple[Any, set[str]]]:
    """Every aggregation with the labels it keeps."""
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        yield node, set(node.modifier.labels)
    for name in ("expr", "lhs", "rhs"):
        if (child := getattr(node, name, None)) is not None:
            yield from grouped(child)
    for child in getattr(node, "args", None) or ():
        yield from grouped(child)


@pytest.mark.parametrize("query", QUERIES)
def test_query_when_parsed_then_every_metric_and_label_is_exposed(query: str, exposed: Series) -> None:
    parsed = promql_parser.parse(query)
    found = list(selectors(parsed))
    assert found
    for selector in found:
        assert selector.name in exposed, f"nobody exposes {selector.name}"
        known = exposed[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[0], f"{selector.name} has no label {matcher.name}"
            values = {labels[matcher.name] for labels in known}
            if matcher.op == promql_parser.MatchOp.Equal:
                assert matcher.value in values, f"{selector.name}: nobody says {matcher.name}={matcher.value}"
            elif matcher.op == promql_parser.MatchOp.Re and matcher.name not in FREE:
                assert set(matcher.value.split("|")) <= values
    for node, labels in grouped(parsed):
        for selector in selectors(node):
            assert labels <= exposed[selector.name][0].keys() | ADDED


def test_query_when_a_metric_is_misspelt_then_the_check_sees_it(exposed: Series) -> None:
    for wrong in (
        "sum(memoryos_queue_depths)",
        'memoryos_queue_depth{sort="open"}',
        'memoryos_queue_depth{kind="odd"}',
    ):
        with pytest.raises(AssertionError):
            test_query_when_parsed_then_every_metric_and_label_is_exposed(wrong, exposed)


def test_metrics_when_exposed_then_none_says_whose(exposed: Series) -> None:
    labels = {label for known in exposed.values() for one in known for label in one}
    assert not labels & {"user", "user_id", "tenant", "tenant_id", "key", "path", "session"}


def test_metrics_when_exposed_then_each_of_ours_is_watched(exposed: Series) -> None:
    asked = " ".join(query.values[0] for query in QUERIES)
    ours = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in exposed if "_process_" not in name}
    unwatched = {name for name in ours if name.startswith("memoryos_") and name not in asked}
    assert unwatched == set()


def test_alerts_when_read_then_each_has_its_heading_and_says_what_happens() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    headings = set(re.findall(r"^#+ (MemoryOS\w+)$", GUIDE, re.M))
    assert headings == set(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        section = GUIDE.split(f"# {rule['alert']}\n")[1].split("\n#")[0]
        for part in ("**Cause.**", "**See.**", "**Do.**"):
            assert part in section, f"{rule['alert']} lacks {part}"


def test_guide_when_it_names_settings_or_metrics_then_they_exist(exposed: Series) -> None:
    from memoryos import settings

    known = {item.name for item in settings.known({})}
    sections = {name.partition(".")[0] for name in known if "." in name}
    named = {
        n for n in re.findall(r"`([a-z]+\.[a-z_]+)`", GUIDE) if n.partition(".")[0] in sections | {"redis", "qdrant"}
    }
    assert named <= known
    for metric in re.findall(r"`(memoryos_[a-z_]*[a-z])", GUIDE):
        assert any(name == metric or name.startswith(f"{metric}_") for name in exposed), metric


def test_guide_when_it_links_then_the_files_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)", GUIDE)
    assert links
    missing = {link for link in links if not (ROOT / "docs" / Path(link)).resolve().exists()}
    assert missing <= {"backup.md"}  # written elsewhere; when it is there, this set must be empty


def test_dashboard_when_read_then_its_panels_are_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
