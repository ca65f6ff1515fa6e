"""Which worker of `pytest -n` has which tests, and in which order: whole files, long ones first."""

from typing import Any, Final

# Each waits for a Ray cluster of its own more than it computes. They take turns on one worker,
# beside which the others compute: two at a time would wait for each other.
CLUSTERS: Final = (
    "tests/integration/deployments/test_nodes_come_and_go.py",
    "tests/integration/deployments/test_cards.py",
    "tests/integration/test_start_faults.py",
    "tests/integration/test_nodes.py",
    "tests/integration/deployments/test_ledger.py",
    "tests/integration/test_cluster.py",
)
# These compute for long, or time what they do: at first, while clusters are waited for, two workers
# have two cores.
LONG: Final = (
    "tests/integration/test_chaos.py",
    "tests/integration/test_talker.py",
    "tests/integration/kernel_cache/test_cards.py",
    "tests/integration/http/web/test_voices.py",
    "tests/integration/kernel_cache/test_kernel_cache.py",
    "tests/integration/http/web/test_page.py",
)
_TURNS: Final = {file: turn for turn, file in enumerate((*CLUSTERS, *LONG))}


def turn_of(nodeid: str) -> int:
    """The lower, the sooner a test is to begin."""
    return _TURNS.get(_file_of(nodeid), len(_TURNS))


def scheduler(config: Any, log: Any) -> Any:
    """By file, in the order of collection; the files with clusters count as one."""
    from xdist.scheduler import LoadFileScheduling

    class Turns(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = _file_of(nodeid)
            return "clusters" if file in CLUSTERS else file

    # By the number of their tests, the longest files would be the last ones.
    config.option.loadscopereorder = False
    return Turns(config, log)


def _file_of(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]
