"""One list of all sentences with their phonemes, from which a plan is drawn."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from training.sentences.amounts import Said
from training.sentences.made import made
from training.sentences.phonemes import Espeak
from training.sentences.shipped import prose, wordnet


def sentences(
    folder: Path | None, texts: Sequence[Path], count: int, seed: int
) -> Iterator[tuple[str, Said]]:
    """Yield different sentences, each with the name of its source.

    Args:
        folder: WordNet's.
        texts: files of prose, named by their stem.
        count: how many are made up.
        seed: of those; another seed makes others, for an evaluation.
    """
    seen: set[str] = set()

    def new(source: str, found: Iterable[str]) -> Iterator[tuple[str, Said]]:
        for text in found:
            if text.lower() not in seen:
                seen.add(text.lower())
                yield source, Said(text, text)

    yield from (("made", said) for said in islice(made(seed), count))
    if folder is not None:
        yield from new("wordnet", wordnet(folder))
    for file in texts:
        yield from new(file.name.split(".")[0], prose(file))


def write(found: Iterable[tuple[str, Said]], file: Path) -> int:
    """Write source, text, text as spoken, American and British phonemes; return how many."""
    espeak, count = Espeak(), 0
    with file.open("w", encoding="utf-8") as out:
        for source, said in found:
            ways = (espeak.phonemes(said.spoken, british) for british in (False, True))
            out.write("\t".join((source, said.written, said.spoken, *ways)) + "\n")
            count += 1
    return count
