"""JsonLogic (jsonlogic.com) compiled into closures, once, at load.

What is wrong with a rule is noted with its place when it is compiled. At run time nothing raises but `Exit`: an
operator of flagd's got what it can't work with. That is an unknown: in `and`, `or`, `all`, `some` and `none` what is
known may still decide (Kleene's logic); where it doesn't, the rule as a whole comes to nothing (the default variant).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as MappingType
from typing import Any

import attrs

from deia_config.flags.values import PLAIN, number, text, truthy
from deia_hardening.settings.nodes import Node, Scalar, Sequence, to_python
from deia_hardening.settings.problems import Problems, nearest

Rule = Callable[[Any], Any]


class Exit(Exception):  # noqa: N818 - it ends a rule, it is no fault
    """The rule comes to nothing: the flag's default variant is served."""


@attrs.define
class Compiling:
    """What the compilation of one flag's rule needs and notes."""

    problems: Problems
    evaluators: MappingType[str, Node]
    flag: str
    generation: str = "v2"
    variants: frozenset[str] = frozenset()
    broken: str = ""
    """Why the rule can't be evaluated at all, or ''."""
    uses_flagd: bool = False
    """Whether the rule may look at `$flagd` (its time costs 300 ns per evaluation, so only where it is wanted)."""
    within: tuple[str, ...] = ()

    def note(self, node: Node, key: str, message: str, allowed: str = "", suggestion: str = "") -> None:
        """Note a problem at a node of the rule."""
        self.problems.add(node.place, key, message, allowed, suggestion)


def compile_rule(node: Node, key: str, compiling: Compiling) -> Rule:
    """The closure of a rule: call it with the evaluation context."""
    if isinstance(node, Scalar):
        return constant(node.value)
    if isinstance(node, Sequence):
        items = [compile_rule(item, f"{key}[{index}]", compiling) for index, item in enumerate(node.items)]
        return lambda data: [item(data) for item in items]
    if not node.entries:
        return constant({})
    if len(node.entries) > 1:
        names = ", ".join(list(node.entries)[:4])
        compiling.note(node, key, f"an operation has one operator, not {names}", "one operator in a map")
        compiling.broken = "an operation with several operators"
        return _exit
    name, (_, argument) = next(iter(node.entries.items()))
    inner = f"{key}.{name}"
    if name == "$ref":
        return _reference(argument, inner, compiling)
    special = SPECIAL.get(name)
    if special is not None:
        return special(argument, inner, compiling)
    plain = PLAIN.get(name)
    if plain is None:
        known = [*SPECIAL, *PLAIN, "$ref"]
        place = node.entries[name].place
        compiling.problems.add(
            place, inner, f"unknown operator {name!r}", "an operator of JsonLogic", nearest(name, known)
        )
        compiling.broken = f"unknown operator {name}"
        return _exit
    return _call(plain, arguments(argument, inner, compiling))


def _exit(data: Any) -> Any:
    raise Exit


def constant(value: Any) -> Rule:
    """A rule that is always `value`."""
    rule: Rule = lambda data: value  # noqa: E731 - the closure is marked below
    rule.constant = value  # type: ignore[attr-defined]
    return rule


def is_constant(rule: Rule) -> bool:
    """Whether the rule looks at nothing."""
    return hasattr(rule, "constant")


def argument_nodes(node: Node) -> tuple[Node, ...]:
    """An operator's arguments; one that is no list stands for a list of one."""
    return node.items if isinstance(node, Sequence) else (node,)


def arguments(node: Node, key: str, compiling: Compiling) -> list[Rule]:
    """The compiled arguments."""
    many = isinstance(node, Sequence)
    return [
        compile_rule(item, f"{key}[{index}]" if many else key, compiling)
        for index, item in enumerate(argument_nodes(node))
    ]


def _call(function: Callable[..., Any], rules: list[Rule]) -> Rule:
    if len(rules) == 1:
        only = rules[0]
        return lambda data: function(only(data))
    if len(rules) == 2:
        first, second = rules
        return lambda data: function(first(data), second(data))
    return lambda data: function(*[rule(data) for rule in rules])


def _reference(node: Node, key: str, compiling: Compiling) -> Rule:
    name = node.value if isinstance(node, Scalar) else None
    target = compiling.evaluators.get(name) if isinstance(name, str) else None
    if target is None:
        close = nearest(str(name), compiling.evaluators)
        compiling.note(node, key, f"there is no evaluator {name!r}", "a name in $evaluators", close)
        compiling.broken = f"unknown evaluator {name}"
        return _exit
    if name in compiling.within:
        compiling.note(node, key, f"the evaluator {name!r} refers to itself", "an evaluator without a circle")
        compiling.broken = f"circular evaluator {name}"
        return _exit
    assert isinstance(name, str)
    outer = compiling.within
    compiling.within = (*outer, name)
    try:
        return compile_rule(target, f"$evaluators.{name}", compiling)
    finally:
        compiling.within = outer


# -- operators that decide what is evaluated, or look at the context --------------------------------------------


def look_up(data: Any, path: Any, default: Any = None) -> Any:
    """The value at a dotted path of the context, or the default."""
    if path is None or path in ("", []):
        return data
    value = data
    for part in text(path).split("."):
        if isinstance(value, MappingType):
            if part not in value:
                return default
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdecimal() and len(part) < 9 and int(part) < len(value):
            value = value[int(part)]
        else:
            return default
    return default if value is None else value


