"""The constants of the policy, as operators are told of them."""

import re
from dataclasses import asdict
from pathlib import Path

from serve_app.scaling.tuning import Tuning

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_says_the_constants_that_ship() -> None:
    section = re.findall(r"^## Replicas\n(.*?)^## ", PAGE.read_text("utf-8"), re.M | re.S)
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", "".join(section), re.M))
    assert {"spare", "zero_after_s", "first_audio_s", "slack_s", "kv_share"} <= rows.keys()
    ships = asdict(Tuning())
    assert {name: float(value) for name, value in rows.items()} == {
        name: ships.get(name) for name in rows
    }
