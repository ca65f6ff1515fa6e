"""The text tokenizer of a checkpoint: Qwen2's byte-level BPE, built from the files of a release.

Gives the ids of the reference's processor. Releases hold no tokenizer.json, so the pipeline
around the merges (NFC, the Qwen2 split, byte level without a prefix space, added tokens matched
before all that) is assembled here.
"""

import json
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from serve_app.errors import CheckpointError

# Source: Qwen2's pre-tokenizer, as published with the Qwen2 and Qwen3 tokenizers.
_QWEN2_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen2_pipeline(model: models.BPE) -> Tokenizer:
    """Put Qwen2's normaliser and pre-tokenizers in front of `model`."""
    # Any: the library's stubs leave out that these properties can be set.
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


class TextTokenizer:
    """Text to ids; thread-safe."""

    def __init__(self, tokenizer: Tokenizer, control_strings: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self.control_strings = control_strings
        """The added tokens, which `encode` reads as control ids wherever they stand in a text."""

    @classmethod
    def from_dir(cls, path: Path) -> "TextTokenizer":
        """Build the tokenizer from vocab.json, merges.txt and tokenizer_config.json.

        Raises:
            CheckpointError: a file is missing or damaged, or an added token would not get the id
                it declares.
        """
        config_file = path / "tokenizer_config.json"
        added = _added_tokens(config_file)
        vocab_file, merges_file = path / "vocab.json", path / "merges.txt"
        for file in (vocab_file, merges_file):
            if not file.is_file():
                raise CheckpointError(str(file), "cannot be read: no such file")
        try:
            model = models.BPE.from_file(str(vocab_file), str(merges_file))
        except Exception as error:  # the library raises bare Exception for damaged files
            raise CheckpointError(
                str(vocab_file), f"with merges.txt is not a BPE: {error}"
            ) from error
        tokenizer = qwen2_pipeline(model)
        tokenizer.add_tokens([token for _, token in added])
        for token_id, token in added:
            found = tokenizer.token_to_id(token.content)
            if found != token_id:
                reason = (
                    f"added token {token.content!r} has id {token_id}; vocab.json makes it {found}"
                )
                raise CheckpointError(str(config_file), reason)
        return cls(tokenizer, tuple(token.content for _, token in added))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; nothing is added around them."""
        # The one call of the library that lets other threads run meanwhile.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def check_merges(path: Path) -> None:
    """Refuse a merges.txt that has lost its end: texts would be read as other tokens, and nothing
    would say so.

    Args:
        path: folder of a tokenizer that can be built.

    Raises:
        CheckpointError: a token of vocab.json is the result of no merge.
    """
    vocab_file, merges_file = path / "vocab.json", path / "merges.txt"
    vocab: dict[str, int] = json.loads(vocab_file.read_text(encoding="utf-8"))
    merges = merges_file.read_text(encoding="utf-8").split("\n")
    known = {line.replace(" ", "", 1) for line in merges}.union(control_strings(path))
    # What holds a character that stands for no byte is no part of any text, as what fills a random
    # checkpoint's vocabulary.
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    never = [t for t in vocab if len(t) > 1 and t not in known and alphabet.issuperset(t)]
    if never:
        reason = f"makes no {never[0]!r}, which is in vocab.json, nor {len(never) - 1} others"
        raise CheckpointError(str(merges_file), reason)


def control_strings(path: Path) -> tuple[str, ...]:
    """What the tokenizer of a checkpoint folder reads as control ids, without building it.

    Raises:
        CheckpointError: tokenizer_config.json is missing or damaged.
    """
    return tuple(token.content for _, token in _added_tokens(path / "tokenizer_config.json"))


def _added_tokens(file: Path) -> list[tuple[int, AddedToken]]:
    try:
        declared: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))[
            "added_tokens_decoder"
        ]
        return [
            (
                int(token_id),
                AddedToken(
                    entry["content"],
                    single_word=entry["single_word"],
                    lstrip=entry["lstrip"],
                    rstrip=entry["rstrip"],
                    normalized=entry["normalized"],
                    special=entry["special"],
                ),
            )
            for token_id, entry in sorted(declared.items(), key=lambda item: int(item[0]))
        ]
    except OSError as error:
        raise CheckpointError(str(file), f"cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            str(file), f"added_tokens_decoder is missing or damaged: {error!r}"
        ) from error
