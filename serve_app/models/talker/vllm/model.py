"""The talker network for vLLM: a Qwen3 decoder whose inputs are sums of embedding rows.

Every position is a row of integers (text id, code of group 0, ..., code of group Q-1), each an
index into one joined table; the embedding of a position is the sum of the rows it names. The text
projection is a per-token function, so it is folded into the table when the weights are loaded.

Source: talker of QwenLM/Qwen3-TTS 12Hz; model spec sections 2, 3 and 8.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.qwen3 import Qwen3Model
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors

from serve_app.errors import CheckpointError, StageUnavailable
from serve_app.models.talker.runtime import DETERMINISTIC_KEY
from serve_app.models.talker.vllm.transformer import OwnTransformer

# Rows of text_embedding projected at a time: bounds the float32 scratch memory of a full-size load.
_PROJECTION_ROWS = 16384


class FrameEmbedding:
    """The joined table [rows, H]: text vocabulary, codes of each group in turn, one zero row, and
    a row per slot for the vector of a cloned voice.

    Args:
        tables: [rows_i, H] each; table 0 is text (already projected), table 1 + g embeds code
            group g.
        slots: requests that run at once.
    """

    def __init__(self, tables: list[Tensor], slots: int) -> None:
        self.offsets = torch.tensor([0] + [len(t) for t in tables]).cumsum(0)[:-1].tolist()
        self.zero_row = sum(len(table) for table in tables)
        self.weight = torch.cat([*tables, tables[0].new_zeros(1 + slots, tables[0].shape[1])])

    def speaker_row(self, slot: int) -> int:
        """The row that belongs to the request in `slot`; it alone names it."""
        return self.zero_row + 1 + slot

    def embed(self, ids: Tensor) -> Tensor:
        """Sum rows: int [N, 1 + Q] -> [N, H].

        The code rows are summed in float32 and rounded once, then the text row is added, as in the
        reference.
        """
        rows = self.weight[ids]
        codes = rows[:, 1:].float().sum(1).to(rows.dtype)
        return codes + rows[:, 0]


class TalkerForVllm(nn.Module):
    """vLLM's model class. Only Model Runner V2 gives the hooks it lives by, so it refuses V1."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "talker.model.codec_embedding.": "model.embed_tokens.",
            "talker.model.": "model.",
            "talker.codec_head.": "lm_head.",
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        if not vllm_config.use_v2_model_runner:
            raise NotImplementedError(
                "the Qwen3-TTS talker needs vLLM's Model Runner V2; this configuration selects V1"
            )
        config = vllm_config.model_config.hf_config.get_text_config()
        self.config = config
        self.model = Qwen3Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head")
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        self.frame_embedding: FrameEmbedding | None = None
        self._slots = vllm_config.scheduler_config.max_num_seqs
        additional: Any = vllm_config.additional_config
        self.deterministic: bool = additional.get(DETERMINISTIC_KEY, False)
        # What runs the layers in place of `model`, where it can.
        self.own_layers: OwnTransformer | None = None
        # A mailbox: `compute_logits` leaves here what `TalkerSampler`, called next, takes out.
        self.sample_hidden: Tensor | None = None

    @staticmethod
    def get_model_state_cls() -> type:
        from serve_app.models.talker.vllm.state import TalkerState

        return TalkerState

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        if self.own_layers is not None:
            # `model` cannot run any more: its weights are in the order of our kernels.
            assert inputs_embeds is not None, "the state gives embeddings, never ids"
            return self.own_layers(positions, inputs_embeds)
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        # The sampler hands these rows to the code predictor, and the runner does not pass them on.
        self.sample_hidden = hidden_states
        if self.deterministic and self.own_layers is not None:
            return self.own_layers.logits(hidden_states, cast(Tensor, self.lm_head.weight))
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the LM through vLLM, and build the joined table of the embeddings on the way."""
        kept: dict[str, Tensor] = {}

        def lm_weights() -> Iterable[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith("talker.text_projection.") or name.endswith("_embedding.weight"):
                    kept[name] = tensor
                if name.startswith("talker.code_predictor.model.codec_embedding."):
                    kept[name] = tensor
                text_side = name.startswith(
                    ("talker.text_projection.", "talker.model.text_embedding.")
                )
                ours = text_side or name.startswith("talker.code_predictor.")
                if name.startswith("talker.") and not ours:
                    yield name, tensor

        loaded = AutoWeightsLoader(self).load_weights(lm_weights(), mapper=self.hf_to_vllm_mapper)
        self.frame_embedding = self._join(kept)
        if OwnTransformer.suits(self.model):
            build = OwnTransformer.deterministic if self.deterministic else OwnTransformer
            self.own_layers = build(self.model)
        elif self.deterministic and self.lm_head.weight.is_cuda:
            raise StageUnavailable(
                "deterministic needs a GPU of compute capability 9.0 or higher, bfloat16 and a"
                " checkpoint of a released shape"
            )
        return loaded

    def _join(self, kept: dict[str, Tensor]) -> FrameEmbedding:
        like = self.lm_head.weight
        to = {"device": like.device, "dtype": like.dtype}

        def take(name: str) -> Tensor:
            if name not in kept:
                raise CheckpointError("model.safetensors", f"tensor {name} is missing")
            return kept[name].to(**to)

        first = [take(f"talker.text_projection.linear_fc1.{part}") for part in ("weight", "bias")]
        second = [take(f"talker.text_projection.linear_fc2.{part}") for part in ("weight", "bias")]
        text = take("talker.model.text_embedding.weight")
        projected = torch.cat(
            [
                F.linear(F.silu(F.linear(rows, *first)), *second)
                for rows in text.split(_PROJECTION_ROWS)
            ]
        )
        groups = self.config.num_code_groups
        names = ["talker.model.codec_embedding.weight"] + [
            f"talker.code_predictor.model.codec_embedding.{g}.weight" for g in range(groups - 1)
        ]
        return FrameEmbedding([projected] + [take(name) for name in names], self._slots)
