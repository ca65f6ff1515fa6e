"""Which requests leave, and when."""

import json
import math
from itertools import pairwise

import pytest

from load_tests.loops.options import frames_of
from load_tests.loops.workload import Workload, poisson_arrivals
from serve_app.http.speech.body import SpeechBody, parse


def test_poisson_arrivals_depend_on_the_seed_alone() -> None:
    assert poisson_arrivals(20, 10, seed=1) == poisson_arrivals(20, 10, seed=1)
    assert poisson_arrivals(20, 10, seed=1) != poisson_arrivals(20, 10, seed=2)
    # A longer schedule begins with the shorter one.
    short = poisson_arrivals(20, 5, seed=1)
    assert poisson_arrivals(20, 10, seed=1)[: len(short)] == short


def test_poisson_arrivals_have_the_rate_and_the_scatter() -> None:
    arrivals = poisson_arrivals(50, 1000, seed=3)
    # 50,000 expected, standard deviation 224.
    assert abs(len(arrivals) - 50_000) < 1000
    gaps = [after - before for before, after in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 50, rel=0.02)
    assert spread == pytest.approx(mean, rel=0.02)  # of exponential gaps
    assert min(gaps) >= 0


def test_a_rate_is_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        poisson_arrivals(0, 1, seed=0)


def test_a_call_is_a_body_that_the_server_reads_as_meant() -> None:
    call = Workload(min_frames=30, max_frames=80, seed=4).call(5)
    body = parse(json.loads(call.body))
    assert isinstance(body, SpeechBody)
    assert call == Workload(min_frames=30, max_frames=80, seed=4).call(5)
    assert call.body != Workload(min_frames=30, max_frames=80, seed=5).call(5).body
    assert call.num_frames is not None
    assert 30 <= call.num_frames <= 80
    assert body.min_new_tokens == body.max_new_tokens == call.num_frames
    assert body.non_streaming_mode is False
    assert body.response_format == "pcm"
    assert not set(json.loads(call.body)) - set(SpeechBody.model_fields)


def test_a_share_shortens_a_call_and_a_natural_length_is_not_forced() -> None:
    assert Workload(min_frames=40, max_frames=40).call(0, share=0.25).num_frames == 10
    assert Workload(min_frames=40, max_frames=40).call(0, share=0.001).num_frames == 1
    natural = Workload(min_frames=None, max_frames=None).call(0)
    assert natural.num_frames is None
    assert "max_new_tokens" not in json.loads(natural.body)


def test_frames_may_be_a_number_a_range_or_the_models_choice() -> None:
    assert frames_of("55") == (55, 55)
    assert frames_of("30:80") == (30, 80)
    assert frames_of("natural") == (None, None)
