"""The table of one frame: a row per number of streams, each time beside its floor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from load_tests.reports import report

# Below it the decoder falls behind, and the step's time says nothing about a stream.
KEPT_UP: Final = 0.95
_COLUMNS: Final = (
    ("talker", "talker"),
    ("predictor", "predictor, sampling"),
    ("decoder", "decoder share"),
    ("first_chunk", "first chunk"),
    ("host", "host"),
    ("step", "step, no decoder"),
    ("whole", "**whole step**"),
)


@dataclass(frozen=True, slots=True)
class FrameRow:
    """Times in ms for one frame of each of `batch` streams.

    context, context_whole: mean positions per stream without and with the decoder; floors use them.
    decoded_share: frames decoded per frame made, 1 where the decoder keeps up.
    compute_bound: the columns whose floor is of operations, not of bytes.
    """

    batch: int
    context: float
    context_whole: float
    talker_ms: float
    talker_floor_ms: float
    predictor_ms: float
    predictor_floor_ms: float
    decoder_ms: float
    decoder_floor_ms: float
    first_chunk_ms: float
    first_chunk_floor_ms: float
    host_ms: float
    step_ms: float
    step_floor_ms: float
    whole_ms: float
    whole_floor_ms: float
    decoded_share: float
    compute_bound: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "FrameRow":
        return cls(**data)

    def cells(self) -> list[str]:
        cells = [str(self.batch)]
        for name, _ in _COLUMNS:
            floor = getattr(self, f"{name}_floor_ms", None)
            mark = " c" if name in self.compute_bound else ""
            cell = f"{getattr(self, f'{name}_ms'):.2f}"
            cells.append(cell if floor is None else f"{cell} ({floor:.2f}{mark})")
        if self.decoded_share < KEPT_UP:
            cells[-1] += f", decodes {self.decoded_share:.0%}"
        return cells


def frame_table(rows: Sequence[FrameRow]) -> str:
    head = ["streams", *(title for _, title in _COLUMNS)]
    rule = "|" + " ---: |" * len(head)
    lines = [report.table_line(head), rule, *(report.table_line(row.cells()) for row in rows)]
    return "\n".join(lines)
