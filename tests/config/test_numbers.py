"""No duration, size or limit that an operator may want to change stands in a function body.

Walks the syntax trees of the plugins and the examples. A number is suspicious where it is given or compared to
something whose name says that it is a duration, a size or a limit; module constants and settings are where such
numbers belong, with a name and a sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("plugins", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "settings.py" and "test" not in path.name
]
MEANING = re.compile(
    r"(^|_)(timeout|ttl|interval|delay|cooldown|backoff|deadline|period|seconds|minutes|hours|retries|attempts|"
    r"max|min|limit|threshold|capacity|maxsize|bytes|size|quota|batch)($|_)"
)
FORMATS = {"digest_size"}
"""Numbers that a format fixes: changing them would change what is on disk."""
FORMAT_FILES = {"plugins/deia_recovery/engine/pages.py", "plugins/deia_recovery/engine/wal.py"}
"""They read SQLite's own file formats."""
SLEEPS = {"sleep", "wait_for", "move_on_after", "fail_after"}
HARMLESS = {0, 1, -1, 2}


def number(node: ast.expr | None) -> float | None:
    """The number that an expression of literals stands for, if it is one that means something."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.LShift, ast.Pow)):
        return 0.5 if number(node.left) is not None or number(node.right) is not None else None
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return None if node.value in HARMLESS else float(node.value)
    return None


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return ""


def suspicious(function: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = name_of(node.func)
            for keyword in node.keywords:
                if (
                    keyword.arg
                    and keyword.arg not in FORMATS
                    and MEANING.search(keyword.arg)
                    and number(keyword.value) is not None
                ):
                    yield node.lineno, f"{called}({keyword.arg}=…)"
            if called in SLEEPS:
                for argument in node.args[: 1 if called != "wait_for" else 2]:
                    if number(argument) is not None:
                        yield node.lineno, f"{called}(…)"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if MEANING.search(name_of(target)) and number(node.value) is not None:
                    yield node.lineno, f"{name_of(target)} = …"
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if MEANING.search(node.target.id) and number(node.value) is not None:
                yield node.lineno, f"{node.target.id} = …"
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(MEANING.search(name_of(side)) for side in sides) and any(number(side) is not None for side in sides):
                yield node.lineno, "a comparison with a limit"


def violations(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(), str(path))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for inner in node.body:
                for line, what in suspicious(inner):
                    found.add(f"{path.relative_to(ROOT)}:{line}: {what} in {node.name}()")
    return sorted(found)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if str(path.relative_to(ROOT)) not in FORMAT_FILES],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_number_of_an_operator_stands_in_a_function_body(path: Path) -> None:
    assert not violations(path)


def test_the_walk_finds_what_it_looks_for(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "async def f():\n    await sleep(5)\n    timeout = 30\n    call(ttl=60 * 60)\n    if queue_limit > 10: pass\n"
        "    await wait_for(x, 3.0)\n    n = 7\n    await sleep(0)\n"
    )
    tree = ast.parse(source.read_text())
    assert sorted({line for line, _ in suspicious(tree)}) == [2, 3, 4, 5, 6]
