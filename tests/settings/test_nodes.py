from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.settings.nodes import Mapping, Node, Place, Source, from_python, leaves, merge, to_python

_scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from("xyz") | st.lists(st.integers(0, 2), max_size=2)
)
_trees = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(_scalars, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8),
    max_size=3,
)


def node(value: object, name: str) -> Node:
    return from_python(value, Place(name, 0, 0, Source.MAPPING))


def shape(tree: Node) -> object:
    """Values, origins of the leaves, and where a map replaced something."""
    if isinstance(tree, Mapping):
        return (tree.cut, {key: shape(entry.node) for key, entry in tree.entries.items()})
    return (to_python(tree), tree.place.file)


@given(_trees, _trees, _trees)
def test_merging_is_associative(a: object, b: object, c: object) -> None:
    one, two, three = node(a, "1"), node(b, "2"), node(c, "3")
    assert shape(merge(merge(one, two), three)) == shape(merge(one, merge(two, three)))


@given(_trees)
def test_an_empty_source_changes_nothing(a: object) -> None:
    one = node(a, "1")
    assert shape(merge(one, node({}, "2"))) == shape(one) == shape(merge(node({}, "0"), one))


def test_maps_merge_and_lists_replace_and_every_leaf_remembers_what_it_shadows() -> None:
    merged = merge(
        merge(node({"a": {"b": 1, "c": [1, 2]}}, "1"), node({"a": {"b": 2}}, "2")), node({"a": {"b": 3, "c": []}}, "3")
    )
    assert to_python(merged) == {"a": {"b": 3, "c": []}}
    found = dict(leaves(merged))
    assert [found["a.b"].place.file, *(each.place.file for each in found["a.b"].beneath)] == ["3", "2", "1"]
    assert [each.place.file for each in found["a.c"].beneath] == ["1"]
