"""Time the talker's layers alone on a GPU, by the plans of `models/talker/vllm/transformer.py`.

    python -m load_tests.stages.talker_layers --size 1.7b --rows 1 8 64

Random weights of released shapes, one new position per stream behind `--context` others, one CUDA
graph per plan, no engine. Prints milliseconds, and the plan in use for that many rows.
"""

import argparse
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from load_tests.reports import circumstances, files
from serve_app.models.layers.few_rows import Tiles
from serve_app.models.talker.vllm.transformer import PLANS, OwnTransformer, TalkerPlan

# hidden, layers of the releases.
SIZES: Final = {"0.6b": (1024, 28), "1.7b": (2048, 28)}
_HEADS, _KV_HEADS, _DIM, _BLOCK = 16, 8, 128, 16
_REPLAYS: Final = 10


def random_model(hidden: int, num_layers: int, blocks: int) -> Any:
    """What `OwnTransformer` looks at of a Qwen3Model, with an empty cache."""

    def weight(rows: int, columns: int) -> Any:
        drawn = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
        return SimpleNamespace(weight=torch.nn.Parameter(drawn / columns**0.5, requires_grad=False))

    def norm(size: int) -> Any:
        ones = torch.ones(size, device="cuda", dtype=torch.bfloat16)
        return SimpleNamespace(weight=ones, variance_epsilon=1e-6)

    def layer(index: int) -> Any:
        cache = torch.randn(
            blocks, _KV_HEADS, _BLOCK, 2 * _DIM, device="cuda", dtype=torch.bfloat16
        )
        angles = torch.rand(4096, _DIM, device="cuda").to(torch.bfloat16)
        attention = SimpleNamespace(
            qkv_proj=weight((_HEADS + 2 * _KV_HEADS) * _DIM, hidden),
            o_proj=weight(hidden, _HEADS * _DIM),
            q_norm=norm(_DIM),
            k_norm=norm(_DIM),
            rotary_emb=SimpleNamespace(cos_sin_cache=angles),
            attn=SimpleNamespace(kv_cache=cache, layer_name=str(index)),
        )
        mlp = SimpleNamespace(
            gate_up_proj=weight(6 * hidden, hidden), down_proj=weight(hidden, 3 * hidden)
        )
        return SimpleNamespace(
            input_layernorm=norm(hidden),
            post_attention_layernorm=norm(hidden),
            self_attn=attention,
            mlp=mlp,
        )

    return SimpleNamespace(layers=[layer(i) for i in range(num_layers)], norm=norm(hidden))


def decode_context(rows: int, context: int, num_layers: int) -> tuple[Tensor, Any]:
    """Positions, and vLLM's metadata, of `rows` streams that each add one position."""
    per_stream = -(-(context + 1) // _BLOCK)
    blocks = torch.arange(rows * per_stream, device="cuda", dtype=torch.int32).view(rows, -1)
    starts = torch.arange(rows + 1, device="cuda", dtype=torch.int32)
    own = SimpleNamespace(block_table=blocks, query_start_loc=starts)
    slots = blocks[:, context // _BLOCK].long() * _BLOCK + context % _BLOCK
    names = [str(i) for i in range(num_layers)]
    whole = SimpleNamespace(
        attn_metadata=dict.fromkeys(names, own), slot_mapping=dict.fromkeys(names, slots)
    )
    return torch.full((rows,), context, device="cuda"), whole


def milliseconds(layers: OwnTransformer, plan: TalkerPlan, rows: int, context: int) -> float:
    positions, whole = decode_context(rows, context, len(layers.layers))
    x = torch.randn(rows, layers.layers[0].qkv.shape[1], device="cuda").to(torch.bfloat16)
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(2):
            layers.run(plan, positions, x, whole)
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        layers.run(plan, positions, x, whole)
        graph.capture_end()
        graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        graph.reset()
        return start.elapsed_time(end) / _REPLAYS


def candidates(rows: int) -> list[TalkerPlan]:
    """Plans worth trying for so many rows."""
    plans = [TalkerPlan("library"), TalkerPlan("library", pdl=False)]
    if rows <= 4:
        tiles = ((16, 4, 16, 4), (8, 4, 8, 4), (16, 4, 16, 2), (16, 8, 16, 4), (8, 2, 16, 2))
        plans += [TalkerPlan("vector", Tiles(*each)) for each in tiles]
    if 1 < rows <= 128:
        wide, narrow = ((32, 64, 32, 64), (8, 12)), ((32, 32, 32, 32), (4, 6))
        others = (
            ((32, 64, 64, 64), (8, 6)),
            ((32, 32, 64, 32), (2, 3)),
            ((64, 64, 64, 64), (8, 6)),
        )
        plans += [
            TalkerPlan("tiled", Tiles(*tiles), splits, pdl=pdl)
            for (tiles, splits), pdl in product((wide, narrow, *others), (True, False))
        ]
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="1.7b", choices=list(SIZES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 16, 32, 64, 96, 128, 256])
    parser.add_argument("--context", type=int, default=127, help="positions before the new one")
    parser.add_argument("--best", type=int, default=4, help="candidates to print")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    args = parser.parse_args()
    hidden, num_layers = SIZES[args.size]
    blocks = max(args.rows) * -(-(args.context + 1) // _BLOCK)
    layers = OwnTransformer(random_model(hidden, num_layers, blocks))
    found = []
    for rows in args.rows:
        used = next(plan for most, plan in PLANS if rows <= most)
        times = {
            plan: milliseconds(layers, plan, rows, args.context)
            for plan in dict.fromkeys((used, *candidates(rows)))
        }
        print(f"{rows} rows: {times[used]:.3f} ms in use")
        for plan in sorted(times, key=lambda plan: times[plan])[: args.best]:
            print(f"  {times[plan]:.3f} {plan}", flush=True)
        found += [{"rows": rows, "plan": str(plan), "ms": ms} for plan, ms in times.items()]
    if args.out:
        facts = circumstances.environment(args.commit)
        files.write_json(args.out, {"facts": facts, "size": args.size, "plans": found})


if __name__ == "__main__":
    main()
