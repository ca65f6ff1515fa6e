"""`python -m serve_app [config.yaml]`: `serve run` with a strict check of the config, HOST, PORT
and PROFILE.

What Serve gets is the file as it stands plus these, on a Ray cluster of its own unless RAY_ADDRESS
names one, and with ports and socket paths of HAProxy that are free on this machine.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from serve_app import __version__
from serve_app.check import command as check
from serve_app.check import faults
from serve_app.check.system import system
from serve_app.config import Environment
from serve_app.keys import command as keys
from serve_app.launch import cluster, haproxy
from serve_app.launch.announce import READY, STOPPING, Failure, ServiceManager, say_when_ready
from serve_app.launch.ending import Ending, ServeIngresses, finish, limit_of
from serve_app.launch.keeper.hung import LOOPS
from serve_app.launch.keeper.keeper import kept
from serve_app.launch.keeper.proxies import start_no_more
from serve_app.launch.ports import Ports
from serve_app.launch.several import WITH_INGRESS, WITH_MODEL

DEFAULT_CONFIG: Final = "configs/serve.yaml"
# What Serve says of a deployment whose replica has ended in its constructor, before it gives up.
_TRIED_AGAIN: Final = "A replica failed to start"
_USAGE: Final = """\
usage: qwen3-tts-serve [--model [NAME=]MODEL ...] [--host HOST] [--port PORT] [--profile PROFILE]
                       [--print-config] [config.yaml]
       qwen3-tts-serve check [--json] [config.yaml]
       qwen3-tts-serve keys new|hash|list|remove

Serve on this machine until Ctrl-C: open streams are finished then, unless a second one comes. The
default is configs/serve.yaml; where there is no checkout, the package's own.
configs/serve.fused.yaml is another, configs/serve.several.yaml one of several models. --model, a
folder or hub id, may be given several times: each is then an application of its own, and the first
is the default. PROFILE is latency, balanced, throughput or auto. --print-config prints the
configuration that comes of it. On SIGHUP the file is read again and applied to the server that
runs. TTS_MODEL, TTS_REVISION, HOST, PORT, PROFILE and RAY_ADDRESS are read from the environment,
where the command line does not say otherwise.
"""


def main(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print(_USAGE, end="")
        return 0
    commands = {"check": check.main, "keys": keys.main}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    if arguments == ["--version"]:
        print(f"qwen3-tts-serve {__version__}")
        return 0
    # These import Ray, which reads its environment then.
    from serve_app.launch import again, ahead, overrides, settings

    try:
        start = settings.parse(arguments, DEFAULT_CONFIG)
    except ValueError as error:
        print(f"{error}\n\n{_USAGE}", end="", file=sys.stderr)
        return 2
    try:
        config = start.settings()
        environment = Environment.read()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if start.only_print:
        # Through JSON: YAML would have what is there twice only once, and refer to it.
        print(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False), end="")
        return 0
    found = [] if environment.ray_address else [*_missing(), *_faults(config, environment)]
    if found:
        print("\n".join(found), file=sys.stderr)
        return 2
    options = config["http_options"]
    host, port = options.get("host", "127.0.0.1"), options.get("port", 8000)
    ports = Ports(claims=environment.ray_address is None)
    refusal = ports.refusal(host, port)
    if refusal is not None:
        print(
            f"{refusal}; choose another: --host HOST --port PORT, or make serve HOST=HOST"
            " PORT=PORT",
            file=sys.stderr,
        )
        return 2
    if not haproxy.is_loopback(host) and not _asks_for_keys(config, environment):
        print(f"anybody who reaches {host} may use the server: there are no API keys", flush=True)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    checked = set() if environment.ray_address else {model for model, _ in _models(config)}
    os.environ["TTS_CHECKED"] = os.pathsep.join(checked)
    # A shell that starts this in the background has Ctrl-C ignored, and with it the way to stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, cluster.interrupt)
    own_cluster = environment.ray_address is None
    manager = ServiceManager(environment.notify_socket)

    def say(text: str) -> None:
        print(text, flush=True)
        manager.status(text)

    with ports, haproxy.make_folder() as folder, kept(Path(folder), own_cluster):
        again.on_hangup(start.settings, config)
        config = overrides.with_env(config, haproxy.environment(Path(folder), ports))
        if own_cluster:
            loops = Path(folder) / LOOPS
            loops.mkdir()
            config = overrides.with_env(config, {"TTS_LOOPS": str(loops)})
        config = ahead.with_standbys(config, Path(folder) / "standby", own_cluster=own_cluster)
        path = Path(folder) / "serve.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        say(f"starting on http://{host}:{port}; ready when GET /ready answers 200")
        ingresses = ServeIngresses(lambda: haproxy.unsent(Path(folder)))

        def drain(sleep: Callable[[float], None]) -> None:
            manager.tell(STOPPING)
            finish(ingresses, limit_of(config), say, sleep)

        # With a cluster of its own all of it goes, faster than Serve by itself.
        how = partial(SystemExit, 0) if own_cluster else KeyboardInterrupt
        ending = Ending(drain, how, cluster.lost)
        ready = partial(manager.tell, READY)
        say_when_ready(host, port, partial(_failure, config), ending.fail, ready, say)
        last = partial(start_no_more, Path(folder))
        return run(path, ending, last, partial(_says_of_cards, config))


def _missing() -> Iterator[str]:
    """What no cluster starts without on this machine."""
    for finding in system():
        if finding.state == "missing":
            yield f"{finding.says}; {finding.remedy}"


def _faults(config: dict[str, Any], environment: Environment) -> Iterator[str]:
    """What is wrong with keys and models, before a cluster is started for nothing. On another
    cluster the nodes may have what this machine has not.
    """
    yield from faults.of_keys(environment, _keys_files(config))
    for model, revision in _models(config):
        yield from faults.of_model(model, revision)


def _says_of_cards(config: dict[str, Any]) -> bool:
    """Say what is asked for at least and no GPU of the cluster that was joined holds; whether
    nothing will ever change that. Another cluster may get more nodes.
    """
    import ray

    cards = sum(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
    found = list(faults.of_cards(config["applications"], cards))
    is_final = Environment.read().ray_address is None
    for says in found:
        more = "" if is_final else "; what finds none waits for another node"
        print(f"{says}{more}", file=sys.stderr, flush=True)
    return bool(found) and is_final


def _models(config: dict[str, Any]) -> list[tuple[str, str | None]]:
    """What is served beside the embedded voice, with its revision if one is stated: each once, in
    the file's order.
    """
    each = [application.get("args", {}) for application in config["applications"]]
    stated = [(args["model"], args.get("revision")) for args in each if args.get("model")]
    return list(dict.fromkeys(stated))


def _failure(config: dict[str, Any]) -> Failure | None:
    """What does not start, as Serve tells it; None while everything may."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return None
    applications = serve.status().applications
    failed = {name for name, status in applications.items() if status.status == "DEPLOY_FAILED"}
    says = [
        f"the application {name!r} does not start: {_cause(status)}"
        for name, status in applications.items()
        if name in failed
    ]
    says += [
        f"{deployment} of {name!r} failed to start and is tried again: {_last_line(state.message)}"
        for name, status in applications.items()
        for deployment, state in status.deployments.items()
        if name not in failed and state.message.startswith(_TRIED_AGAIN)
    ]
    if not says:
        return None
    models, fronts = (
        {a["name"] for a in config["applications"] if a["import_path"] in builders}
        for builders in (WITH_MODEL, WITH_INGRESS)
    )
    serves_nothing = not fronts.isdisjoint(failed) or (bool(models) and models <= failed)
    # Another cluster may tell of what was there before.
    return Failure("; ".join(says), serves_nothing and Environment.read().ray_address is None)


