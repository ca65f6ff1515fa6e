"""With `deterministic`, a request's codes are its own: alone, in any batch, and resumed."""

import os

import numpy as np
import pytest

from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.random_checkpoint.write import write_checkpoint
from serve_app.types import SamplingOverrides
from tests.parity.engines import assert_same_codes, request, speak, talker

SIZES = tuple(os.environ.get("TTS_GPU_SIZES", "0.6b").split(","))
STREAMS, FRAMES = 64, 30
SAMPLED = SamplingOverrides()


@pytest.fixture(scope="module", params=SIZES)
def engine(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / request.param
    write_checkpoint(
        path, size=request.param, variant="custom_voice", eos="unreachable", device="cuda"
    )
    config = CodePredictorConfig(deterministic=True, batch_sizes=(1, 2, 4, 8, 16, 32, 64))
    predictor = InProcessFrames.load(open_checkpoint(path), config, "cuda")
    settings = {
        "max_model_len": 1024,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": STREAMS,
        "block_size": None,
        "deterministic": True,
    }
    with talker(path, predictor, "cuda", **settings) as engine:
        yield engine


def requests():
    """Greedy and sampled ones, of texts of different lengths, half of them streamed text."""
    return [
        request(
            "A word " * (1 + 5 * index % 40),
            seed=index,
            max_new_tokens=FRAMES,
            streaming_text=index % 2 == 0,
            **({} if index % 4 == 0 else {"talker": SAMPLED, "subtalker": SAMPLED}),
        )
        for index in range(STREAMS)
    ]


def test_codes_depend_on_their_own_request_alone(engine) -> None:
    asked = requests()
    alone = [speak(engine, [one])[0] for one in asked]
    for size in (2, 16, STREAMS):
        for first in range(0, STREAMS, size):
            together = speak(engine, asked[first : first + size])
            for index, codes in enumerate(together, first):
                assert_same_codes(codes, alone[index], f"request {index} among {size}:")
    order = np.random.default_rng(0).permutation(STREAMS)
    shuffled = speak(engine, [asked[index] for index in order])
    for index, codes in zip(order, shuffled, strict=True):
        assert_same_codes(codes, alone[index], f"request {index} in another order:")


def test_a_resumed_stream_goes_on_as_it_would_have(engine) -> None:
    asked = requests()[:16]
    whole = speak(engine, asked)
    cuts = [1 + index for index in range(16)]
    rest = speak(engine, asked, [codes[:cut] for codes, cut in zip(whole, cuts, strict=True)])
    for codes, cut, part in zip(whole, cuts, rest, strict=True):
        assert_same_codes(part, codes[cut:], f"resumed at {cut}:")
