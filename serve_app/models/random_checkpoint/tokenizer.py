"""The text tokenizer of a random checkpoint: small, but with every token that a prompt needs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import models, pre_tokenizers, trainers

from serve_app.models.checkpoint.text_tokenizer import qwen2_pipeline
from serve_app.models.random_checkpoint.configuration import write_json

_TRAINED_TOKENS: Final = 512
_RELEASED_ASSISTANT_ID: Final = 77091
_RELEASED_FIRST_ADDED_ID: Final = 151643

# Released order; the ids are consecutive. Tokens of text mode (special: false) are those from
# tool_call to /think.
_ADDED_TOKENS: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
    "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
    "<tts_text_bos_single>", "<|audio_pad|>",
)  # fmt: skip
_NOT_SPECIAL: Final = frozenset(_ADDED_TOKENS[14:26])

_TRAINING_TEXT: Final = (
    "The quick brown fox jumps over the lazy dog, and then it speaks clearly.",
    "Speech is made of short frames; each frame lasts eighty milliseconds.",
    "你好，世界。今天的天气很好，我们一起去公园散步吧。",
    "Guten Morgen! Die Stimme klingt heute besonders freundlich und klar.",
    "Buongiorno a tutti, la voce parla lentamente e con grande chiarezza.",
    "Bom dia! A voz fala devagar, com muita clareza e um pouco de humor.",
    "Buenos días, la voz habla despacio y con mucha claridad.",
    "こんにちは、世界。今日はとても良い天気ですね。",
    "안녕하세요, 세계. 오늘은 날씨가 아주 좋습니다.",
    "Bonjour à tous, la voix parle lentement et très clairement.",
    "Доброе утро! Голос звучит сегодня особенно ясно.",
)


def write_text_tokenizer(
    folder: Path,
    *,
    full: bool,
    texts: Sequence[str] = _TRAINING_TEXT,
    num_tokens: int = _TRAINED_TOKENS,
) -> dict[str, int]:
    """Train and write the text tokenizer; return the ids of "assistant" and of the added tokens.

    `texts` is what the `num_tokens` entries (without the added tokens) are learnt from. A full-size
    one has the released number of ids and the released ids of everything a prompt's frame is made
    of: entries that no merge can produce fill the gaps.
    """
    tokenizer = qwen2_pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The prompt's slices need "assistant" and "user" to be one token each, hence the repetitions.
    tokenizer.train_from_iterator([*texts, *["assistant\nuser\n"] * max(100, len(texts))], trainer)
    tokenizer.model.save(str(folder))
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    first_added_id = len(vocab)
    if full:
        first_added_id = _RELEASED_FIRST_ADDED_ID
        vocab["assistant"], moved = _RELEASED_ASSISTANT_ID, vocab["assistant"]
        taken = set(vocab.values())
        free = [moved, *range(num_tokens, first_added_id)]
        vocab |= {f"<unused {i}>": i for i in free if i not in taken}
        vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
        write_json(folder / "vocab.json", vocab, indent=None)
    ids = {token: first_added_id + i for i, token in enumerate(_ADDED_TOKENS)}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(i): _added_token(token) for token, i in ids.items()},
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "processor_class": "Qwen3TTSProcessor",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    return ids | {"assistant": vocab["assistant"]}


def _added_token(content: str) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": content not in _NOT_SPECIAL,
    }
