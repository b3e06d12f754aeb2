"""Plans: what is accepted can finish; what is refused says where and why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.errors import SettingsError
from deia_hardening.settings import Ratio, Seconds
from deia_migration.plan import Plan, Probe, Step, from_plain, to_plain

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"steps": [{"weight": "150%"}]}, "steps[0].weight", "too high"),
    ({"steps": [{"weight": "50%"}, {"weight": "10%"}]}, "steps[1].weight", "only rise"),
    ({"steps": [{"weight": "0%", "until": "judged"}]}, "steps[0].until", "never be met"),
    ({"steps": [{"weight": "10%", "gate": "webhook"}]}, "steps[0].webhook", "name"),
    ({"steps": [{"weight": "10%", "gate": "robot"}]}, "steps[0].gate", "choices"),
    ({"steps": [{"weight": "10%", "pause": "2d"}]}, "limits.total", "can't finish"),
    ({"steps": [], "bake": "0s"}, "promote", "judged"),
    ({"steps": [{"weight": "95%"}]}, "holdback", "lower"),
    ({"judge": {"margin": 1.5, "tolerance": 2.0}}, "judge.margin", "tolerance"),
    ({"probes": [{"path": "health"}]}, "probes[0].path", "start with"),
    ({"probes": [{}]}, "probes[0].path", "required"),
    ({"promoet": "manual"}, "promoet", ""),
    ({"bake": 600}, "bake", ""),
]


@pytest.mark.parametrize(("values", "key", "says"), REFUSED)
def test_a_plan_that_cannot_finish_is_refused_at_its_place(values: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_plain(values)
    assert any(problem.key == key and says in problem.message for problem in caught.value.problems), str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        from_plain({"steps": [{"weight": "150%"}, {"weight": "5"}], "bake": "soon"})
    assert len(caught.value.problems) == 3


def test_the_default_plan_is_a_good_one() -> None:
    plan = Plan()
    assert from_plain({}) == plan
    assert [float(step.weight) for step in plan.steps] == [0.01, 0.1, 0.5]


@given(
    st.lists(st.integers(0, 90), max_size=5).map(sorted),
    st.integers(0, 600),
    st.sampled_from(["manual", "timed"]),
)
def test_a_plan_survives_the_journal_and_the_store(weights: list[int], pause: int, promote: str) -> None:
    plan = Plan(
        steps=tuple(Step(weight=Ratio(f"{weight}%"), pause=Seconds(pause)) for weight in weights),
        promote=promote,
        probes=(Probe(path="/health", json={"ok": True, "bots.0": "echo"}, headers={"x": "y"}),),
    )
    again = from_plain(to_plain(plan))
    assert again == plan
    assert again.digest == plan.digest
