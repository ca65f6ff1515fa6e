"""Floors, against figures worked out by hand from the released shapes."""

import pytest

from load_tests.stages import floors
from load_tests.stages.floors import H200, Work
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.random_checkpoint.write import write_configuration


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("released")
    write_configuration(folder, size="1.7b", variant="custom_voice")
    return read_spec(folder)


def test_a_talker_step_reads_its_weights_once_and_each_streams_keys_and_values(
    released: ModelSpec,
) -> None:
    # A layer: q 2048x2048, k and v 1024x2048, o 2048x2048, three of 6144x2048, four norms.
    layer = 2048 * (2048 + 2 * 1024 + 2048 + 3 * 6144) + 2 * 2048 + 2 * 128
    assert 28 * layer + 2048 == 1_409_410_048  # as counted in the released file
    head = 3072 * 2048
    position = 2 * 28 * 8 * 128 * 2
    alone = floors.talker_step(released.talker, 1, 0)
    assert alone.num_bytes == 2 * (1_409_410_048 + head)
    assert alone.num_flops == 2 * (28 * (layer - 2 * 2048 - 2 * 128) + head)
    many = floors.talker_step(released.talker, 64, 500)
    assert many.num_bytes - alone.num_bytes == 64 * 500 * position
    attention = 4 * 500 * 16 * 128 * 28
    assert many.num_flops == 64 * (alone.num_flops + attention)


def test_a_predictor_frame_reads_its_layers_and_one_head_in_each_of_15_passes(
    released: ModelSpec,
) -> None:
    layers, head, projection = 78_655_744, 2048 * 1024, 2048 * 1024 + 1024
    work = floors.predictor_frame(released.code_predictor, 1)
    assert work.num_bytes == 2 * (15 * (layers + head) + projection)
    matrices = layers - 5 * (2 * 1024 + 2 * 128) - 1024
    assert work.num_flops == 2 * (16 * matrices + 15 * head + projection)
    assert floors.predictor_frame(released.code_predictor, 64).num_bytes == work.num_bytes
    assert work.bytes_ms(H200) == pytest.approx(0.564, abs=5e-4)


def test_a_decoder_chunk_is_weights_once_and_five_gigaflop_per_frame(released: ModelSpec) -> None:
    spec = released.speech_decoder
    one, chunk = floors.decoder_chunk(spec, 1, 1), floors.decoder_chunk(spec, 64, 12)
    assert one.num_flops == pytest.approx(4.96e9, rel=1e-3)
    assert chunk.num_flops == pytest.approx(64 * 12 * one.num_flops)
    # All parameters of the decoder but codebooks and their projections, norms, biases and Snakes.
    weights = 114_323_137 - 8_945_664
    assert one.num_bytes == pytest.approx(2 * weights, rel=0.02)
    row = 2 * 8 * 16 * 64 * 2
    assert chunk.num_bytes - one.num_bytes == (
        (64 * (72 + 12) - (72 + 1)) * row + (64 * 12 - 1) * 1920 * 2
    )
    assert chunk.is_compute_bound(H200)


@pytest.mark.parametrize(("streams", "expected_ms"), [(1, 1.25), (64, 2.09), (256, 4.65)])
def test_the_floors_of_a_step_are_those_of_the_model_spec(
    released: ModelSpec, streams: int, expected_ms: float
) -> None:
    work = floors.talker_step(released.talker, streams, 500)
    work += floors.predictor_frame(released.code_predictor, streams)
    # The model's description counts the projection in each pass: 0.015 ms.
    assert work.bytes_ms(H200) == pytest.approx(expected_ms, abs=0.02)


def test_the_floor_is_the_larger_of_bytes_and_operations() -> None:
    device = floors.Device(bytes_per_s=1e12, flops_per_s=1e14)
    assert Work(2e9, 1e11).ms(device) == pytest.approx(2.0)
    assert Work(1e9, 3e11).ms(device) == pytest.approx(3.0)
    assert (Work(1e9, 3e11) * 0.5 + Work(4e9, 0)).ms(device) == pytest.approx(4.5)
