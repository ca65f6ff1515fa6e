"""The policy of `serve_app.scaling` as Serve calls it: on every tick of its controller.

    applications:
      - autoscaling_policy: {policy_function: "serve_app.deployments.autoscaling:InProportion"}

`policy_kwargs` may change constants of `scaling.Tuning`, such as `spare: 1`.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ray.serve.config import AutoscalingContext
from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app import metrics
from serve_app.scaling.policy import APART, FRONT, INGRESS, Decision, Memory, decide
from serve_app.scaling.snapshot import Snapshot, StageLoad
from serve_app.scaling.tuning import Tuning

# What has not changed is said once in so many seconds.
_QUIET_S: Final = 60.0

logger = logging.getLogger("ray.serve")


class InProportion:
    """Keeps all stages at one number of replicas, and the ingresses at their own.

    Never raises: what a policy raises keeps Serve from updating all applications. It then leaves
    everything as it is, and says so.
    """

    def __init__(self, **tuning: Any) -> None:
        self._tuning = Tuning(**tuning)
        self._memory = Memory()
        self._said: tuple[Mapping[str, int], str] | None = None
        self._said_s = 0.0
        self._lacked: Mapping[str, str] = {}
        self._recorder = metrics.MetricsRecorder(Counter, Histogram, Gauge)

    def __call__(
        self, contexts: Mapping[Any, AutoscalingContext]
    ) -> tuple[dict[Any, int | float], dict[Any, dict[str, Any]]]:
        try:
            snapshot = snapshot_of(contexts.values())
            decision, self._memory = decide(self._tuning, self._memory, snapshot)
            self._tell(decision, snapshot)
            self._tell_what_waits(contexts.values())
        except Exception:
            logger.exception("the scaling policy failed; replicas stay as they are")
            return {}, {}
        return {
            key: decision.targets[context.deployment_name]
            for key, context in contexts.items()
            if context.deployment_name in decision.targets
        }, {}

    def _tell(self, decision: Decision, snapshot: Snapshot) -> None:
        """One line of JSON for each change, and once a minute."""
        said = (decision.targets, decision.reason)
        if said == self._said and snapshot.at_s - self._said_s < _QUIET_S:
            return
        if self._said is None or decision.targets != self._said[0]:
            self._recorder.count(metrics.SCALING_DECISIONS, reason=decision.reason)
        self._said, self._said_s = said, snapshot.at_s
        line = {"targets": decision.targets, "reason": decision.reason, **decision.inputs}
        logger.info("scaling %s", json.dumps(line))
        logger.debug("scaling snapshot %s", snapshot.line())

    def _tell_what_waits(self, contexts: Iterable[AutoscalingContext]) -> None:
        """One line for each deployment that the cluster has too little for, when it changes, in the
        terminal as well: what is there at least is not the policy's to choose.
        """
        from serve_app.deployments.ray_serve import starts
        from serve_app.deployments.ray_serve.nodes import NODES

        application = next((context.app_name or "" for context in contexts), "")
        lacked = NODES.waiting(application)
        for name, why in lacked.items():
            if self._lacked.get(name) != why:
                line = f"{name} of {application!r} has {why}"
                logger.warning("%s", line)
                starts.print_line(line)
        self._lacked = lacked


def snapshot_of(contexts: Iterable[AutoscalingContext]) -> Snapshot:
    """What Serve knows of the deployments of an application, and what nodes have room for."""
    # Serve pickles by value what this module refers to, and there is one for all applications.
    from serve_app.deployments.ray_serve.nodes import NODES
    from serve_app.deployments.ray_serve.refusals import ELSEWHERE

    at_s = 0.0
    application = ""
    stages: dict[str, StageLoad] = {}
    for context in contexts:
        application = context.app_name or ""
        at_s = max(at_s, context.current_time or 0.0)
        stages[context.deployment_name] = StageLoad(
            ready=len(context.running_replicas),
            target=context.target_num_replicas,
            least=context.capacity_adjusted_min_replicas,
            most=context.capacity_adjusted_max_replicas,
            requests=float(context.total_num_requests or 0.0),
            reports=_reports(context),
        )
    most = {name: load.most for name, load in stages.items() if name != FRONT}
    sets = {name: count for name, count in most.items() if name not in APART}
    apart = {name: count for name, count in most.items() if name in APART}
    if INGRESS in stages:
        ELSEWHERE.note(application, stages[INGRESS].reports, at_s)
    refused = ELSEWHERE.of(application, at_s)
    return Snapshot(at_s, stages, NODES.holds(application, sets, apart), refused)


def _reports(context: AutoscalingContext) -> tuple[dict[str, float], ...]:
    """The last that each running replica has said of itself."""
    running = set(context.running_replicas)
    reports: dict[Any, dict[str, float]] = {}
    for name, by_replica in (context.raw_metrics or {}).items():
        for replica, series in by_replica.items():
            if replica in running and len(series):
                reports.setdefault(replica, {})[name] = series[-1].value
    return tuple(reports.values())
