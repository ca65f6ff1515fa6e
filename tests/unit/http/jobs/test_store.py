"""Jobs on disk: one that cannot be read hides no other."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve_app.http.jobs.store import NoSuchJob, Progress, Spec, Store, new_id
from serve_app.text.script import Unit


def stored(store: Store) -> str:
    job_id = new_id()
    spec = Spec(job_id, 1, {"voice": "vivian"}, "m", "wav", "audio/wav", 6, 1)
    store.create(spec, [Unit("Hello.")])
    return job_id


def test_a_job_of_a_newer_server_is_read_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plain, newer, broken, odd = (stored(store) for _ in range(4))
    for name in ("spec.json", "status.json"):
        file = tmp_path / newer / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "invented": 1}))
    (tmp_path / broken / "spec.json").write_text('{"id":')
    (tmp_path / odd / "status.json").write_text("[]")
    assert {record.spec.id for record in store.records()} == {plain, newer}
    with pytest.raises(NoSuchJob):
        store.record(broken)


def test_what_a_killed_server_left_of_a_file_goes_after_a_while(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = tmp_path / stored(store)
    old, young = folder / ".result.aaaaaaaaaaaa", folder / ".result.bbbbbbbbbbbb"
    for draft in (old, young):
        draft.write_bytes(b"half")
    os.utime(old, (time.time() - 7200.0,) * 2)
    store.clean(1e9, 1e9)
    assert not old.exists()
    assert young.exists()
    assert (folder / "spec.json").exists()


def test_units_that_are_gone_take_no_room(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job_id = stored(store)
    store.put_unit(job_id, 0, np.zeros(500, np.int16))
    store.result(job_id).write_bytes(b"a tenth of it" * 10)
    made = Progress("completed", 1, 6, 500, 1000 + 130, updated_at=time.time() - 60)
    store.save(job_id, made)
    store.clean(1e9, 120)
    assert store.record(job_id).progress == made
    store.clean(1e9, 30)
    assert not (tmp_path / job_id / "units").exists()
    # Nothing has happened that its client would keep it longer for.
    assert store.record(job_id).progress == replace(made, num_bytes=130)


def test_other_users_of_the_machine_see_no_jobs(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache" / "jobs")
    stored(store)
    assert store.root.stat().st_mode & 0o077 == 0
