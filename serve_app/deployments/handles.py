"""How the stages' deployments are called."""

from ray.serve.handle import DeploymentHandle


def streaming(handle: DeploymentHandle) -> DeploymentHandle:
    """`handle` for methods that yield, with plain pickle for what they take and yield.

    Serve's default looks at every class and function from Python, which takes as long as the rest
    of pickling a chunk; what passes between stages is importable on both sides.
    """
    return handle.options(
        stream=True, request_serialization="pickle", response_serialization="pickle"
    )
