"""Who may import whom: the table in docs/architecture.md, executed by folder.

A rule names a folder or a file of `serve_app/` and holds for all that is in it, so that a new file
is under the rules of the folder it is put into and no list has to be kept.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "serve_app"
MODULES_OF_A_FOLDER = 12
HEAVY = ("torch", "triton", "vllm", "transformers", "safetensors", "tokenizers")
WEB = ("fastapi", "starlette", "uvicorn")
OUTER = ("ray", *WEB)
# The bottom, which everything may import.
BOTTOM = (
    *("types", "errors", "config", "protocols", "chunking", "pipeline"),
    *("resumption", "metrics", "load"),
)
STAGES = ("models.talker", "models.code_predictor", "models.speech_decoder", "models.fused")
DEPLOYMENTS = ("talker", "code_predictor", "speech_decoder", "fused", "voice_encoder")
# Files of `deployments` that a stage's deployment may use.
SHARED = (
    "deployments.calls",
    "deployments.ray_serve.replica",
    "deployments.ray_serve.starts",
    "deployments.predictor_session",
    "deployments.recorded",
)
FLAT = (
    "models.device",
    "models.cuda_graph",
    "models.event_loops",
    "models.late_kernels",
    "models.process_end",
    "models.sampling",
    "models.sampling_kernel",
    "models.rehearsal",
    "models.start_times",
    "models.step_times",
)


def ours(*names: str) -> tuple[str, ...]:
    return tuple(f"serve_app.{name}" for name in names)


@dataclass(frozen=True)
class Rule:
    """What the modules under `place` may import.

    Attributes:
        place: module or package below `serve_app`; the longest one that matches counts.
        own: our modules, besides those under `place` itself.
        never: packages of others that are out of bounds.
    """

    place: str
    own: tuple[str, ...] = ()
    never: tuple[str, ...] = field(default=(*HEAVY, *OUTER))


_CHECKED = ("launch.haproxy", "launch.ports", "scaling.room")
_OF_POLICY = ("nodes", "refusals", "starts")
_STAGE = (*BOTTOM, "models.checkpoint", "models.layers", *FLAT)
_FIRST_AUDIO = "models.speech_decoder.first_audio"
_CONTRACT = "models.code_predictor.channel.contract"

# What the voice library may not have; safetensors it has, which needs numpy only.
_NO_TENSORS = (*(name for name in HEAVY if name != "safetensors"), *OUTER)

RULES = (
    Rule("types", never=(*HEAVY, *OUTER, "pydantic")),
    Rule("errors", never=(*HEAVY, *OUTER, "pydantic")),
    Rule("config"),
    *(Rule(name, BOTTOM) for name in BOTTOM[3:]),
    Rule("load.routing", BOTTOM, (*HEAVY, *WEB)),
    Rule("fakes", BOTTOM),
    Rule("scaling"),
    Rule("audio", BOTTOM),
    Rule("text", BOTTOM),
    Rule("cli", never=(*HEAVY, *OUTER, "numpy", "pydantic")),
    Rule("keys", BOTTOM),
    Rule("check", (*BOTTOM, "keys", *_CHECKED, "models.checkpoint")),
    Rule("storage", ("errors",)),
    Rule("voices", (*BOTTOM, "audio", "storage"), _NO_TENSORS),
    Rule("http", (*BOTTOM, "audio", "text", "keys", "storage", "voices"), (*HEAVY, "ray")),
    Rule("models", (*BOTTOM, *FLAT), OUTER),
    Rule("models.process_end"),
    Rule("models.start_times"),
    Rule("models.step_times", BOTTOM),
    Rule("models.sampling_kernel", (*BOTTOM, *FLAT, "models.layers"), (*OUTER, "vllm")),
    Rule("models.checkpoint", (*BOTTOM, "models.random_checkpoint"), (*OUTER, "vllm")),
    Rule("models.random_checkpoint", (*BOTTOM, "models.checkpoint"), (*OUTER, "vllm")),
    Rule("models.memory", (*BOTTOM, "models.checkpoint")),
    Rule("models.memory.parts", (*BOTTOM, "models.checkpoint", "models.random_checkpoint")),
    Rule("models.rehearsal", (*BOTTOM, "models.checkpoint"), (*OUTER, "vllm")),
    Rule("models.kernel_cache", (*_STAGE, *STAGES, "models.split"), (*OUTER, "vllm")),
    Rule("models.split", (*_STAGE, *STAGES, "models.kernel_cache.ahead"), (*OUTER, "vllm")),
    Rule("models.layers", (*BOTTOM, *FLAT, "models.checkpoint"), (*OUTER, "vllm")),
    Rule("models.code_predictor", _STAGE, (*OUTER, "vllm")),
    Rule("models.speech_decoder", (*_STAGE, "models.memory.decoder_steps"), (*OUTER, "vllm")),
    Rule("models.voice_encoder", _STAGE, (*OUTER, "vllm")),
    Rule("models.speech_decoder.queue", (*BOTTOM, "models.speech_decoder.jobs")),
    Rule("models.speech_decoder.jobs", (*BOTTOM, "models.event_loops")),
    Rule("models.talker", (*_STAGE, "models.memory", _CONTRACT, _FIRST_AUDIO), OUTER),
    Rule("models.fused", (*_STAGE, *STAGES, "models.kernel_cache.ahead"), (*OUTER, "vllm")),
    Rule(
        "models.fused.process",
        (
            *BOTTOM,
            "models.event_loops",
            "models.process_end",
            "models.start_times",
            "models.fused",
            "models.checkpoint.files",
            "models.checkpoint.reading",
            "models.checkpoint.text_tokenizer",
            "models.talker.prompt",
        ),
    ),
    Rule(
        "models.fused.standby",
        (*BOTTOM, "models.fused", "models.kernel_cache.ahead"),
        (*OUTER, "vllm"),
    ),
    *(
        Rule(f"deployments.{stage}", (*BOTTOM, "scaling", "models", *SHARED), WEB)
        for stage in DEPLOYMENTS
    ),
    Rule("deployments.ray_serve.refusals", (*BOTTOM, "scaling")),
    Rule("deployments.ray_serve.nodes", ("scaling",), (*HEAVY, *WEB)),
    Rule(
        "deployments.autoscaling",
        (*BOTTOM, "scaling", *(f"deployments.ray_serve.{n}" for n in _OF_POLICY)),
        (*HEAVY, *WEB),
    ),
    Rule("deployments.predictor_session", BOTTOM),
    Rule("deployments.limits", BOTTOM),
    Rule("deployments.ray_serve.colocation", (*BOTTOM, "scaling.room")),
    Rule(
        "deployments.ray_serve.gpu_memory",
        (*BOTTOM, "models.memory", "models.checkpoint.reading"),
        (*HEAVY, *WEB),
    ),
    Rule("deployments", (*BOTTOM, "http", "audio"), HEAVY),
    Rule("app", ("",), ("torch", "vllm", *WEB)),
    Rule("serve_config", (*BOTTOM, "scaling.tuning", "launch.several"), (*HEAVY, *WEB)),
    Rule("launch.several", BOTTOM),
    Rule("launch", (*BOTTOM, "serve_config", "storage", "models.fused.standby"), (*HEAVY, *WEB)),
    Rule("__main__", ("",), (*HEAVY, *WEB)),
)

# What may be imported only on the replica, inside a function: driver and ingress have neither
# torch nor a GPU.
LATE = (*HEAVY, "serve_app.models")
LIGHT = ("app", "__main__", "deployments")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def within(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def imports(source: str, *, late: bool) -> Iterator[str]:
    """Names that `source` imports at its top level, and with `late` also inside functions."""
    pending: list[ast.AST] = [ast.parse(source)]
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


def rule_of(name: str) -> Rule | None:
    found = [rule for rule in RULES if within(name, rule.place)]
    return max(found, key=lambda rule: len(rule.place), default=None)


def broken_by(name: str, source: str) -> list[str]:
    """Imports of the module `name` (below `serve_app`) that its rule does not allow."""
    rule = rule_of(name)
    if rule is None:
        return []
    allowed = [*ours(*rule.own), f"serve_app.{rule.place}"] if rule.place else []

    def forbidden(imported: str) -> bool:
        if within(imported, "serve_app"):
            own = imported != "serve_app.__version__"
            return own and not any(within(imported, place.rstrip(".")) for place in allowed)
        return any(within(imported, package) for package in rule.never)

    found = set(filter(forbidden, imports(source, late=True)))
    if not within(name, "models.talker.vllm"):
        found |= {i for i in imports(source, late=True) if within(i, "vllm")}
    return sorted(found)


@pytest.mark.parametrize(
    ("name", "path"), [pytest.param(*m, id=m[0] or "serve_app") for m in modules()]
)
def test_a_module_imports_only_what_its_folder_may(name: str, path: Path) -> None:
    found = broken_by(name, path.read_text(encoding="utf-8"))
    assert not found, f"serve_app.{name} imports {found}"


def test_every_module_is_under_a_rule() -> None:
    assert [name for name, _ in modules() if name and rule_of(name) is None] == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("types", "from serve_app.config import AppConfig"),
        ("pipeline", "import torch"),
        ("cli.new", "from serve_app.config import AppConfig"),
        ("http.speech.new", "from serve_app.models.device import Placement"),
        ("http.new", "def f():\n    import ray"),
        ("voices.new", "import torch"),
        ("voices.new", "from serve_app.http.names import VOICE_ALIASES"),
        ("audio.mp3", "from serve_app.http.app import build_api"),
        ("models.new", "import fastapi"),
        ("models.code_predictor.new", "from serve_app.models.talker.prompt import build_prompt"),
        ("models.speech_decoder.new", "import vllm.config"),
        ("models.talker.prompt", "from vllm import SamplingParams"),
        ("models.talker.engine_thread", "def f():\n    from vllm import SamplingParams"),
        ("models.talker.new", "from serve_app.models.code_predictor.model import CodePredictor"),
        ("models.fused.process", "import torch"),
        ("deployments.talker", "from serve_app.deployments.speech_decoder import SpeechDecoder"),
        ("deployments.talker", "from serve_app.http.app import build_api"),
        ("deployments.ingress", "import torch"),
    ],
)
def test_a_rule_can_be_broken(place: str, line: str) -> None:
    assert broken_by(place, line)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param(*module, id=module[0])
        for module in modules()
        if any(within(module[0], light) for light in LIGHT)
    ],
)
def test_driver_and_ingress_import_models_only_inside_functions(name: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    found = {i for i in imports(source, late=False) if any(within(i, prefix) for prefix in LATE)}
    assert not found, f"serve_app.{name} imports {sorted(found)} when it is imported"


# A user's variables, those of a program of its own, and one of Serve's.
READERS = ("config", "cli.options", "launch.haproxy")


def reads_environment(source: str) -> bool:
    """Whether a variable of the environment is looked at, and not only set or handed on."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get"):
            return True
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Load)
            and ast.unparse(node.value) == "os.environ"
        ):
            return True
    return False


