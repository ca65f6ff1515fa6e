"""Greedy codes equal the reference package's, frame by frame and group by group, in float32.

The reference's codes are in tests/golden/codes.npz, made by tests/golden/make_codes.py; one stream
is run against the reference itself, in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest

from serve_app.models.checkpoint.embedded import embedded_checkpoint
from serve_app.types import ClonedVoice, SpeechRequest
from tests.golden.make_codes import FILE, FRAMES, SETS, weights_hash
from tests.parity.engines import assert_same_codes, request, speak, talker


def asked(case: dict, golden: Mapping[str, np.ndarray], name: str) -> SpeechRequest:
    """The request of a case; a cloned voice is what the reference made of its recording."""
    fields = {key: value for key, value in case.items() if key not in ("clone", "said")}
    if "clone" in case:
        said = case.get("said")
        codes = None if said is None else golden[f"{name}/recording"].astype(np.int64)
        fields["voice"] = ClonedVoice(golden[f"{name}/vector"], codes, said)
    return request(**fields, max_new_tokens=FRAMES)


@pytest.mark.parametrize("name", SETS)
def test_greedy_codes_equal_the_reference(tiny_checkpoint, name) -> None:
    variant, size, eos, cases = SETS[name]
    embedded = variant == "embedded"
    path = embedded_checkpoint() if embedded else tiny_checkpoint(variant, size, eos=eos)
    golden = np.load(FILE)
    assert str(golden[f"{name}/weights"]) == weights_hash(path), (
        "the checkpoint writer has changed: run python -m tests.golden.make_codes"
    )
    requests = [asked(case, golden, f"{name}/{index}") for index, case in enumerate(cases)]
    with talker(path) as engine:
        ours = speak(engine, requests)
    for index, (case, codes) in enumerate(zip(cases, ours, strict=True)):
        expected = golden[f"{name}/{index}"].astype(np.int64)
        assert (len(expected) == FRAMES) == (eos == "unreachable"), "a stream of another length"
        assert_same_codes(codes, expected, f"{case}:")


def test_codes_equal_the_reference_run_now(tiny_checkpoint) -> None:
    path = tiny_checkpoint("custom_voice", "tiny", eos="unreachable")
    text = "A sentence that no golden file has."
    script = (
        "import json, sys; from pathlib import Path; from tests.parity.reference import Reference;"
        "run = Reference(Path(sys.argv[1])).speak(sys.argv[2], speaker='aiden', language='Italian',"
        " max_new_tokens=31); print('codes', json.dumps(run.codes.tolist()))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, str(path), text], capture_output=True, text=True, timeout=300
    )
    lines = [line for line in printed.stdout.splitlines() if line.startswith("codes ")]
    assert lines, printed.stderr[-2000:]
    with talker(path) as engine:
        (ours,) = speak(
            engine, [request(text, voice="aiden", language="italian", max_new_tokens=30)]
        )
    assert_same_codes(ours, np.array(json.loads(lines[0].removeprefix("codes "))))
