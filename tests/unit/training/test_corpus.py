"""The corpus on disk, its phoneme labels, its codes and the sentences made from them."""

from pathlib import Path

import numpy as np
import torch

from tests.unit.training.shapes import TEXTS, TINY
from training.batches import LENGTHS, Batches, BatchOptions
from training.codes import CodeBook, is_held_out
from training.corpus import FRAME_SAMPLES, Stream, Utterance
from training.imagined import imagine
from training.layout import ABSENT, PromptIds
from training.plan import Planned, draw
from training.text import Splitter, write_configuration


def _utterance(number: int, voice: str = "heart") -> Utterance:
    # Silence 3 steps of 25 ms, two phonemes of 4, silence 5: 16 steps, 9,600 samples, 5 frames.
    return Utterance(
        id=number,
        text=TEXTS[number % 3],
        voice=voice,
        file="audio-0.s16",
        offset=number * 9600,
        samples=9600,
        phonemes=(0, 50, 60, 0),
        steps=(3, 4, 4, 5),
        cut=0,
    )


def _book(rows: list[Utterance]) -> CodeBook:
    labels = np.concatenate([row.labels() for row in rows])
    return CodeBook(
        codes=np.random.default_rng(0).integers(0, 256, (len(labels), 16), np.uint8),
        labels=labels,
        starts=np.concatenate([[0], np.cumsum([row.frames for row in rows])]),
        ids=np.array([row.id for row in rows]),
        spoken=np.ones(len(rows), bool),
        voices=tuple(row.voice for row in rows),
        texts=tuple(row.text for row in rows),
    )


def test_labels_follow_the_teachers_durations() -> None:
    labels = _utterance(0).labels().flatten().tolist()
    assert labels[:4] == [0, 0, 0, 0]
    assert labels[4:14] == [50] * 5 + [60] * 5
    assert set(labels[14:]) == {0}


def test_a_stream_holds_whole_frames_of_each_sentence(tmp_path: Path) -> None:
    rows = [_utterance(0), _utterance(1)]
    samples = np.arange(2 * 9600, dtype="<i2")
    (tmp_path / "audio-0.s16").write_bytes(samples.tobytes())
    lines = [row.row() for row in rows] + ['{"id": 2, "te']
    (tmp_path / "manifest-0.jsonl").write_text("\n".join(lines), encoding="utf-8")
    stream = Stream.load(tmp_path, torch.device("cpu"))
    assert stream.rows == tuple(rows)
    assert stream.starts.tolist() == [0, 5, 10]
    assert torch.equal(stream.wave(1) * 32768, torch.from_numpy(samples[9600:]).float())


def test_crops_begin_at_any_20_ms_with_the_labels_of_their_place(tmp_path: Path) -> None:
    samples = np.arange(2 * 9600, dtype="<i2")
    (tmp_path / "audio-0.s16").write_bytes(samples.tobytes())
    lines = [_utterance(number).row() for number in (0, 1)]
    (tmp_path / "manifest-0.jsonl").write_text("\n".join(lines), encoding="utf-8")
    stream = Stream.load(tmp_path, torch.device("cpu"))
    wave, labels = stream.crops(64, 2, torch.Generator().manual_seed(0))
    assert wave.shape == (64, 2 * FRAME_SAMPLES)
    assert labels.shape == (64, 2, 4)
    first = (wave[:, 0] * 32768).long()
    assert torch.equal(wave * 32768, (first[:, None] + torch.arange(2 * FRAME_SAMPLES)).float())
    assert set((first % FRAME_SAMPLES).tolist()) == {0, 480, 960, 1440}
    known = stream.labels.flatten()
    for begin, row in zip(first // 480, labels, strict=True):
        assert row.flatten().tolist() == known[begin : begin + 8].tolist()


def test_kept_out_sentences_are_never_planned(tmp_path: Path) -> None:
    file = tmp_path / "sentences.tsv"
    texts = [*TEXTS, "Good  morning, to everyone!"]
    file.write_text("".join(f"made\t{t}\t{t}\tab\tcd\n" for t in texts), encoding="utf-8")
    planned = draw(file, 10, ("heart",), lambda said: [ord(c) for c in said], TEXTS[:1], seed=1)
    assert {item.text for item in planned} == set(TEXTS[1:])


def test_words_decide_what_is_held_out_whatever_else_is_drawn(tmp_path: Path) -> None:
    texts = [f"Sentence number {i}." for i in range(400)]
    found = []
    for part in (texts, texts[100:]):
        file = tmp_path / "list.tsv"
        file.write_text("".join(f"made\t{t}\t{t}\tab\tab\n" for t in part), encoding="utf-8")
        planned = draw(
            file, 400, ("heart",), lambda said: [ord(c) for c in said], [], seed=len(part)
        )
        assert len({item.id for item in planned}) == len(part)
        found.append({item.text for item in planned if is_held_out(item.id)})
    assert 2 <= len(found[1]) < 20
    assert found[1] == found[0] & set(texts[100:])


def test_an_imagined_sentence_has_the_codes_of_its_phonemes() -> None:
    rows = [_utterance(number) for number in range(4)]
    book = _book(rows)
    planned = [Planned(0, "heart", (50,), "spoken"), Planned(9, "heart", (60, 50), "not spoken")]
    made = imagine(book, rows, planned, seed=1)
    assert made.texts == ("not spoken",)
    assert not made.spoken.any()
    said = [label for label in dict.fromkeys(made.labels.flatten().tolist()) if label]
    assert said == [60, 50]
    known = {row.tobytes() for row in book.codes}
    assert all(row.tobytes() in known for row in made.codes)
    assert len(CodeBook.all_of([book, made])) == 5


def test_batches_have_one_of_few_shapes(tmp_path: Path) -> None:
    write_configuration(tmp_path, TINY, TEXTS)
    ids = PromptIds((1, 2, 3), 4, 5, 6, 300, 301, 302, (1, 2, 3, 4), (1, 2, 3), {"heart": 9})
    book = _book([_utterance(number) for number in range(12)])
    options = BatchOptions(positions=2 * LENGTHS[1], predictor_rows=32)
    splitter = Splitter(tmp_path, dropout=0.1)
    batches = Batches(book, np.arange(12), ids, splitter, options, seed=1).draw()
    for _ in range(4):
        batch = next(batches)
        assert batch.text.shape[1] in LENGTHS
        assert batch.text.numel() <= options.positions
        assert batch.chosen.shape == (32,)
        leads = batch.target.flatten()[batch.chosen]
        assert (leads == batch.next_codes[..., 0].flatten()[batch.chosen]).all()
        assert ((batch.target == 302).sum(1) == 1).all()
        assert (batch.codes[batch.text == ABSENT] == ABSENT).all()
