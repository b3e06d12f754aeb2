from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from deia_config.settings import ConfigSettings
from deia_hardening.settings.classes import fields_of
from deia_hardening.settings.plain import to_plain

PAGE = Path(__file__).parents[2] / "docs" / "config-reference.md"


def fields(kind: type, prefix: str) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for key, info in fields_of(kind).items():
        if attrs.has(info.kind):
            found += fields(info.kind, f"{prefix}{key}.")
        else:
            default = to_plain(info.default, "", {})
            shown = ", ".join(default) if isinstance(default, list) else str(default).lower()
            found.append((f"{prefix}{key}", shown, info.spec.doc))
    return found


@pytest.mark.parametrize(("key", "default", "doc"), fields(ConfigSettings, "config."))
def test_the_reference_has_every_setting_with_its_default(key: str, default: str, doc: str) -> None:
    row = next((line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{key}` ")), "")
    assert row, f"{key} is missing"
    assert f"`{default}`" in row
    assert doc in row


def test_every_default_is_within_its_own_bounds() -> None:
    from deia_hardening.settings import load

    assert load({"config": {}}, {"config": ConfigSettings}, env={}).sections["config"] == ConfigSettings()
    plain = load({"config": {}}, {"config": ConfigSettings}, env={}).redacted()
    assert load(plain, {"config": ConfigSettings}, env={}).sections["config"] == ConfigSettings()