def _var(node: Node, key: str, compiling: Compiling) -> Rule:
    rules = arguments(node, key, compiling)
    if not rules:
        compiling.uses_flagd = True
        return lambda data: data
    path, default = rules[0], rules[1] if len(rules) > 1 else constant(None)
    if not is_constant(path) or not isinstance(path(None), str) or path(None).startswith("$") or not path(None):
        compiling.uses_flagd = True
    if is_constant(path) and is_constant(default):
        name, fallback = path(None), default(None)
        if isinstance(name, str) and name and "." not in name:

            def simple(data: Any) -> Any:
                try:
                    value = data[name]
                except (KeyError, TypeError, IndexError):
                    return fallback
                return fallback if value is None else value

            return simple
        return lambda data: look_up(data, name, fallback)
    return lambda data: look_up(data, path(data), default(data))


def _missing_from(data: Any, keys: list[Any]) -> list[Any]:
    if len(keys) == 1 and isinstance(keys[0], list):
        keys = keys[0]
    return [key for key in keys if look_up(data, key) in (None, "")]


def _missing(node: Node, key: str, compiling: Compiling) -> Rule:
    compiling.uses_flagd = True
    rules = arguments(node, key, compiling)
    return lambda data: _missing_from(data, [rule(data) for rule in rules])


def _missing_some(node: Node, key: str, compiling: Compiling) -> Rule:
    compiling.uses_flagd = True
    rules = arguments(node, key, compiling)
    if len(rules) != 2:
        compiling.note(node, key, f"{len(rules)} arguments", "a number and a list of keys")
        return _exit
    need, keys = rules

    def missing_some(data: Any) -> list[Any]:
        wanted = keys(data)
        wanted = wanted if isinstance(wanted, list) else [wanted]
        missing = _missing_from(data, wanted)
        return [] if len(wanted) - len(missing) >= number(need(data)) else missing

    return missing_some


def _if(node: Node, key: str, compiling: Compiling) -> Rule:
    rules = arguments(node, key, compiling)
    if len(rules) in (2, 3):
        condition, then = rules[:2]
        otherwise = rules[2] if len(rules) == 3 else constant(None)
        if is_constant(then) and is_constant(otherwise):
            yes, no = then(None), otherwise(None)
            return lambda data: yes if truthy(condition(data)) else no

        def choose(data: Any) -> Any:
            return then(data) if truthy(condition(data)) else otherwise(data)

        return choose
    pairs = list(zip(rules[0::2], rules[1::2], strict=False))
    last = rules[-1] if len(rules) % 2 else constant(None)

    def chain(data: Any) -> Any:
        for condition, then in pairs:
            if truthy(condition(data)):
                return then(data)
        return last(data)

    return chain


def _and(node: Node, key: str, compiling: Compiling) -> Rule:
    rules = arguments(node, key, compiling)

    def every(data: Any) -> Any:
        value: Any = None
        unknown = False
        for rule in rules:
            try:
                value = rule(data)
            except Exit:
                unknown = True
                continue
            if not truthy(value):
                return value
        if unknown:
            raise Exit
        return value

    return every


def _or(node: Node, key: str, compiling: Compiling) -> Rule:
    rules = arguments(node, key, compiling)

    def either(data: Any) -> Any:
        value: Any = None
        unknown = False
        for rule in rules:
            try:
                value = rule(data)
            except Exit:
                unknown = True
                continue
            if truthy(value):
                return value
        if unknown:
            raise Exit
        return value

    return either


def _verdict(test: Rule, value: Any) -> bool | None:
    """Whether an item passes; None where the test comes to nothing."""
    try:
        return truthy(test(value))
    except Exit:
        return None


def _over(kind: str) -> Callable[[Node, str, Compiling], Rule]:
    def build(node: Node, key: str, compiling: Compiling) -> Rule:
        rules = arguments(node, key, compiling)
        if len(rules) < 2:
            compiling.note(node, key, f"{len(rules)} arguments", "a list and a rule for each of its items")
            return _exit
        items, test = rules[0], rules[1]
        start = rules[2] if len(rules) > 2 else constant(None)

        def over(data: Any) -> Any:
            values = items(data)
            values = values if isinstance(values, list) else []
            if kind == "map":
                return [test(value) for value in values]
            if kind == "filter":
                return [value for value in values if _verdict(test, value)]
            if kind in ("all", "some", "none"):
                verdicts = [_verdict(test, value) for value in values]
                decisive = kind != "all"
                if None in verdicts and decisive not in verdicts:
                    raise Exit
                if kind == "all":
                    return bool(values) and False not in verdicts
                return (True in verdicts) is (kind == "some")
            result = start(data)
            for value in values:
                result = test({"current": value, "accumulator": result})
            return result

        return over

    return build


def literal(node: Node) -> Any:
    """The plain value of a node that is no rule."""
    return to_python(node)


SPECIAL: dict[str, Callable[[Node, str, Compiling], Rule]] = {
    "var": _var,
    "missing": _missing,
    "missing_some": _missing_some,
    "if": _if,
    "?:": _if,
    "and": _and,
    "or": _or,
    **{kind: _over(kind) for kind in ("map", "filter", "reduce", "all", "some", "none")},
}
