"""The pages say what the code does: every setting stands in the reference, every example document is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from deia_degradation.schedule import ScheduleEntry
from deia_degradation.settings import (
    AdmissionSettings,
    BotSettings,
    CheckSettings,
    DegradationSettings,
    EjectSettings,
    FailureSettings,
    MaintenanceSettings,
    ModesSettings,
    PoolSettings,
    QuotaSettings,
    RetrySettings,
    RouteSettings,
    ScalingSettings,
    SignalsSettings,
)
from deia_hardening.sections import RequestsSettings
from deia_hardening.settings import read, structure
from deia_hardening.settings.fields import spec_of

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = {
    "degradation": DegradationSettings,
    "modes": ModesSettings,
    "signals": SignalsSettings,
    "schedule[]": ScheduleEntry,
    "maintenance": MaintenanceSettings,
    "routes[]": RouteSettings,
    "admission": AdmissionSettings,
    "quotas": QuotaSettings,
    "pools.NAME": PoolSettings,
    "pools.NAME.bots[]": BotSettings,
    "pools.NAME.failure": FailureSettings,
    "pools.NAME.retry": RetrySettings,
    "pools.NAME.eject": EjectSettings,
    "pools.NAME.check": CheckSettings,
    "scaling": ScalingSettings,
}


def shown(field):
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):
        return "see below" if attrs.has(field.default.factory) else "none"
    if field.default in ((), "", None):
        return "none"
    if isinstance(field.default, tuple):
        return "`[" + ", ".join(field.default) + "]`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def table(name, kind):
    rows = [f"### {name}", "", "| setting | default | what it says |", "|---|---|---|"]
    for field in attrs.fields(kind):
        spec = spec_of(field.metadata)
        marks = " File-only." if spec.file_only else ""
        rows.append(f"| `{field.name}` | {shown(field)} | {spec.doc.replace('|', '∣')}{marks} |")
    return "\n".join(rows) + "\n"


def test_every_setting_stands_in_the_reference_with_its_default():
    page = (DOCS / "degradation-reference.md").read_text()
    missing = [name for name, kind in SECTIONS.items() if table(name, kind) not in page]
    text = "\n".join(table(name, SECTIONS[name]) for name in missing)
    assert not missing, f"docs/degradation-reference.md needs:\n{text}"


def documents():
    for page in sorted(DOCS.glob("degradation*.md")):
        blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, text in enumerate(blocks, 1):
            yield pytest.param(text, id=f"{page.name}-{number}")


@pytest.mark.parametrize("text", list(documents()))
def test_every_example_document_is_accepted(text, tmp_path):
    (tmp_path / "hardening.yaml").write_text(text)
    document = read(tmp_path, {})
    structure(document, {"degradation": DegradationSettings, "requests": RequestsSettings})
