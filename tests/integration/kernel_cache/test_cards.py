"""Every kernel fits every card that is supported: compiled for each, without any of them here."""

import re
from pathlib import Path

import pytest

from serve_app.models.kernel_cache.absent_gpu import SHARED_BYTES, Built, absent_gpu, resources
from serve_app.models.kernel_cache.cards import Report, check, table
from serve_app.models.kernel_cache.launches import LAUNCHES, How


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return check(tuple(SHARED_BYTES), thorough=False)


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_each_kernel_fits_the_card(reports: list[Report], capability: int) -> None:
    here = [report for report in reports if report.capability == capability]
    assert {report.launches for report in here} == set(LAUNCHES)
    assert [problem for report in here for problem in report.problems] == []
    built = [each for report in here for each in report.built]
    assert len({each.name for each in built}) == 12
    # A spilled value is a way to memory and back: some are cheap, many are a wrong tile.
    assert [each for each in built if each.local_bytes > 256] == []


def test_the_binary_says_what_a_kernel_needs(reports: list[Report]) -> None:
    assert all(each.registers >= 16 for report in reports for each in report.built)
    assert f"| 8.6 | 12 | {98304} | {101376} |" in table(reports)
    with pytest.raises(ValueError, match="ELF"):
        resources(b"not a binary")


def test_a_kernel_that_does_not_fit_is_found() -> None:
    assert Built("large", 4, 120_000, 64, 0).problem(86)
    assert Built("large", 4, 120_000, 64, 0).problem(90) is None
    assert Built("wide", 32, 0, 128, 0).problem(90)


# What Triton says of its own defaults.
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_a_card_without_overlap_refuses_kernels_that_overlap() -> None:
    """The negative: what is compiled really is for the card that was named."""
    with absent_gpu(86) as built, pytest.raises(Exception, match=r"griddepcontrol|ptxas"):
        LAUNCHES["the talker's attention"](How(pdl=True, thorough=False))
    assert built == []


def test_the_support_table_has_the_cards_that_kernels_are_compiled_for() -> None:
    page = (Path(__file__).parents[3] / "docs" / "support.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]+ \| (\d+\.\d) \| yes \| (yes|no)\b", page, re.M)
    assert sorted(capability for capability, _ in rows) == sorted(
        f"{capability / 10:.1f}" for capability in SHARED_BYTES
    )
