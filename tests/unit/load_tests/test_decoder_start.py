"""What a comparison of the decoder's starts asks for, and its table."""

import pytest

from load_tests.stages.decoder_start import table, trials_of
from serve_app.models.speech_decoder.algorithms import Trials


def test_a_variant_names_what_is_tried() -> None:
    assert trials_of("3") == Trials(3)
    assert trials_of("10:64") == Trials(10, 64)
    assert not trials_of("off").include(4096)
    assert trials_of("off-b") == trials_of("off")
    with pytest.raises(ValueError, match="fast"):
        trials_of("fast")


def test_the_table_has_a_column_for_each_variant() -> None:
    off = {"start_s": {"decoder graphs": 4.0}, "memory_mib": 100, "ms": {"1 x 16": 2.0}}
    tried = {
        "start_s": {"decoder trials": 3.0, "decoder graphs": 4.5},
        "memory_mib": 200,
        "ms": {"1 x 16": 1.5},
    }
    assert table({"off": off, "3": tried}).splitlines()[2:] == [
        "| decoder graphs, s | 4.00 | 4.50 |",
        "| decoder trials, s | 0.00 | 3.00 |",
        "| memory, MiB | 100 | 200 |",
        "| 1 x 16, ms | 2.00 | 1.50 |",
    ]
