"""The pieces that the network is built from."""

import pytest
import torch
import torch.nn.functional as F

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.models.layers.reference import rotate
from serve_app.models.speech_decoder.network.causal import (
    causal_conv,
    conv_of_padded,
    conv_weight,
    rotary,
    transposed_conv_of_padded,
    transposed_conv_weight,
    window_mask,
)
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel


def test_a_missing_tensor_is_named(checkpoint: Checkpoint) -> None:
    tensors = checkpoint.speech_tokenizer_tensors("decoder.")
    del tensors["decoder.6.conv.bias"]
    with pytest.raises(CheckpointError, match=r"decoder\.decoder\.6\.conv\.bias"):
        SpeechDecoderModel(checkpoint.spec.speech_decoder).load(tensors, torch.float32)


def test_codes_of_another_shape_are_refused_by_the_model(model: SpeechDecoderModel) -> None:
    for shape in ((1, 15, 2), (1, 16, 0), (2, 16, 1)):
        with pytest.raises(ValueError, match="codes"):
            model.decode(torch.zeros(shape, dtype=torch.int64), model.new_state(1))


def test_causal_conv_in_chunks_equals_a_padded_convolution() -> None:
    x = torch.randn(2, 30, 5, dtype=torch.float64)
    weight, bias = torch.randn(4, 5, 7, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (6, 0)), weight, bias).transpose(1, 2)
    history, parts = torch.zeros(2, 6, 5, dtype=torch.float64), []
    for chunk in x.split([1, 2, 20, 7], 1):
        y, history = causal_conv(chunk, history, conv_weight(weight), bias)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), expected)


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_interleaved_convolutions_equal_a_dilated_one(dilation: int) -> None:
    padded = torch.randn(2, 81, 5, dtype=torch.float64)
    weight = torch.randn(4, 5, 7, dtype=torch.float64)
    expected = F.conv1d(padded.transpose(1, 2), weight, dilation=dilation).transpose(1, 2)
    got = conv_of_padded(padded, conv_weight(weight), None, dilation=dilation)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("stride", "taps"), [(2, 1), (3, 2), (8, 2)])
def test_transposed_conv_equals_the_ordinary_one_cut_on_the_right(stride: int, taps: int) -> None:
    x = torch.randn(2, 11, 5, dtype=torch.float64)
    weight = torch.randn(5, 4, stride * taps, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    full = F.conv_transpose1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    rearranged = conv_weight(transposed_conv_weight(weight, stride))
    padded = torch.cat((x.new_zeros(2, taps - 1, 5), x), 1)
    got = transposed_conv_of_padded(padded, rearranged, bias.repeat(stride), stride=stride)
    torch.testing.assert_close(got, full[:, : 11 * stride])


def test_a_kernel_that_does_not_fit_its_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        transposed_conv_weight(torch.zeros(1, 1, 7), 3)


def test_the_window_counts_the_query_itself_and_never_an_empty_cache_entry() -> None:
    mask = window_mask(torch.tensor([0, 1, 9]), 3, window=3)[:, 0].int().tolist()
    assert mask[0] == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert mask[1] == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert mask[2] == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_rotary_products_depend_on_the_distance_only() -> None:
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64).unbind(0)
    products = []
    for start in (0, 57):
        cos, sin = rotary(torch.tensor([start]), 4, 8, 1e4, torch.float64)
        rotated_query, rotated_key = (
            rotate(query[None], cos[:, 3:], sin[:, 3:]),
            rotate(key[None], cos[:, :1], sin[:, :1]),
        )
        products.append((rotated_query * rotated_key).sum())
    torch.testing.assert_close(products[0], products[1])
