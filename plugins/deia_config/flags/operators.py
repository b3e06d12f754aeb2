"""flagd's own operators: `fractional` in every generation, `rollout`, `sem_ver`, `starts_with`, `ends_with`, casing.

Sources: flagd.dev/reference/custom-operations and the fractional ADRs. The generations of `fractional`:
`legacy` (the operator `fractionalEvaluation`: XXH3 of one property, percentages), `v1` (MurmurHash3 as a signed
ratio, percentages), `v2` (the hash scaled to the sum of weights) and `v3` (as v2, over deterministic CBOR of any
value). A file stays on the generation that it names: changing one moves keys between buckets.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

from deia_config.flags.hashes import cbor, murmur3_32, murmur3_after, murmur3_text, xxh3_64
from deia_config.flags.logic import (
    SPECIAL,
    Compiling,
    Exit,
    Rule,
    argument_nodes,
    arguments,
    compile_rule,
    constant,
    is_constant,
    look_up,
)
from deia_hardening.settings.nodes import Node, Scalar, Sequence

GENERATIONS = ("v1", "v2", "v3")
_MOST_WEIGHT = 2**31 - 1
_SIGNED_MAX = 2**31 - 1
_KEYS_KEPT = 16_384
"""Keys of one rollout whose buckets stay in memory (some 2 MiB): the same actors come again."""
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=", "^", "~")


def _nothing(data: Any) -> Any:
    raise Exit


# -- text --------------------------------------------------------------------------------------------------------


def _affix(method: Callable[[str, str], bool], what: str) -> Callable[[Node, str, Compiling], Rule]:
    def build(node: Node, key: str, compiling: Compiling) -> Rule:
        rules = arguments(node, key, compiling)
        if len(rules) != 2:
            compiling.note(node, key, f"{len(rules)} argument{'s' * (len(rules) != 1)}", f"a text and its {what}")
            return _nothing
        value, affix = rules
        for rule, item in zip(rules, argument_nodes(node), strict=True):
            if is_constant(rule) and not isinstance(rule(None), str):
                compiling.note(item, key, "not a text", f"a text and its {what}")
                return _nothing
        if is_constant(affix):
            fixed = affix(None)

            def matches(data: Any) -> bool:
                found = value(data)
                if isinstance(found, str):
                    return method(found, fixed)
                raise Exit

            return matches

        def both(data: Any) -> bool:
            found, wanted = value(data), affix(data)
            if isinstance(found, str) and isinstance(wanted, str):
                return method(found, wanted)
            raise Exit

        return both

    return build


def _casing(change: Callable[[bytes], bytes]) -> Callable[[Node, str, Compiling], Rule]:
    def build(node: Node, key: str, compiling: Compiling) -> Rule:
        rules = arguments(node, key, compiling)
        if len(rules) != 1:
            compiling.note(node, key, f"{len(rules)} arguments", "one text")
            return _nothing
        only = rules[0]

        def cased(data: Any) -> str:
            value = only(data)
            if not isinstance(value, str):
                raise Exit
            # bytes.lower() changes ASCII only, as every implementation of flagd does.
            return change(value.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

        return cased

    return build


# -- versions ----------------------------------------------------------------------------------------------------

_VERSION = re.compile(
    r"[vV]?(0|[1-9]\d{0,17})(?:\.(0|[1-9]\d{0,17}))?(?:\.(0|[1-9]\d{0,17}))?"
    r"(?:-((?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*))?"
    r"(?:\+[0-9A-Za-z.-]+)?"
)
Version = tuple[tuple[int, int, int], tuple[tuple[int, int, str], ...]]
_LONGEST_VERSION = 256


def parse_version(value: Any) -> Version | None:
    """A semantic version (semver.org) as something that compares; `v1`, `1.2` and numbers are taken too."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    written = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if len(written) > _LONGEST_VERSION:
        return None
    match = _VERSION.fullmatch(written)
    if match is None or (match.group(3) is None and match.group(4) is not None):
        return None
    numbers = (int(match.group(1)), int(match.group(2) or 0), int(match.group(3) or 0))
    if match.group(4) is None:
        return numbers, ((2, 0, ""),)  # a release is above its pre-releases
    parts = match.group(4).split(".")
    return numbers, tuple((0, int(part[:18]), "") if part.isdecimal() else (1, 0, part) for part in parts)


def _compare(a: Version, operator: str, b: Version) -> bool:
    if operator == "^":
        return a[0][0] == b[0][0]
    if operator == "~":
        return a[0][:2] == b[0][:2]
    if operator == "=":
        return a == b
    if operator == "!=":
        return a != b
    if operator == "<":
        return a < b
    if operator == "<=":
        return a <= b
    return a > b if operator == ">" else a >= b


