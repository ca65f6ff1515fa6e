"""The talker's attention kernels against plain float32 arithmetic over the same paged cache."""

import pytest
import torch

from serve_app.models.talker.vllm import attention_kernels

HEADS, KV_HEADS, DIM, BLOCK, EPS = 16, 8, 128, 16, 1e-6
LOW = DIM // 2


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def _ready(heads: torch.Tensor, norm: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """[N, heads, D]: normalised and rotated, rounded where the model rounds."""
    x = _rounded(heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + EPS))
    low, high = _rounded(x * norm).chunk(2, -1)
    cos, sin = rotary[:, None, :LOW], rotary[:, None, LOW:]
    return _rounded(torch.cat((low * cos - high * sin, high * cos + low * sin), -1))


@pytest.mark.parametrize(
    "lengths",
    [[(1, 1)], [(1, 70), (1, 5), (1, 130)], [(19, 19)], [(1, 400), (19, 19), (1, 64), (30, 95)]],
    ids=["first", "decode", "prefill", "mixed"],
)
def test_attention_equals_plain_arithmetic(lengths) -> None:
    """`lengths`: new positions and all positions of each request; two padding rows follow."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    news = [new for new, _ in lengths]
    owner = torch.repeat_interleave(torch.arange(len(news)), torch.tensor(news))
    positions = torch.cat([torch.arange(total - new, total) for new, total in lengths]).cuda()
    most = -(-max(total for _, total in lengths) // BLOCK)
    blocks = torch.randperm(len(lengths) * most, device="cuda", generator=generator)
    blocks = blocks.int().view(len(lengths), most)
    starts = torch.tensor([0, *torch.tensor(news).cumsum(0).tolist()], device="cuda").int()
    cache = normal(blocks.numel(), KV_HEADS, BLOCK, 2 * DIM)
    keys, values = cache.transpose(1, 2).split(DIM, -1)
    slots = blocks[owner.cuda(), positions // BLOCK].long() * BLOCK + positions % BLOCK
    padding = torch.full((2,), -1, device="cuda")
    slots = torch.cat((slots, padding))
    positions = torch.cat((positions, torch.zeros_like(padding)))
    qkv = normal(len(slots), (HEADS + 2 * KV_HEADS) * DIM)
    q_norm, k_norm = normal(DIM), normal(DIM)
    angles = torch.arange(512.0)[:, None] * 1e6 ** (-torch.arange(0.0, DIM, 2) / DIM)
    rotary = torch.cat((angles.cos(), angles.sin()), 1).bfloat16().cuda()

    rows = len(owner)
    heads = qkv[:rows].float().unflatten(1, (-1, DIM))
    turn = rotary[positions[:rows]].float()
    queries = _ready(heads[:, :HEADS], q_norm.float(), turn)
    new_keys = _ready(heads[:, HEADS:-KV_HEADS], k_norm.float(), turn)
    all_keys, all_values = keys.float(), values.float()
    where = (slots[:rows] // BLOCK, slots[:rows] % BLOCK)
    all_keys[where], all_values[where] = new_keys, heads[:, -KV_HEADS:]

    attention_kernels.store_heads(qkv, q_norm, k_norm, rotary, positions, slots, keys, values, EPS)
    torch.testing.assert_close(keys.float(), all_keys, atol=0.02, rtol=0.01)
    assert torch.equal(values.float(), all_values)
    out = attention_kernels.attend(qkv, keys, values, blocks, starts, positions, slots).float()
    assert not out[rows:].any()
    for row in range(rows):
        seen = torch.arange(int(positions[row]) + 1, device="cuda")
        at = (blocks[owner[row], seen // BLOCK].long(), seen % BLOCK)
        own_keys = all_keys[at].repeat_interleave(HEADS // KV_HEADS, 1)
        own_values = all_values[at].repeat_interleave(HEADS // KV_HEADS, 1)
        weights = (torch.einsum("hd,lhd->hl", queries[row], own_keys) * DIM**-0.5).softmax(-1)
        expected = torch.einsum("hl,lhd->hd", weights, own_values).flatten()
        torch.testing.assert_close(out[row], expected, atol=0.03, rtol=0.02)
