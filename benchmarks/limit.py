"""The learned limit, scenario by scenario, in the virtual-time simulator of the tests.

    python benchmarks/limit.py [--seed 0] [--plot docs/degradation-limit.svg]

Prints goodput as a part of what was possible, and draws one panel per scenario: the limit over time, and answers in
time per second beside the possible ones. The same seed gives the same figures on every machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, COLUMNS, POINTS = 300, 150, 3, 120


def load() -> ModuleType:
    """The simulator, which lives with the tests."""
    spec = importlib.util.spec_from_file_location("simulator", ROOT / "tests" / "degradation" / "simulator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulator"] = module
    spec.loader.exec_module(module)
    return module


def line(points: list[tuple[float, float]], most: tuple[float, float], style: str) -> str:
    """A polyline in a panel; `most` are the axes' ends."""
    step = max(1, len(points) // POINTS)
    inner = [
        f"{10 + (WIDTH - 20) * x / most[0]:.1f},{HEIGHT - 25 - (HEIGHT - 50) * min(y, most[1]) / most[1]:.1f}"
        for x, y in points[::step]
    ]
    return f'<polyline fill="none" {style} points="{" ".join(inner)}"/>'


def panel(name: str, result: object, goodput: float, seconds: float, index: int) -> str:
    """One scenario: the limit (blue), answers in time per second (green), the possible ones (dashed)."""
    limits: list[tuple[float, float]] = result.limits  # type: ignore[attr-defined]
    goods = list(enumerate(map(float, result.goods)))[1:-1]  # type: ignore[attr-defined]
    bests = list(enumerate(map(float, result.bests)))[1:-1]  # type: ignore[attr-defined]
    top = max(value for _, value in limits) * 1.15
    rate = max(value for _, value in bests) * 1.25
    x, y = index % COLUMNS * WIDTH, index // COLUMNS * HEIGHT
    return (
        f'<g transform="translate({x},{y})">'
        f'<rect x="10" y="25" width="{WIDTH - 20}" height="{HEIGHT - 50}" fill="none" stroke="#ccc"/>'
        f'<text x="10" y="18" font-weight="bold">{name}</text>'
        f'<text x="{WIDTH - 10}" y="18" text-anchor="end">goodput {goodput:.3f}</text>'
        f'<text x="10" y="{HEIGHT - 10}" fill="#666">0 – {seconds:g} s, limit to {top:.0f}, {rate:.0f} answers/s</text>'
        + line(bests, (seconds, rate), 'stroke="#888" stroke-dasharray="3,3"')
        + line(goods, (seconds, rate), 'stroke="#2a2" stroke-width="1.2"')
        + line(limits, (seconds, top), 'stroke="#26c" stroke-width="1.5"')
        + "</g>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    simulator = load()
    panels, figures = [], []
    for index, (name, scenario) in enumerate(simulator.scenarios().items()):
        allowance = 3.0 if scenario.deadline > 5 else 1.0
        simulation = simulator.Simulation(scenario, options.seed, allowance=allowance)
        result = simulation.run()
        figures.append(result.goodput)
        late = result.late / max(1, result.good + result.late)
        print(f"{name:18} goodput {result.goodput:.3f}  late {late:6.2%}  limit at the end {result.limits[-1][1]:.0f}")
        panels.append(panel(name, result, result.goodput, scenario.seconds, index))
    print(f"{'mean':18} goodput {sum(figures) / len(figures):.3f}, worst {min(figures):.3f}, seed {options.seed}")
    if options.plot is not None:
        rows = -(-len(panels) // COLUMNS)
        options.plot.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * COLUMNS} {HEIGHT * rows}" '
            'font-family="sans-serif" font-size="10">'
            '<rect width="100%" height="100%" fill="white"/>' + "\n".join(panels) + "</svg>\n"
        )


if __name__ == "__main__":
    main()
