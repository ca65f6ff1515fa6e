"""Who may import whom: the picture in docs/architecture.md, executed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "serve_app"
HEAVY = ("torch", "vllm", "transformers")
HTTP = ("fastapi", "starlette", "uvicorn")
STAGES = ("talker", "code_predictor", "speech_decoder", "fused")
# The HTTP server without Ray, and what puts it on Ray.
HTTP_SERVER = (
    "api",
    "audio_response",
    "audio_writer",
    "catalog",
    "error_response",
    "names",
    "request_checks",
    "speak",
    "speech_body",
    "speech_endpoint",
    "speech_request",
    "status",
    "warm_up",
)
ON_RAY = ("ingress", "remote")

# What a module must not import anywhere, not even inside a function.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "types": (*HEAVY, *HTTP, "ray", "pydantic", "serve_app"),
    "errors": (*HEAVY, *HTTP, "ray", "pydantic", "serve_app"),
    "protocols": (*HEAVY, *HTTP, "ray", "pydantic", "serve_app.models", "serve_app.deployments"),
    "config": (*HEAVY, *HTTP, "ray", "serve_app"),
    "audio": (*HEAVY, *HTTP, "ray", "serve_app.models", "serve_app.deployments"),
    "metrics": (*HEAVY, *HTTP, "ray", "serve_app.models", "serve_app.deployments"),
    "fakes": (*HEAVY, *HTTP, "ray", "serve_app.models", "serve_app.deployments"),
    "pipeline": (*HEAVY, *HTTP, "ray", "serve_app.models", "serve_app.deployments"),
    "chunking": (*HEAVY, *HTTP, "ray", "pydantic", "serve_app.models", "serve_app.deployments"),
    "models.speech_process": HEAVY,
    "models.decoder_jobs": HEAVY,
    "models.decoder_queue": HEAVY,
    "models.releases": HEAVY,
    "deployments.handles": (*HEAVY, *HTTP, "serve_app.models", "serve_app.deployments"),
    "serve_config": (*HEAVY, *HTTP, "serve_app.models", "serve_app.deployments"),
    "models": ("ray", *HTTP, "serve_app.deployments", "serve_app.app"),
    **{
        f"deployments.{module}": (
            *HEAVY,
            "serve_app.models",
            *(f"serve_app.deployments.{stage}" for stage in STAGES),
        )
        for module in ON_RAY
    },
    **{
        f"deployments.{module}": (
            *HEAVY,
            "ray",
            "serve_app.models",
            *(f"serve_app.deployments.{other}" for other in (*ON_RAY, *STAGES)),
        )
        for module in HTTP_SERVER
    },
    **{
        f"deployments.{stage}": (
            *HTTP,
            "serve_app.app",
            *(f"serve_app.deployments.{other}" for other in (*ON_RAY, *HTTP_SERVER)),
            *(f"serve_app.deployments.{other}" for other in STAGES if other != stage),
        )
        for stage in STAGES
    },
}

# What may be imported only on the replica, inside a function: driver and ingress have neither
# torch nor a GPU.
LATE = (*HEAVY, "serve_app.models")
LIGHT_MODULES = ("app", "__main__", "deployments")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def imports(path: Path, *, late: bool) -> Iterator[str]:
    """Names that `path` imports at its top level, and with `late` also inside functions."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from package import name`: the name may be a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize(
    ("name", "path"), [pytest.param(*m, id=m[0] or "serve_app") for m in modules()]
)
def test_a_module_imports_only_what_its_layer_may(name: str, path: Path) -> None:
    forbidden = [
        prefix for layer, names in FORBIDDEN.items() if within(name, layer) for prefix in names
    ]
    own_layer = next((layer for layer in FORBIDDEN if within(name, layer)), name)
    found = {
        imported
        for imported in imports(path, late=True)
        if any(within(imported, prefix) for prefix in forbidden)
        and not within(imported, f"serve_app.{own_layer}")
        # The bottom layer: values, errors and seams know each other.
        and not (name in ("types", "errors", "protocols") and within(imported, "serve_app.types"))
    }
    assert not found, f"serve_app.{name} imports {sorted(found)}"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param(*module, id=module[0])
        for module in modules()
        if any(within(module[0], light) for light in LIGHT_MODULES)
    ],
)
def test_driver_and_ingress_import_models_only_inside_functions(name: str, path: Path) -> None:
    found = {i for i in imports(path, late=False) if any(within(i, prefix) for prefix in LATE)}
    assert not found, f"serve_app.{name} imports {sorted(found)} when it is imported"


def test_importing_the_application_loads_no_framework() -> None:
    stages = "".join(f"import serve_app.deployments.{stage}; " for stage in ("ingress", *STAGES))
    # What a replica of `fused` needs besides: its child process has the frameworks.
    stages += "import serve_app.models.speech_process, serve_app.models.releases; "
    show = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import serve_app.app; {stages}{show}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_every_deployment_module_has_a_rule() -> None:
    known = {*STAGES, *HTTP_SERVER, *ON_RAY, "handles", "weights", "__init__"}
    assert {path.stem for path in (PACKAGE / "deployments").glob("*.py")} == known


def test_the_http_server_works_without_ray() -> None:
    show = "import sys; print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import serve_app.deployments.api; {show}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_versions_are_stated_once() -> None:
    import tomllib

    import serve_app

    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == serve_app.__version__
