"""A stream beside the undisturbed one of the same request."""

from dataclasses import dataclass, field

import numpy as np

from load_tests.loops.client import AudioShape


@dataclass(frozen=True, slots=True)
class Comparison:
    """16-bit samples received, against those expected at the same places.

    rounded: samples that differ by no more than the decoder's rounding.
    wrong: samples that differ by more.
    first_wrong: position of the first of them; None where there is none.
    largest: the largest difference.
    """

    samples: int
    rounded: int = 0
    wrong: int = 0
    first_wrong: int | None = None
    largest: int = 0

    @property
    def is_equal(self) -> bool:
        return self.wrong == 0

    def text(self, samples_per_frame: int) -> str:
        if self.first_wrong is None:
            return "equal"
        return (
            f"{self.wrong} of {self.samples} samples differ, by up to {self.largest},"
            f" from frame {self.first_wrong // samples_per_frame} on"
        )


def compare(
    expected: bytes, got: bytes, tolerance: int, below_db: float | None = None
) -> Comparison:
    """Compare `got`, which may have ended early, with the beginning of `expected`.

    What `got` has beyond the end of `expected` is wrong, whatever it is.

    Args:
        expected: int16 samples, little-endian, of the undisturbed stream.
        got: those that a client received; half a sample at its end is left out.
        tolerance: largest difference that is rounding: of sums of floats taken in another order.
        below_db: rounding is as well, within a frame, what lies so far below the frame's samples in
            power: where sums are of bfloat16. Other codes make another frame, not a fainter error.
    """
    got_samples = np.frombuffer(got[: len(got) // 2 * 2], "<i2").astype(np.int32)
    expected_samples = np.frombuffer(expected, "<i2").astype(np.int32)
    shared = min(len(got_samples), len(expected_samples))
    difference = np.abs(got_samples[:shared] - expected_samples[:shared])
    rounded = (difference > 0) & (difference <= tolerance)
    if below_db is not None:
        rounded |= (difference > 0) & _is_faint(expected_samples[:shared], difference, below_db)
    wrong = np.flatnonzero((difference > 0) & ~rounded)
    beyond = len(got_samples) - shared
    first = int(wrong[0]) if len(wrong) else (shared if beyond else None)
    return Comparison(
        samples=len(got_samples),
        rounded=int(rounded.sum()),
        wrong=len(wrong) + beyond,
        first_wrong=first,
        largest=int(difference.max(initial=0)),
    )


def _is_faint(expected: np.ndarray, difference: np.ndarray, below_db: float) -> np.ndarray:
    """Per sample, whether what differs in its frame is faint beside the frame."""
    starts = np.arange(0, len(expected), AudioShape().samples_per_frame)
    if not len(starts):
        return np.zeros(0, bool)
    power, error = (
        np.add.reduceat(samples.astype(np.float64) ** 2, starts)
        for samples in (expected, difference)
    )
    lengths = np.diff(np.append(starts, len(expected)))
    return np.repeat(error <= power * 10 ** (-below_db / 10), lengths)


@dataclass(slots=True)
class References:
    """Undisturbed streams by the number of their request.

    What came before its reference was there, from a server that was still cold, waits.

    Attributes:
        wanted: False: nothing is ever compared, and no audio is kept for it.
    """

    tolerance: int = 1
    below_db: float | None = None
    wanted: bool = True
    _known: dict[int, bytes] = field(default_factory=dict)

    def learn(self, number: int, body: bytes) -> None:
        self._known[number] = body

    def __contains__(self, number: int) -> bool:
        return number in self._known

    def check(self, number: int, body: bytes) -> Comparison | None:
        """None where nobody knows what the stream should be."""
        expected = self._known.get(number)
        return None if expected is None else compare(expected, body, self.tolerance, self.below_db)