def test_the_environment_is_read_in_one_place() -> None:
    found = {name for name, path in modules() if reads_environment(path.read_text("utf-8"))}
    assert found == set(READERS)
    assert not reads_environment("os.environ['A'] = '1'; run(env={**os.environ})")


def test_no_folder_has_more_modules_than_a_reader_takes_in() -> None:
    folders = {path.parent for _, path in modules()}
    crowded = {
        str(folder.relative_to(PACKAGE)): count
        for folder in folders
        if (count := len([f for f in folder.glob("*.py") if f.stem != "__init__"]))
        > MODULES_OF_A_FOLDER
    }
    assert not crowded


def test_the_names_of_packages_hold_no_code() -> None:
    """A package file with code would run before what its modules need is prepared."""
    full = [
        name
        for name, path in modules()
        if path.stem == "__init__" and name and list(imports(path.read_text("utf-8"), late=True))
    ]
    assert not full


def _loaded(statement: str, *names: str) -> str:
    show = f"import sys; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; {show}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_the_application_loads_no_framework() -> None:
    names = [f"serve_app.deployments.{stage}" for stage in ("ingress", *DEPLOYMENTS)]
    # What a replica of `fused` needs besides: its child process has the frameworks.
    names += ["serve_app.models.fused.process", "serve_app.models.checkpoint.locate"]
    statement = f"import serve_app.app, {', '.join(names)}"
    assert _loaded(statement, "torch", "vllm", "transformers") == ""


def test_a_talker_needs_no_predictor() -> None:
    statement = "import serve_app.models.talker.runtime"
    package = "serve_app.models.code_predictor"
    unwanted = (f"{package}.model", f"{package}.channel.server", f"{package}.channel.in_process")
    assert _loaded(statement, *unwanted) == ""


def test_the_http_server_works_without_ray() -> None:
    assert _loaded("import serve_app.http.app", "ray", "torch") == ""


def test_a_command_starts_without_any_library() -> None:
    names = ("numpy", "pydantic", "av", "shtab", "asyncio", "ray", "torch")
    assert _loaded("import serve_app.cli.tts_stream", *names) == ""


def test_versions_are_stated_once() -> None:
    import tomllib

    import serve_app

    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == serve_app.__version__
