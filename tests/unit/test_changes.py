"""Twelve changes that a newcomer may want to make: each has its place, and no second one.

Of each change, what would be edited is a line that can be recognised. It is found in one or two
places, which CONTRIBUTING's table names, and nowhere else.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Change:
    """
    row: how its row in CONTRIBUTING begins.
    edited: the lines that are changed, or get a neighbour.
    places: files and folders that have them.
    package: that is looked through.
    """

    row: str
    edited: str
    places: tuple[str, ...]
    package: str = "serve_app"


CHANGES = (
    Change("an audio format", r"^    AudioFormat\.\w+: _Format", ("serve_app/audio/formats.py",)),
    Change(
        "an endpoint",
        r"^    .*\badd_routes\(app",
        ("serve_app/http/app.py", "serve_app/http/voices/wiring.py"),
    ),
    Change(
        "how a token is drawn",
        r"^def (sample|sample_row|uniform|apply_repetition_penalty)\(",
        ("serve_app/models/sampling.py", "serve_app/models/sampling_kernel.py"),
    ),
    Change("a new vLLM release", r"^\s*(from|import) vllm\b", ("serve_app/models/talker/vllm/",)),
    Change("a metric", r'^    "tts_\w+",$', ("serve_app/metrics.py",)),
    Change(
        "a fact of the model, a checkpoint variant",
        r"^class (?!Device)\w+Spec\b|^def build_prompt",
        ("serve_app/models/checkpoint/", "serve_app/models/talker/prompt.py"),
    ),
    Change(
        "the chunk ramp",
        r"^class FramesHeld\b|^    chunk_frames: .*= Field\($",
        ("serve_app/config.py", "serve_app/chunking.py"),
    ),
    Change("where files and objects are kept", r"^class \w*Storage\b", ("serve_app/storage/",)),
    Change(
        "a signal for autoscaling",
        r"^ARRIVALS\b|^ +(names|found\[names)\.ARRIVALS\b|^ +found\[names\.\w+\] = ",
        ("serve_app/scaling/snapshot.py", "serve_app/scaling/board.py"),
    ),
    Change(
        "a graph's batch sizes",
        r'^    batch_sizes: .*= Field\($|^ +"batch_sizes": ',
        ("serve_app/config.py", "serve_app/models/memory/presets.py"),
    ),
    Change(
        "an error",
        r"^class \w+\((SpeechError|InvalidRequest|StageFailed|StageUnavailable)\)"
        r"|^            status, kind, code = ",
        ("serve_app/errors.py", "serve_app/http/errors.py"),
    ),
    Change(
        "a figure of the load tests",
        r"^class Summary\b|^HEADER\b",
        ("load_tests/loops/metrics.py", "load_tests/reports/"),
        "load_tests",
    ),
)


def table() -> dict[str, str]:
    """CONTRIBUTING's rows: what is to be changed, and where."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|", 1) for line in lines if line.startswith("| ")]
    return {what.strip(): where for what, where in rows}


def holding(change: Change) -> set[str]:
    """Files with a line that is edited."""
    edited = re.compile(change.edited, re.MULTILINE)
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / change.package).rglob("*.py")
        if edited.search(path.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.row)
def test_a_change_is_made_where_contributing_says_and_nowhere_else(change: Change) -> None:
    assert 1 <= len(change.places) <= 2
    found = holding(change)
    assert {p for p in change.places if any(f.startswith(p) for f in found)} == set(change.places)
    assert {f for f in found if not f.startswith(change.places)} == set()
    where = table()[change.row]
    for place in change.places:
        # A file in the folder that the row has named before goes by its name.
        assert place in where or f"`{Path(place).name}`" in where, f"{place} is not in the table"
