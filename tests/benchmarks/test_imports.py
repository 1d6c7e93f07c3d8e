"""evaluation takes engines, texts and numbers from benchmarks, which must not need evaluation for anything."""

import ast
from pathlib import Path

import benchmarks


def test_benchmarks_does_not_import_evaluation():
    found = {}
    for path in Path(benchmarks.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        found[path.name] = {name.partition(".")[0] for name in names}
    assert "benchmarks" in found["variants.py"]
    assert not [name for name, packages in found.items() if "evaluation" in packages]
