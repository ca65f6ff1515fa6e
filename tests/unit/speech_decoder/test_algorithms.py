"""Which steps of the decoder try cuDNN's algorithms."""

from serve_app.models.speech_decoder.algorithms import Trials


def test_nothing_is_tried_unless_asked_for() -> None:
    assert not Trials().include(4096)
    assert Trials(3).include(1)


def test_small_steps_may_be_left_out() -> None:
    trials = Trials(3, from_frames=64)
    assert not trials.include(63)
    assert trials.include(64)
