"""How many listeners there are at a time: for Locust, which is not imported here."""

from typing import Final

SHAPES: Final = ("steady", "ramp", "spike", "burst", "step", "soak")
# A burst: everybody comes at once, stays for a while, and nobody is there before the next.
_BURST_S: Final = 10.0
_PAUSE_S: Final = 20.0
_STEPS: Final = 5
_SOAK_SHARE: Final = 0.8


def users_at(shape: str, at_s: float, users: int, total_s: float) -> int | None:
    """Listeners at `at_s` seconds from the start; None when the load is over.

    burst: all of them for 10 s out of 30. step: a fifth more in each fifth of the time. soak: 80 %
    throughout. steady: all of them. ramp: one more at a time. spike: a tenth, but all of them in
    the middle third.
    """
    if shape not in SHAPES:
        raise ValueError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
    if at_s >= total_s:
        return None
    if shape == "steady":
        return users
    if shape == "ramp":
        return max(1, round(users * at_s / total_s))
    if shape == "spike":
        is_middle = total_s / 3 <= at_s < 2 * total_s / 3
        return users if is_middle else max(1, users // 10)
    if shape == "burst":
        return users if at_s % (_BURST_S + _PAUSE_S) < _BURST_S else 0
    if shape == "step":
        return max(1, users * (1 + int(at_s * _STEPS / total_s)) // _STEPS)
    return max(1, round(_SOAK_SHARE * users))
