"""When a thread counts as stalled: by moments alone, without a thread."""

import math

from serve_app.models.talker.progress import Progress


def test_a_thread_that_rests_is_never_stalled() -> None:
    progress = Progress(30)
    assert not progress.is_stalled(1e9)
    progress.step(10)
    progress.rest()
    assert not progress.is_stalled(1e9)


def test_the_first_step_after_a_rest_may_stall_like_any_other() -> None:
    progress = Progress(30)
    progress.rest()
    progress.wake(1000)
    assert not progress.is_stalled(1030)
    assert progress.is_stalled(1031)
    progress.step(1031)
    assert not progress.is_stalled(1061)
    assert progress.is_stalled(1062)


def test_more_to_do_does_not_excuse_a_stall() -> None:
    progress = Progress(30)
    progress.wake(0)
    progress.wake(25)
    assert progress.is_stalled(31)


def test_an_excuse_counts_while_it_lasts_and_the_limit_begins_behind_it() -> None:
    progress = Progress(30)
    progress.step(0)
    assert not progress.is_stalled(500, excused_s=math.inf)
    assert not progress.is_stalled(529, excused_s=500)
    assert progress.is_stalled(531, excused_s=500)
    assert progress.is_stalled(31, excused_s=-math.inf)
