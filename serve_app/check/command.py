"""`python -m serve_app check`: what this machine can run, what is missing and how to get it.

Starts nothing and downloads nothing. Exit status: 0 the server can work, 1 something is missing.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from serve_app.check import machine, packages, surroundings, system
from serve_app.check.finding import Finding
from serve_app.config import Environment

_SIGNS: Final = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="serve_app check", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "config", nargs="?", help="whose folders are looked at; else the default ones"
    )
    options = parser.parse_args(arguments)
    try:
        places = surroundings.places(options.config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = look(places)
    missing = sum(finding.state == "missing" for finding in found)
    if options.json:
        facts = {"can_serve": not missing, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(facts, indent=2))
    else:
        print(report(found))
    return 1 if missing else 0


def look(places: Mapping[str, str] | None = None) -> list[Finding]:
    """Everything that there is to find; `places` as `surroundings.places` finds them."""
    environment = Environment.read()
    return [
        *machine.machine(),
        *system.system(),
        *machine.gpus(),
        *packages.packages(),
        *packages.audio(),
        *surroundings.ports(environment),
        *surroundings.keys(environment),
        *surroundings.folders(surroundings.places() if places is None else places),
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
