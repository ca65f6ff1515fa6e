"""Kernels compiled without a GPU are those that a launch on the GPU looks for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.models.kernel_cache.variants import Variant, known, read, write

ROOT = Path(__file__).parents[3]


class NoGpu:
    """What Triton asks a driver for on the way to a launch that only compiles."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> object:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def launch(rows: int, list_file: str) -> None:
    """Launch a kernel of ours up to its compilation; print whether the cache had it."""
    import torch
    import triton
    from triton import knobs
    from triton.runtime import driver

    from serve_app.models.kernel_cache.record import recording
    from serve_app.models.layers.linear_kernels import _add_norm_kernel

    driver.set_active(NoGpu(90))  # type: ignore[arg-type]
    hits: list[bool] = []
    knobs.compilation.listener = lambda **event: hits.append(event["cache_hit"])
    x = torch.zeros(rows, 64, dtype=torch.bfloat16)
    delta = torch.zeros(2, rows, 64, dtype=torch.float32)
    with recording() as found:
        _add_norm_kernel.warmup(
            x, delta, x[0], x, rows, 1e-6, 64, 2, True,
            grid=(rows,), num_warps=4, launch_pdl=True,
        )  # fmt: skip
    write(Path(list_file), found)
    print(json.dumps({"hits": hits, "version": triton.__version__}))


def in_a_process(cache: Path, *arguments: str) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_launch_finds_what_was_compiled_for_it_beforehand(tmp_path: Path) -> None:
    noted, again = tmp_path / "noted.jsonl", tmp_path / "again.jsonl"
    launched = json.loads(in_a_process(tmp_path / "first", __file__, "3", str(noted)))
    assert launched["hits"] == [False]
    command = ("-m", "serve_app.models.kernel_cache", "fill", "--capability", "9.0", "--list")
    filled = in_a_process(tmp_path / "second", *command, str(noted))
    assert "1 compiled" in filled
    launched = json.loads(in_a_process(tmp_path / "second", __file__, "3", str(again)))
    assert launched["hits"] == [True]
    assert read(again) == read(noted)
    assert "1 there before" in in_a_process(tmp_path / "second", *command, str(noted))


def test_a_variant_that_its_kernel_has_outgrown_is_left_out(tmp_path: Path) -> None:
    module = "serve_app.models.layers.linear_kernels"
    old = Variant(module, "_add_norm_kernel", (("x", "*bf16"),), (), (), ())
    write(tmp_path / "old.jsonl", [old])
    command = ("-m", "serve_app.models.kernel_cache", "fill", "--capability", "9.0", "--list")
    assert "1 not" in in_a_process(tmp_path, *command, str(tmp_path / "old.jsonl"))


@pytest.mark.parametrize("variant", known(), ids=lambda v: v.name)
def test_the_lists_name_kernels_as_they_are(variant: Variant) -> None:
    if not variant.module.startswith("serve_app."):
        pytest.skip("a kernel of vLLM, which may be another release here")
    from serve_app.models.kernel_cache.fill import kernel_of

    assert kernel_of(variant).arg_names == [name for name, _ in variant.signature]


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[2])