def _sem_ver(node: Node, key: str, compiling: Compiling) -> Rule:
    rules = arguments(node, key, compiling)
    if len(rules) != 3:
        compiling.note(node, key, f"{len(rules)} arguments", "a version, a comparison and a version")
        return _nothing
    value, operator, target = rules
    nodes = argument_nodes(node)
    if is_constant(operator) and operator(None) not in _COMPARISONS:
        compiling.note(nodes[1], key, f"unknown comparison {operator(None)!r}", ", ".join(_COMPARISONS), "=")
        return _nothing
    for rule, item in ((value, nodes[0]), (target, nodes[2])):
        if is_constant(rule) and parse_version(rule(None)) is None:
            compiling.note(item, key, "not a semantic version", "major.minor.patch, e.g. 1.2.3")
            return _nothing
    fixed = parse_version(target(None)) if is_constant(target) else None

    def compare(data: Any) -> bool:
        found = parse_version(value(data))
        wanted = fixed if fixed is not None else parse_version(target(data))
        how = operator(data)
        if found is None or wanted is None or how not in _COMPARISONS:
            raise Exit
        return _compare(found, how, wanted)

    return compare


# -- buckets -----------------------------------------------------------------------------------------------------


def _by_targeting_key(data: Any, flag: str, generation: str) -> int:
    try:
        key = data["targetingKey"]
    except (KeyError, TypeError, IndexError):
        raise Exit from None
    if not isinstance(key, str):
        raise Exit
    if generation == "v3":
        return murmur3_32(cbor([flag, key]))
    return murmur3_text(flag + key)


def _hash(value: Any, data: Any, flag: str, generation: str) -> int:
    if generation == "v3":
        if value is None:
            raise Exit
        try:
            return murmur3_32(cbor(value))
        except ValueError:
            raise Exit from None
    if isinstance(value, str):
        return murmur3_text(value)
    return _by_targeting_key(data, flag, generation)


def pick(hashed: int, weights: list[int], generation: str) -> int | None:
    """The index of the bucket that a 32-bit hash falls into; None when no weight is above 0."""
    total = sum(weights)
    if total <= 0:
        return None
    end: float = 0
    if generation == "v1":
        signed = hashed - 2**32 if hashed >= 2**31 else hashed
        ratio = abs(float(signed)) / _SIGNED_MAX * 100
        for index, weight in enumerate(weights):
            end += 100 * float(weight) / float(total)
            if ratio < end:
                return index
        return None
    bucket = (hashed * total) >> 32
    for index, weight in enumerate(weights):
        end += weight
        if bucket < end:
            return index
    return None


def _fractional(node: Node, key: str, compiling: Compiling) -> Rule:
    nodes = argument_nodes(node)
    generation = compiling.generation
    expression: Rule | None = None
    rest = nodes
    if nodes and not isinstance(nodes[0], Sequence):
        expression = compile_rule(nodes[0], f"{key}[0]", compiling)
        rest = nodes[1:]
    if not rest:
        compiling.note(node, key, "no buckets", "at least one [variant, weight]")
        return _nothing
    offset = len(nodes) - len(rest)
    names: list[Rule] = []
    weights: list[Rule] = []
    for index, bucket in enumerate(rest):
        inner = f"{key}[{index + offset}]"
        parts = bucket.items if isinstance(bucket, Sequence) else ()
        if not 1 <= len(parts) <= 2:
            compiling.note(bucket, inner, "not a bucket", "[variant, weight] or [variant]")
            return _nothing
        names.append(compile_rule(parts[0], f"{inner}[0]", compiling))
        weights.append(compile_rule(parts[1], f"{inner}[1]", compiling) if len(parts) == 2 else constant(1))
        _check_bucket(parts, inner, compiling)
    if all(is_constant(rule) for rule in weights):
        fixed = _weights([rule(None) for rule in weights])
        if fixed is None:
            compiling.note(node, key, "the weights don't add up", f"whole numbers, {_MOST_WEIGHT} in all")
            return _nothing
        if not any(fixed):
            compiling.note(node, key, "no weight is above 0", "a weight above 0")
        weigh: Callable[[Any], list[int]] = lambda data: fixed  # noqa: E731
    else:

        def weigh(data: Any) -> list[int]:
            found = _weights([rule(data) for rule in weights])
            if found is None:
                raise Exit
            return found

    flag = compiling.flag
    fast = _fast(flag, expression, names, weights, generation)
    if fast is not None:
        return fast

    def choose(data: Any) -> Any:
        if expression is None:
            hashed = _by_targeting_key(data, flag, generation)
        else:
            hashed = _hash(expression(data), data, flag, generation)
        index = pick(hashed, weigh(data), generation)
        if index is None:
            raise Exit
        return names[index](data)

    return choose


def _fast(flag: str, expression: Rule | None, names: list[Rule], weights: list[Rule], generation: str) -> Rule | None:
    """The common rollout (by targeting key, nothing computed, second generation) in the fewest steps; else None."""
    if expression is not None or generation != "v2" or not all(map(is_constant, [*names, *weights])):
        return None
    fixed = _weights([rule(None) for rule in weights])
    if not fixed or not any(fixed):
        return None
    ends, values = list(accumulate(fixed)), [rule(None) for rule in names]
    if len(values) == 1:  # there is nothing to choose, so no key is needed
        return names[0]
    total = ends[-1]
    hashed = murmur3_after(flag.encode("utf-8", "surrogatepass"))

    @lru_cache(maxsize=_KEYS_KEPT)
    def chosen(key: str) -> Any:
        return values[bisect_right(ends, (hashed(key.encode("utf-8", "surrogatepass")) * total) >> 32)]

    def choose(data: Any) -> Any:
        try:
            key = data["targetingKey"]
        except (KeyError, TypeError, IndexError):
            raise Exit from None
        if key.__class__ is not str:
            raise Exit
        return chosen(key)

    return choose