def _cause(application: Any) -> str:
    """Why Serve has given an application up: that of a deployment, which says more."""
    of_deployments = (
        state.message
        for state in application.deployments.values()
        if state.status == "DEPLOY_FAILED"
    )
    return _last_line(next(of_deployments, application.message))


def _last_line(message: str) -> str:
    """What a message has at its end, where it quotes a traceback."""
    *_, last = ["", *message.strip().splitlines()]
    return last


def _asks_for_keys(config: dict[str, Any], environment: Environment) -> bool:
    stated = any(_keys_files(config))
    return stated or bool(environment.api_keys or environment.api_keys_file)


def _keys_files(config: dict[str, Any]) -> list[str | None]:
    """What each application says of its keys."""
    ingresses = [
        application.get("args", {}).get("ingress", {}) for application in config["applications"]
    ]
    return [ingress.get("access", {}).get("keys_file") for ingress in ingresses]


def run(
    config: Path,
    ending: Ending,
    last: Callable[[], None] = lambda: None,
    refused: Callable[[], bool] = lambda: False,
) -> int:
    """Call `serve run` in this process; returns when `ending` has ended it, or it has failed, and
    calls `last` before the cluster goes. Where the cluster shows that it is for nothing, `refused`
    says why.
    """
    from click import Abort
    from ray.serve.scripts import cli

    address = Environment.read().ray_address
    try:
        try:
            cluster.connect()
        except Exception as error:
            if address is None:
                traceback.print_exc()
                place = Environment.read().ray_temporary
                says = f"Ray does not start on this machine; its logs are in {place}/ray"
                print(f"{says}/session_latest/logs: {error}", file=sys.stderr)
                return 1
            print(f"no Ray cluster can be joined at {address}: {error}", file=sys.stderr)
            return 2
        try:
            if refused():
                return 2
            ending.listen()
            cli.main(["run", str(config)], standalone_mode=False)
        finally:
            ending.settle()
            last()
            cluster.disconnect()
    except (KeyboardInterrupt, Abort):  # the last one from within click
        return int(ending.has_failed)
    except SystemExit:  # Serve's, too, which does not tell an end from a failure
        return int(ending.has_failed or not ending.was_told)
    return 0


def console() -> int:
    """The command of an installed package."""
    try:
        cluster.prepare_environment()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
