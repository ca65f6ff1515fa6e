"""For how long a thread has made no progress: by moments alone, without a thread."""

import math

from serve_app.models.talker.progress import Progress


def test_a_thread_that_rests_is_never_busy() -> None:
    progress = Progress()
    assert progress.busy_s(1e9) == 0
    assert progress.ago_s(1e9) is None
    progress.step(10)
    progress.rest()
    assert progress.busy_s(1e9) == 0
    assert progress.ago_s(1010) == 1000


def test_the_first_step_after_a_rest_counts_like_any_other() -> None:
    progress = Progress()
    progress.rest()
    progress.wake(1000)
    assert progress.busy_s(1030) == 30
    progress.step(1031)
    assert progress.busy_s(1061) == 30
    assert progress.busy_s(1062) == 31


def test_more_to_do_does_not_excuse_a_stall() -> None:
    progress = Progress()
    progress.wake(0)
    progress.wake(25)
    assert progress.busy_s(31) == 31


def test_an_excuse_counts_while_it_lasts_and_time_begins_behind_it() -> None:
    progress = Progress()
    progress.step(0)
    assert progress.busy_s(500, excused_s=math.inf) == 0
    assert progress.busy_s(529, excused_s=500) == 29
    assert progress.busy_s(31, excused_s=-math.inf) == 31
