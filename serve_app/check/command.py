"""`python -m serve_app check`: what this machine can run, what is missing and how to get it.

Starts nothing and downloads nothing. Exit status: 0 the server can work, 1 something is missing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from serve_app.check import machine, packages, surroundings, system
from serve_app.check.finding import Finding
from serve_app.config import Environment

_SIGNS: Final = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="serve_app check", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("config", nargs="?", help="whose folders and replicas are looked at")
    options = parser.parse_args(arguments)
    try:
        found = look(options.config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    missing = sum(finding.state == "missing" for finding in found)
    if options.json:
        facts = {"can_serve": not missing, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(facts, indent=2))
    else:
        print(report(found))
    return 1 if missing else 0


def look(config: str | None = None) -> list[Finding]:
    """Everything that there is to find, for a config file or the default one.

    Raises:
        ValueError: the file cannot be read, or has a fault.
    """
    environment = Environment.read()
    places = surroundings.places(config)
    return [
        *machine.machine(),
        *system.system(),
        *machine.gpus(),
        *surroundings.replicas(config, environment, machine.cards()),
        *packages.packages(),
        *packages.audio(),
        *surroundings.ports(environment),
        *surroundings.keys(environment),
        *surroundings.folders(places),
        *surroundings.ray(environment),
        *surroundings.checkpoint(environment),
    ]


def report(found: Sequence[Finding]) -> str:
    """For people: a line each, remedies below, and a verdict."""
    lines = []
    for finding in found:
        lines.append(f"{_SIGNS[finding.state]}  {finding.area:<10}  {finding.says}")
        if finding.remedy:
            lines.append(f"{'':21}-> {finding.remedy}")
    return "\n".join([*lines, "", verdict(found)])


def verdict(found: Sequence[Finding]) -> str:
    missing = [finding for finding in found if finding.state == "missing"]
    if missing:
        return f"This machine cannot serve yet: {len(missing)} things are missing."
    if any(finding.area == "gpu" and finding.state == "ok" for finding in found):
        return "This machine can serve on its GPU: make serve CONFIG=configs/serve.fused.yaml"
    return "This machine can serve on its CPU: make serve"
