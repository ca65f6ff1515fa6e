"""Kernels compiled without a GPU are those that a launch on the GPU looks for."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serve_app.models.kernel_cache.__main__ import main, parse, run_fill
from serve_app.models.kernel_cache.ahead import (
    fill_ahead,
    fill_beside,
    is_marked,
    marking,
    start_command,
)
from serve_app.models.kernel_cache.variants import (
    OVERLAPS,
    Variant,
    known,
    read,
    recorded_with,
    versions,
    write,
)

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


def launch(rows: int, list_file: str, capability: int = 90) -> None:
    """Launch a kernel of ours up to its compilation; print whether the cache had it."""
    import torch
    import triton
    from triton import knobs
    from triton.runtime import driver

    from serve_app.models.kernel_cache.record import recording
    from serve_app.models.layers.linear_kernels import _add_norm_kernel

    driver.set_active(NoGpu(capability))  # type: ignore[arg-type]
    overlap = {"launch_pdl": True} if capability >= OVERLAPS else {}
    hits: list[bool] = []
    knobs.compilation.listener = lambda **event: hits.append(event["cache_hit"])
    x = torch.zeros(rows, 64, dtype=torch.bfloat16)
    delta = torch.zeros(2, rows, 64, dtype=torch.float32)
    with recording() as found:
        _add_norm_kernel.warmup(
            x, delta, x[0], x, rows, 1e-6, 64, 2, bool(overlap),
            grid=(rows,), num_warps=4, **overlap,
        )  # fmt: skip
    write(Path(list_file), found)
    print(json.dumps({"hits": hits, "version": triton.__version__}))


def in_a_process(cache: Path, *arguments: str, status: int = 0) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr[-2000:]
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


def test_what_was_noted_on_hopper_is_compiled_as_an_older_card_launches_it(tmp_path: Path) -> None:
    noted, again = tmp_path / "noted.jsonl", tmp_path / "again.jsonl"
    in_a_process(tmp_path / "first", __file__, "3", str(noted))
    command = ("-m", "serve_app.models.kernel_cache", "fill", "--capability", "8.9", "--list")
    assert "1 compiled" in in_a_process(tmp_path / "second", *command, str(noted))
    launched = json.loads(in_a_process(tmp_path / "second", __file__, "3", str(again), "89"))
    assert launched["hits"] == [True]


def test_a_variant_that_its_kernel_has_outgrown_is_left_out(tmp_path: Path) -> None:
    module = "serve_app.models.layers.linear_kernels"
    old = Variant(module, "_add_norm_kernel", (("x", "*bf16"),), (), (), ())
    write(tmp_path / "old.jsonl", [old])
    command = ("-m", "serve_app.models.kernel_cache", "fill", "--capability", "9.0", "--list")
    # Nothing was compiled, which the build of an image has to notice.
    assert "1 not" in in_a_process(tmp_path, *command, str(tmp_path / "old.jsonl"), status=1)


@pytest.mark.parametrize("unknown", ["5.0", "8.3", "88"])
def test_what_nothing_compiles_for_is_refused_before_anything_is_compiled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unknown: str,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert main(["fill", "--capability", "9.0", unknown]) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        f"nothing compiles for {float(unknown):.1f}; for 8.0, 8.6, 8.7, 8.9, 9.0,"
    )
    assert not list(tmp_path.iterdir())


def test_of_the_gpus_that_are_here_one_that_nothing_compiles_for_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    write(tmp_path / "none.jsonl", [])
    for here, status in (([75], 2), ([75, 90], 0)):
        args = parse(["fill", "--list", str(tmp_path / "none.jsonl")])
        assert run_fill(args, lambda here=here: here) == status
        told = capsys.readouterr()
        assert told.err.startswith("nothing compiles for 7.5; for 8.0")
        assert ("compute capability 9.0: 0 compiled" in told.out) == (status == 0)


def test_the_lists_name_kernels_as_they_are() -> None:
    """Kernels of ours: those of vLLM may be of another release here."""
    from serve_app.models.kernel_cache.fill import kernel_of

    stale = []
    for variant in known():
        if variant.module.startswith("serve_app."):
            try:
                kernel_of(variant)
            except (LookupError, AttributeError, ImportError) as error:
                stale.append(f"{variant.module}.{variant.name}: {error!r}")
    assert not stale, "record the lists again (docs/start.md)"


def test_a_list_says_what_it_was_recorded_with(tmp_path: Path) -> None:
    listed = tmp_path / "listed.jsonl"
    write(listed, [])
    assert recorded_with(listed) == versions()
    assert read(listed) == []
    other = {**versions(), "triton": "1.0"}
    listed.write_text(json.dumps({"recorded_with": other}) + "\n")
    command = ("-m", "serve_app.models.kernel_cache", "fill", "--capability", "9.0", "--list")
    assert "recorded with triton 1.0" in in_a_process(tmp_path, *command, str(listed))


def test_who_waited_for_another_process_to_fill_the_cache_finds_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    order: list[tuple[str, bool]] = []
    inside = threading.Event()

    def fill(name: str) -> None:
        with marking(90) as wanted:
            order.append((name, wanted))
            inside.set()

    with marking(90) as wanted:
        assert wanted
        second = threading.Thread(target=fill, args=["second"])
        second.start()
        assert not inside.wait(0.2)
    second.join(60)
    assert order == [("second", False)]
    assert is_marked(90)
    # Nor is a process started to find that out.
    assert fill_beside(lambda: [90]) is None


def test_a_cache_that_could_not_be_filled_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with pytest.raises(OSError, match="disk"), marking(90):
        raise OSError("no space on disk")
    assert not is_marked(90)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(600)", "not filled within 0 s"),
        ("raise SystemExit(3)", "ended with 3"),
    ],
)
def test_a_start_goes_on_without_a_filled_cache(
    caplog: pytest.LogCaptureFixture, code: str, said: str
) -> None:
    deadline_s = 0.0 if "sleep" in code else 60.0
    start_command((sys.executable, "-c", code), deadline_s)()
    assert said in caplog.text


def test_nothing_is_filled_on_a_machine_without_a_gpu() -> None:
    fill_ahead("cpu")()


def test_a_kernel_that_is_met_after_ready_is_counted(tmp_path: Path) -> None:
    late = in_a_process(tmp_path, __file__, "late")
    assert json.loads(late) == {"before": 0, "after": 2}


def launch_late() -> None:
    """Meet a variant before `watch`, then the same and two others."""
    import torch
    from triton.runtime import driver

    from serve_app.models.late_kernels import late_kernels
    from serve_app.models.layers.linear_kernels import _add_norm_kernel

    driver.set_active(NoGpu(90))  # type: ignore[arg-type]

    def meet(width: int) -> None:
        x = torch.zeros(3, width, dtype=torch.bfloat16)
        _add_norm_kernel.warmup(x, x, x[0], x, 3, 1e-6, width, 1, False, grid=(3,), num_warps=4)

    meet(64)
    late_kernels.watch()
    late_kernels.watch()
    meet(64)
    before = late_kernels.count
    meet(128)
    meet(256)
    print(json.dumps({"before": before, "after": late_kernels.count}))


if __name__ == "__main__":
    if sys.argv[1] == "late":
        launch_late()
    else:
        launch(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
