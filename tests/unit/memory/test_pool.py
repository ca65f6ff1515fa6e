"""The talker's memory by default: what longer texts may take has no say in it."""

from serve_app.config import TalkerConfig
from serve_app.models.checkpoint.spec import TransformerSpec
from serve_app.models.memory.pool import kv_cache_bytes

SHAPE = TransformerSpec(2048, 6144, 28, 16, 8, 128, 1e-6, 1e6)
PER_POSITION = 2 * 28 * 8 * 128 * 2


def positions(**settings: object) -> float:
    config = TalkerConfig.model_validate(settings)
    return kv_cache_bytes(config, SHAPE, itemsize=2) / PER_POSITION


def test_the_pool_goes_by_streams_and_their_typical_length() -> None:
    assert positions(max_num_seqs=64) == 64 * 1024
    assert positions(max_num_seqs=256) == 256 * 1024
    assert positions(max_num_seqs=64, max_model_len=32768) == 64 * 1024
    assert positions(max_num_seqs=64, max_model_len=512) == 64 * 512


def test_one_request_of_full_length_always_fits_beside_the_block_that_vllm_keeps() -> None:
    assert positions(max_num_seqs=1, max_model_len=8000, block_size=16) == 8016
    assert positions(max_num_seqs=1, max_model_len=8001, block_size=16) == 8032


def test_what_is_configured_counts() -> None:
    config = TalkerConfig(kv_cache_bytes=12345)
    assert kv_cache_bytes(config, SHAPE, itemsize=2) == 12345
