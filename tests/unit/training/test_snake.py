"""The activation's kernel equals the reference's operations, under Triton's interpreter.

In a process of its own, since Triton reads that setting when it is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_values_and_gradients_equal_the_references() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def main() -> None:
    import torch

    from training.reference import load_reference
    from training.snake import compare

    load_reference()
    from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import SnakeBeta

    torch.manual_seed(0)
    module = SnakeBeta(5)
    torch.nn.init.normal_(module.alpha, 0, 0.3)
    torch.nn.init.normal_(module.beta, 0, 0.3)
    compare(module, torch.device("cpu"))


if __name__ == "__main__":
    main()
