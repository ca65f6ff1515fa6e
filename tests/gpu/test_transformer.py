"""The talker's layers: every plan computes what the library's products compute, up to rounding."""

import os

import pytest
import torch

from load_tests.stages.talker_layers import SIZES, decode_context, random_model
from serve_app.models.talker.vllm.transformer import PLANS, OwnTransformer, TalkerPlan

# Of 28 layers of bfloat16 with random weights; the plans differ by 0.025 to 0.028 from each other.
TOLERANCE = 0.06
CONTEXT = 127
MOST_ROWS = 64


@pytest.fixture(scope="module", params=os.environ.get("TTS_GPU_SIZES", "0.6b").split(","))
def layers(request) -> OwnTransformer:
    blocks = MOST_ROWS * decode_context(1, CONTEXT, 1)[1].attn_metadata["0"].block_table.shape[1]
    return OwnTransformer(random_model(*SIZES[request.param], blocks))


@pytest.mark.parametrize("rows", [1, 2, 16, 33, MOST_ROWS])
def test_plans_agree(layers: OwnTransformer, rows: int) -> None:
    positions, context = decode_context(rows, CONTEXT, len(layers.layers))
    generator = torch.Generator("cuda").manual_seed(rows)
    hidden = layers.layers[0].qkv.shape[1]
    x = torch.randn(rows, hidden, device="cuda", generator=generator).to(torch.bfloat16)
    plans = [plan for _, plan in PLANS if plan.products != "vector" or rows <= 2]
    with torch.inference_mode():
        expected = layers.run(TalkerPlan("library", pdl=False), positions, x, context).float()
        for plan in plans:
            before = x.clone()
            got = layers.run(plan, positions, x, context).float()
            assert torch.equal(x, before), "the inputs are read again by the next step"
            assert (got - expected).norm() <= TOLERANCE * expected.norm(), plan
            # Overlapped kernels: the same every time.
            assert torch.equal(layers.run(plan, positions, x, context).float(), got), plan