def _check_bucket(parts: tuple[Node, ...], key: str, compiling: Compiling) -> None:
    weight = parts[1] if len(parts) == 2 else None
    if isinstance(weight, Scalar):
        value = weight.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            compiling.note(weight, key, f"the weight {value!r} is no whole number", "a whole number")
        elif value < 0:
            compiling.note(weight, key, "a weight below 0", "0 or more", "0")


def _weights(values: list[Any]) -> list[int] | None:
    found: list[int] = []
    for value in values:
        if value is None:
            value = 1
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            return None
        found.append(max(0, int(value)))
    return found if sum(found) <= _MOST_WEIGHT else None


def _legacy_fractional(node: Node, key: str, compiling: Compiling) -> Rule:
    """`fractionalEvaluation`: `["email", ["red", 50], ["blue", 50]]`, percentages of 100."""
    nodes = argument_nodes(node)
    name = nodes[0].value if nodes and isinstance(nodes[0], Scalar) else None
    buckets: list[tuple[str, int]] = []
    for index, bucket in enumerate(nodes[1:], 1):
        parts = bucket.items if isinstance(bucket, Sequence) else ()
        values = [part.value if isinstance(part, Scalar) else None for part in parts]
        share = values[1] if len(values) == 2 else None
        if not isinstance(values[0] if values else None, str) or not isinstance(share, (int, float)):
            compiling.note(bucket, f"{key}[{index}]", "not a bucket", "[variant, percentage]")
            return _nothing
        buckets.append((str(values[0]), int(share)))
    if not isinstance(name, str) or sum(share for _, share in buckets) != 100:
        wrong = (
            "the percentages don't add up to 100" if isinstance(name, str) else "the first value is no property's name"
        )
        compiling.note(node, key, wrong, '["property", ["variant", percentage], …], 100 in all')
        return _nothing

    def choose(data: Any) -> str:
        value = data.get(name) if isinstance(data, dict) else None
        if not isinstance(value, str):
            raise Exit
        bucket = int(xxh3_64(value.encode("utf-8", "surrogatepass")) / 2.0**64 * 100)
        end = 0
        for variant, share in buckets:
            end += share
            if bucket < end:
                return variant
        raise Exit

    return choose


def _rollout(node: Node, key: str, compiling: Compiling) -> Rule:
    """`[bucketBy?, start, end, from?, to]`: from 0% of the keys at `start` to 100% at `end` (Unix seconds)."""
    nodes = list(argument_nodes(node))
    by: Rule | None = None
    if nodes and not (isinstance(nodes[0], Scalar) and type(nodes[0].value) in (int, float)):
        by = compile_rule(nodes.pop(0), f"{key}[0]", compiling)
    times = [
        item.value if isinstance(item, Scalar) and type(item.value) in (int, float) else None for item in nodes[:2]
    ]
    start, end = (*times, None, None)[:2]
    if start is None or end is None or not 3 <= len(nodes) <= 4:
        compiling.note(node, key, "not a rollout", "[bucket by, start, end, from, to], times in Unix seconds")
        return _nothing
    if end <= start:
        compiling.note(nodes[1], key, "the end is not after the start", f"more than {start:g}")
        return _nothing
    later = compile_rule(nodes[-1], f"{key}[{len(nodes) - 1}]", compiling)
    earlier = compile_rule(nodes[2], f"{key}[2]", compiling) if len(nodes) == 4 else constant(None)
    compiling.uses_flagd = True
    begin, duration = int(start), int(end) - int(start)
    generation, flag = compiling.generation, compiling.flag

    def choose(data: Any) -> Any:
        now = look_up(data, "$flagd.timestamp")
        if not isinstance(now, (int, float)):
            raise Exit
        value = None if by is None else by(data)
        if value == "":  # as flagd: nothing to bucket by
            value = None
        if value is not None and generation != "v3" and not isinstance(value, str):
            raise Exit
        hashed = _by_targeting_key(data, flag, generation) if value is None else _hash(value, data, flag, generation)
        elapsed = int(now) - begin
        return (later if (hashed * duration) >> 32 < elapsed else earlier)(data)

    return choose


SPECIAL.update(
    {
        "starts_with": _affix(str.startswith, "beginning"),
        "ends_with": _affix(str.endswith, "end"),
        "lower": _casing(bytes.lower),
        "upper": _casing(bytes.upper),
        "sem_ver": _sem_ver,
        "fractional": _fractional,
        "fractionalEvaluation": _legacy_fractional,
        "rollout": _rollout,
    }
)
