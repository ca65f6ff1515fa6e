"""One frame of the code predictor, eager and fast, each as one CUDA graph. No Ray, random weights.

    python -m load_tests.stages.code_predictor --size 1.7b --batches 1 8 64 --profile 1 64

Times are medians of graph replays in ms (CUDA events). `floor` is the bytes that must move at
--bandwidth. `same` is the share of greedy codes equal to eager's; `error` the largest logit error
against float32 eager over that of eager, for one frame whose codes are given.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from load_tests.reports import circumstances, files, report
from load_tests.stages import floors
from serve_app.models.checkpoint.spec import CodePredictorSpec, TransformerSpec
from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.code_predictor.fast import FastCodePredictor, PredictorPlan
from serve_app.models.code_predictor.model import CodePredictor
from serve_app.models.cuda_graph import GraphRunner
from serve_app.models.layers.few_rows import Tiles

_LAYERS = TransformerSpec(
    hidden_size=1024, intermediate_size=3072, num_layers=5, num_heads=16, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6,
)  # fmt: skip
SPECS = {
    size: CodePredictorSpec(_LAYERS, 2048, 16, width, 3072)
    for size, width in (("0.6b", 1024), ("1.7b", 2048))
}

_TILED = PredictorPlan()
# More rows than these are tiled.
_VECTOR = PredictorPlan(vector_rows=8)
_LIBRARY = PredictorPlan(library_rows=1)
PLANS = {
    "default": None,
    "vector": _VECTOR,
    "vector large": replace(
        _VECTOR, vector=Tiles(qkv=16, output=8, gate_up=16, down=8, head=16)
    ),
    "vector small": replace(
        _VECTOR, vector=Tiles(qkv=8, output=4, gate_up=8, down=4, head=8)
    ),
    "vector 1 warp": replace(_VECTOR, attention_warps=1, sample_warps=8),
    "vector 4 warps": replace(_VECTOR, attention_warps=4, sample_warps=16),
    "vector no pdl": replace(_VECTOR, pdl=False),
    "tiled": _TILED,
    "tiled wide": replace(
        _TILED, tiled=Tiles(qkv=64, output=64, gate_up=64, down=64, head=32)
    ),
    "tiled narrow": replace(
        _TILED, tiled=Tiles(qkv=32, output=32, gate_up=32, down=32, head=16),
        splits=(4, 6),
    ),
    "tiled 3 stages": replace(_TILED, stages=3),
    "tiled no pdl": replace(_TILED, pdl=False),
    "library": _LIBRARY,
    "library no pdl": replace(_LIBRARY, pdl=False),
}  # fmt: skip


def random_weights(spec: CodePredictorSpec, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a checkpoint, float32, and the talker's codec embedding."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) * scale

    def matrix(outputs: int, inputs: int, gain: float = 1.0) -> Tensor:
        return draw(outputs, inputs, scale=gain * inputs**-0.5)

    shape, width = spec.transformer, spec.talker_hidden_size
    hidden, inner = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    tensors = {"model.norm.weight": 1 + draw(hidden, scale=0.1)}
    for layer in range(shape.num_layers):
        sizes = {
            "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        norms = {
            "input_layernorm": hidden, "post_attention_layernorm": hidden,
            "self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim,
        }  # fmt: skip
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": matrix(*size) for name, size in sizes.items()}
        tensors |= {f"{prefix}{n}.weight": 1 + draw(w, scale=0.1) for n, w in norms.items()}
    for group in range(spec.num_code_groups - 1):
        tensors[f"model.codec_embedding.{group}.weight"] = draw(spec.vocab_size, width)
        tensors[f"lm_head.{group}.weight"] = matrix(spec.vocab_size, hidden, 3.0)
    if spec.has_projection:
        tensors["small_to_mtp_projection.weight"] = matrix(hidden, width)
        tensors["small_to_mtp_projection.bias"] = draw(hidden, scale=0.1)
    return tensors, draw(spec.talker_vocab_size, width)


def random_batch(
    spec: CodePredictorSpec, rows: int, dtype: torch.dtype, device: str, temperature: float = 0.0
) -> FrameBatch:
    generator = torch.Generator(device).manual_seed(rows)
    hidden = torch.randn(rows, spec.talker_hidden_size, generator=generator, device=device)
    batch = FrameBatch.zeros(rows, spec.talker_hidden_size, dtype, torch.device(device))
    batch.hidden.copy_(hidden)
    batch.code_0.random_(spec.talker_vocab_size, generator=generator)
    batch.seed.random_(generator=generator)
    batch.temperature.fill_(temperature)
    batch.top_k.fill_(50)
    return batch


@torch.inference_mode()
def forced_logits(predictor: CodePredictor, batch: FrameBatch, codes: Tensor) -> Tensor:
    """Float32 logits [B, Q - 1, vocab] of passes that are fed the given codes [B, Q - 1]."""
    spec, shape = predictor.spec, predictor.spec.transformer
    cache = torch.empty(
        shape.num_layers, 2, len(codes), shape.num_kv_heads, spec.num_code_groups, shape.head_dim,
        device=predictor.device, dtype=predictor.dtype,
    )  # fmt: skip
    first = predictor._project(batch.hidden.to(predictor.dtype))
    x = torch.stack((first, predictor.code_tables[0][batch.code_0]), dim=1)
    start, logits = 0, []
    for group in range(1, spec.num_code_groups):
        if isinstance(predictor, FastCodePredictor):
            logits.append(predictor.logits(x, cache, start, group))
        else:
            y = predictor._forward(x, cache, start)[:, -1]
            logits.append(F.linear(y, predictor.heads[group - 1]).float())
        start += x.shape[1]
        if group < spec.num_code_groups - 1:
            x = predictor.code_tables[group][codes[:, group - 1]][:, None]
    return torch.stack(logits, dim=1)


def capture(predictor: CodePredictor, batch: FrameBatch) -> GraphRunner:
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        runner = GraphRunner(predictor.frame, batch.tensors())
        torch.cuda.current_stream().synchronize()
    return runner


def median_ms(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(5):
        call()
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def profile(predictor: FastCodePredictor, batch: FrameBatch, top: int) -> None:
    """Print the mean device time of the kernels that take most of a frame, none overlapping."""
    predictor.plans = tuple((most, replace(plan, pdl=False)) for most, plan in predictor.plans)
    runner = capture(predictor, batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        for _ in range(5):
            runner()
        torch.cuda.synchronize()
    rows = sorted(trace.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    count = sum(row.count for row in rows)
    print(f"  {count / 5:6.1f} kernels, {total / 5000:.3f} ms")
    for row in rows[:top]:
        mean = row.self_device_time_total / row.count
        print(f"  {row.count / 5:6.1f} x {mean:7.2f} us  {row.key[:90]}")
    runner.close()


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:150]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="0.6b", choices=list(SPECS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s")
    parser.add_argument("--profile", nargs="*", type=int, help="batches whose kernels to list")
    parser.add_argument("--profiled", nargs="+", default=["default"], help="of these plans")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    args = parser.parse_args(arguments)
    spec, device = SPECS[args.size], "cuda"
    tensors, codec = random_weights(spec, device)
    given = (spec, tensors, codec, torch.device(device))
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        exact = CodePredictor(*given, torch.float32)
        eager = CodePredictor(*given, torch.bfloat16)
        plans = {
            name: FastCodePredictor(*given, torch.bfloat16, PLANS[name]) for name in args.plans
        }
    facts = circumstances.environment(args.commit)
    print(f"{facts['gpus']}, {facts['versions']}, {args.size}", flush=True)
    limits = floors.Device(args.bandwidth * 1e12, floors.H200.flops_per_s)
    lines: list[list[Any]] = []
    failed: dict[str, str] = {}
    head = [
        "batch",
        "floor",
        "eager",
        *[f"{name}{c}" for name in plans for c in ("", " same", " error")],
    ]
    print(report.table_line(head) + "\n|" + " ---: |" * len(head), flush=True)
    began = time.perf_counter()
    for rows in args.batches:
        greedy, drawn = (random_batch(spec, rows, torch.bfloat16, device, t) for t in (0.0, 0.9))
        codes = eager.predict(greedy)
        truth = forced_logits(exact, greedy, codes)
        unit = (forced_logits(eager, greedy, codes) - truth).abs().max()
        replay = capture(eager, drawn)
        floor_ms = floors.predictor_frame(spec, rows).bytes_ms(limits)
        line = [rows, floor_ms, median_ms(replay, 10)]
        replay.close()
        for name, predictor in plans.items():
            if name in failed:
                line += ["-", "-", "-"]
                continue
            try:
                error = (forced_logits(predictor, greedy, codes) - truth).abs().max() / unit
                same = (predictor.predict(greedy) == codes).float().mean()
                replay = capture(predictor, drawn)
                line += [median_ms(replay, args.repeats), same.item(), error.item()]
                replay.close()
            except Exception as caught:  # the other variants are still worth their time
                failed[name] = first_line(caught)
                line += ["-", "-", "-"]
        lines.append(line)
        cells = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in line]
        print(report.table_line(cells), flush=True)
    for name, reason in failed.items():
        print(f"{name} failed: {reason}")
    print(f"measured in {time.perf_counter() - began:.0f} s")
    if args.out:
        rows_of = [dict(zip(head, line, strict=True)) for line in lines]
        content = {"facts": facts, "size": args.size, "rows": rows_of, "failed": failed}
        files.write_json(args.out, content)
    for rows in args.profile or ():
        for name in args.profiled:
            predictor = FastCodePredictor(*given, torch.bfloat16, PLANS[name])
            print(f"kernels of one frame, batch {rows}, {name}, without pdl:")
            profile(predictor, random_batch(spec, rows, torch.bfloat16, device, 0.9), 14)


if __name__ == "__main__":
    main()
