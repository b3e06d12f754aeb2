"""Computes an arithmetic expression, without `eval`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from bot_service.bots.base import bot, serve

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_LONGEST = 500


def compute(text: str) -> float | int:
    """The value of an expression of numbers, + - * / // % and parentheses. ValueError for anything else."""
    if len(text) > _LONGEST:
        raise ValueError(f"an expression has at most {_LONGEST} characters")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"cannot compute {text[:40]!r}: {error}") from error


def _value(node: ast.expr) -> float | int:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))  # type: ignore[no-any-return]
    raise ValueError(f"only numbers and + - * / // % are understood, not {ast.unparse(node)!r}")


app = bot("arithmetic", compute)

if __name__ == "__main__":
    serve(app)
