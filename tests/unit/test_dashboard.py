"""The dashboard and the alerts name metrics and labels that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from serve_app import metrics

FOLDER = Path(__file__).parents[2] / "cluster" / "grafana"
# What Ray and Prometheus add by themselves.
ADDED_LABELS = {"le", "deployment", "replica", "application"}


def known() -> dict[str, metrics.Metric]:
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, metrics.Metric):
            endings = ("_bucket", "_sum", "_count") if metric.buckets else ("",)
            found |= {metric.name + ending: metric for ending in endings}
    return found


def dashboard() -> list[tuple[str, str]]:
    panels = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]
    targets = [(panel["title"], t) for panel in panels for t in panel.get("targets", ())]
    return [(title, f"{t['expr']} {t['legendFormat']}") for title, t in targets]


def alerts() -> list[tuple[str, str]]:
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
    return [(rule["alert"], f"{rule['expr']} {rule['annotations']['summary']}") for rule in rules]


@pytest.mark.parametrize(("title", "text"), [*dashboard(), *alerts()])
def test_a_query_names_a_metric_and_labels_that_are_recorded(title: str, text: str) -> None:
    names = set(re.findall(r"\btts_\w+", text))
    assert names, title
    assert names <= known().keys()
    labels = {label for name in names for label in known()[name].labels} | ADDED_LABELS
    selected = set(re.findall(r"[{,]\s*(\w+)=", text))
    grouped = {
        label for group in re.findall(r"by \(([^)]*)\)", text) for label in group.split(", ")
    }
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
    assert selected | grouped | shown <= labels
    for bound in re.findall(r'le="([^"]*)"', text):
        (buckets,) = {known()[name].buckets for name in names if name.endswith("_bucket")}
        assert float(bound) in buckets


def test_who_is_refused_at_any_door_counts_for_the_alert() -> None:
    """HAProxy's own refusals are in no ingress's figure of requests, neither above nor below."""
    above, below = dict(alerts())["TtsRefused"].split(" / ")
    doors = {metrics.REFUSED_AT_PROXY.name, metrics.REQUESTS.name}
    assert all(door in part for door in doors for part in (above, below))


def queries() -> list[tuple[str, str]]:
    """As Prometheus gets them: Grafana puts a duration for its variable."""
    panels = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]
    shown = [(panel["title"], t["expr"]) for panel in panels for t in panel.get("targets", ())]
    asked = [(title, text.replace("$__rate_interval", "5m")) for title, text in shown]
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
    return [*asked, *((rule["alert"], rule["expr"]) for rule in rules)]


@pytest.mark.parametrize(("title", "text"), queries())
def test_a_query_is_one(title: str, text: str) -> None:
    promql_parser.parse(text)
    with pytest.raises(ValueError, match=r"."):
        promql_parser.parse(text + ")")


def test_alerts_and_scraping_have_what_prometheus_knows() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text("utf-8"))
    assert set(config) <= {"global", "scrape_configs", "rule_files", "alerting"}
    assert all((FOLDER / name).exists() for name in config["rule_files"])
    for job in config["scrape_configs"]:
        assert set(job) <= {"job_name", "scrape_interval", "static_configs", "authorization"}
        promql_parser.parse_duration(job["scrape_interval"])
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"]
    assert set(group) <= {"name", "interval", "rules"}
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        promql_parser.parse_duration(rule.get("for", "1m"))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
def test_promtool_takes_the_files_and_alerts_come_when_they_should() -> None:
    for command in (
        ["promtool", "check", "rules", str(FOLDER / "alerts.yaml")],
        ["promtool", "check", "config", str(FOLDER / "prometheus.yaml")],
        ["promtool", "test", "rules", str(Path(__file__).with_name("alerts.test.yaml"))],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_is_on_the_dashboard() -> None:
    text = " ".join(text for _, text in dashboard())
    there = {metric.name for metric in known().values()} - {metrics.BUILD_INFO.name}
    assert {name for name in there if name not in text} == set()


def test_panels_do_not_lie_over_each_other() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]
    taken = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_names_follow_prometheus() -> None:
    for metric in {metric.name: metric for metric in known().values()}.values():
        is_counter = not metric.buckets and not metric.is_gauge
        assert metric.name.endswith("_total") == is_counter, metric.name
        assert list(metric.buckets) == sorted(metric.buckets)
