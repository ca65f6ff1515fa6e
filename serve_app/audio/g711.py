"""G.711, telephony's two encodings of a sample in a byte (at 8 kHz: 64 kbit/s)."""

from typing import Final

import numpy as np

# Of 14 bits, as mu-law takes them.
_BIAS: Final = 33
_CLIP: Final = 8158


def mu_law(samples: np.ndarray) -> bytes:
    """int16 [N] to N bytes of mu-law (PCMU)."""
    wide = samples.astype(np.int32) >> 2
    size = np.minimum(np.abs(wide), _CLIP) + _BIAS
    exponent = _highest_bit(size) - 5
    mantissa = (size >> (exponent + 1)) & 0x0F
    code = (exponent << 4) | mantissa
    return (code ^ np.where(wide < 0, 0x7F, 0xFF)).astype(np.uint8).tobytes()


def a_law(samples: np.ndarray) -> bytes:
    """int16 [N] to N bytes of A-law (PCMA)."""
    wide = samples.astype(np.int32) >> 3  # 13 bits
    is_negative = wide < 0
    size = np.where(is_negative, -wide - 1, wide)
    exponent = np.maximum(_highest_bit(np.maximum(size, 1)) - 4, 0)
    mantissa = (size >> np.maximum(exponent, 1)) & 0x0F
    code = (exponent << 4) | mantissa
    return (code ^ np.where(is_negative, 0x55, 0xD5)).astype(np.uint8).tobytes()


def _highest_bit(values: np.ndarray) -> np.ndarray:
    """The position of the highest bit of each of int32 [N], all of them above 0."""
    return np.frexp(values.astype(np.float64))[1] - 1
