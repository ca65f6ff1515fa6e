"""The fast code predictor equals the eager one, under Triton's interpreter.

In a process of its own, since Triton reads that setting when it is imported.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("width", [32, 48], ids=["no projection", "projection"])
def test_a_frame_equals_eager(width: int) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    # -P: folders of tests beside this file must not stand for packages of their names.
    command = [sys.executable, "-P", __file__, str(width)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def main(width: int) -> None:
    from load_tests.stages.code_predictor import random_batch, random_weights
    from serve_app.models.checkpoint.spec import CodePredictorSpec, TransformerSpec
    from serve_app.models.code_predictor.fast import FastCodePredictor, PredictorPlan
    from serve_app.models.code_predictor.model import CodePredictor
    from serve_app.models.layers.few_rows import Tiles

    shape = TransformerSpec(32, 96, 1, 2, 1, 16, 1e-6, 1e6)
    spec = CodePredictorSpec(shape, 32, 4, width, 40)
    given = (spec, *random_weights(spec, "cpu"), torch.device("cpu"), torch.float32)
    tiles = Tiles(qkv=8, output=8, gate_up=16, down=16, head=16)
    tiled = PredictorPlan(pdl=False, residual=torch.float32, tiled=tiles, splits=(2, 3))
    vector = replace(tiled, vector_rows=2, vector=tiles, library_rows=3)
    # Two streams are four rows in the first pass, which the library takes under `vector`.
    cases = [(vector, 1, 5, 1.0), (vector, 2, 0, 0.6), (tiled, 2, 5, 1.0)]
    with torch.inference_mode():
        eager = CodePredictor(*given)
        # Only Hopper and newer can overlap kernels.
        assert not any(plan.pdl for _, plan in FastCodePredictor(*given).plans)
        for plan, rows, top_k, top_p in cases:
            fast = FastCodePredictor(*given, plan)
            batch = random_batch(spec, rows, torch.float32, "cpu", 0.9)
            batch.top_k.fill_(top_k)
            batch.top_p.fill_(top_p)
            expected, got = eager.predict(batch), fast.predict(batch)
            assert torch.equal(got, expected), (plan, rows, top_k, top_p, got, expected)


if __name__ == "__main__":
    main(int(sys.argv[1]))
