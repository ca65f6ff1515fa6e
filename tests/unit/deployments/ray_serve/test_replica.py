"""Every replica begins in the same way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app import deployments


def classes() -> Iterator[ast.ClassDef]:
    """All that Serve deploys, but what has no replica."""
    for path in Path(deployments.__path__[0]).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name != "Front":
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                if any(mark.startswith("serve.deployment") for mark in marks):
                    yield node


CLASSES = {node.name: node for node in classes()}


def test_there_are_some() -> None:
    assert {"Ingress", "Fused", "TalkerDeployment"} <= CLASSES.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_a_constructor_begins_its_replica(name: str) -> None:
    (constructor,) = (
        node
        for node in CLASSES[name].body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "__init__"
    )
    assert "replica.begin()" in map(ast.unparse, constructor.body)
