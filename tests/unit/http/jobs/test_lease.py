"""One owner per job, whoever looks and whenever."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.http.jobs.lease import Leases


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_one_of_many_gets_a_job(tmp_path):
    servers = [Leases(f"server {number}", 10.0) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda leases: leases.claim(tmp_path), servers))
    assert sum(lease is not None for lease in found) == 1


def test_a_lease_that_is_renewed_is_never_taken(tmp_path, clock):
    owner = Leases("a", 10.0, clock).claim(tmp_path)
    other = Leases("b", 10.0, clock)
    for _ in range(20):
        clock.now_s += 9.0
        assert owner.renew()
        assert other.claim(tmp_path) is None


def test_a_dead_owner_is_followed_and_finds_out(tmp_path, clock):
    owner = Leases("a", 10.0, clock).claim(tmp_path)
    other = Leases("b", 10.0, clock)
    assert other.claim(tmp_path) is None
    clock.now_s = 9.9
    assert other.claim(tmp_path) is None
    clock.now_s = 10.0
    follower = other.claim(tmp_path)
    assert follower is not None
    assert follower.is_held
    assert not owner.is_held
    assert not owner.renew()
    owner.release()
    assert Leases("c", 10.0, clock).claim(tmp_path) is None


def test_a_released_lease_can_be_taken_at_once(tmp_path):
    owner = Leases("a", 10.0).claim(tmp_path)
    owner.release()
    assert Leases("b", 10.0).claim(tmp_path) is not None


def test_a_job_that_is_gone_cannot_be_claimed(tmp_path):
    with pytest.raises(FileNotFoundError):
        Leases("a", 10.0).claim(tmp_path / "gone")


def test_a_server_that_died_between_creating_and_writing_is_followed(tmp_path, clock):
    (tmp_path / "lease.3").touch()
    other = Leases("b", 1.0, clock)
    assert other.claim(tmp_path) is None
    clock.now_s = 1.0
    assert other.claim(tmp_path) is not None
    assert (tmp_path / "lease.4").exists()


def test_nothing_is_kept_of_jobs_that_are_gone(tmp_path, clock):
    folders = [tmp_path / name for name in ("a", "b")]
    other = Leases("b", 10.0, clock)
    for folder in folders:
        folder.mkdir()
        Leases("a", 10.0, clock).claim(folder)
        assert other.claim(folder) is None
    clock.now_s += 5.0
    other.forget_others({folders[0]})
    clock.now_s += 5.0
    assert other.claim(folders[0]) is not None
    assert other.claim(folders[1]) is None  # seen for the first time again
