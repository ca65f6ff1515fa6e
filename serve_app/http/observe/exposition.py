"""`GET /metrics`: the metrics of all stages and all nodes in Prometheus' text format.

Each process reports to an agent of its node, which has a port of its own; whoever makes this
application gives it a way to read them all. The names are those of `serve_app/metrics.py`, and of
Ray's labels those stay that tell replicas apart: addresses of nodes are nobody's business here.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from serve_app import __version__, metrics
from serve_app.http.health import Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# What Ray puts before the names of an application.
_RAYS: Final = "ray_"
_OURS: Final = "tts_"
_HIDDEN: Final = frozenset(
    ("Component", "NodeAddress", "SessionName", "Version", "WorkerId", "NodeId", "JobId")
)
# Labels of the library that Ray exports with.
_EXPORTERS: Final = "otel_scope_"
_HEADS: Final = ("# HELP ", "# TYPE ")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)(?: \S+)?")

_ESCAPED: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

# The texts of all agents.
Gather = Callable[[], Awaitable[Sequence[str]]]


# How many voices there are, by their type.
CountVoices = Callable[[], Awaitable[Mapping[str, int]]]


def add_routes(
    app: FastAPI,
    gather: Gather,
    status: Callable[[], Awaitable[Status]],
    count_voices: CountVoices,
) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def exposed() -> PlainTextResponse:
        own = (*_own(await status()), *_of_voices(await count_voices()))
        text = "".join((*merged(await gather()), *own))
        return PlainTextResponse(text, media_type=CONTENT_TYPE)


def merged(texts: Iterable[str]) -> list[str]:
    """Our families of all texts, each once, with the samples of all."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, dict[str, str]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith(_HEADS):
                _, kind, family, *rest = line.split(" ", 3)
                name = family.removeprefix(_RAYS)
                if name.startswith(_OURS):
                    head = f"# {kind} {name} {' '.join(rest)}\n"
                    known = heads.setdefault(name, [])
                    if not any(other.startswith(f"# {kind} ") for other in known):
                        known.append(head)
                continue
            name = family.removeprefix(_RAYS)
            if name.startswith(_OURS) and line.removeprefix(_RAYS).startswith(name):
                series, value = _plain(line)
                samples.setdefault(name, {})[series] = value
    return [
        part
        for name, head in heads.items()
        for part in (*head, *(f"{s} {v}\n" for s, v in samples.get(name, {}).items()))
    ]


def _plain(line: str) -> tuple[str, str]:
    """A sample's series without what nobody needs, and its value."""
    found = _SAMPLE.fullmatch(line)
    if found is None:
        return line.rsplit(" ", 1)[0], line.rsplit(" ", 1)[-1]
    name, labels, value = found.groups()
    kept = ",".join(
        f'{label}="{text}"'
        for label, text in _LABEL.findall(labels or "")
        if label not in _HIDDEN and not label.startswith(_EXPORTERS)
    )
    return name.removeprefix(_RAYS) + (f"{{{kept}}}" if kept else ""), value


def _own(status: Status) -> list[str]:
    """What this ingress knows of the whole by itself."""
    lines = [
        *_head(metrics.BUILD_INFO),
        f'{metrics.BUILD_INFO.name}{{version="{__version__}"}} 1\n',
        *_head(metrics.READY),
        f"{metrics.READY.name} {int(status.can_serve)}\n",
        *_head(metrics.REPLICAS),
    ]
    replicas = {model.application: model.replicas for model in status.models}
    replicas[status.application] = status.replicas
    for application, deployments in sorted(replicas.items()):
        for deployment, counts in sorted(deployments.items()):
            of = f'application="{application}",deployment="{deployment}"'
            for state, number in sorted(counts.items()):
                lines.append(f'{metrics.REPLICAS.name}{{{of},state="{state}"}} {number}\n')
    lines += _head(metrics.MODEL_READY)
    for model in status.models:
        label = model.name.translate(_ESCAPED)
        lines.append(f'{metrics.MODEL_READY.name}{{model="{label}"}} {int(model.can_serve)}\n')
    return lines


def _of_voices(counts: Mapping[str, int]) -> list[str]:
    lines = [f'{metrics.VOICES.name}{{type="{kind}"}} {n}\n' for kind, n in counts.items()]
    return [*_head(metrics.VOICES), *lines]


def _head(metric: metrics.Metric) -> tuple[str, str]:
    return f"# HELP {metric.name} {metric.help}\n", f"# TYPE {metric.name} gauge\n"
