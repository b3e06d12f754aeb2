"""Settings: read from files, environment and overrides; located; strict; typed.

`read()` gives the merged document, from which the core learns which plugins are named; `structure()` turns it
into typed settings, or raises one `SettingsError` that holds every problem of every source.
"""

from deia_hardening.settings.document import CORE_SECTIONS, RESERVED, Document, SectionHead, read
from deia_hardening.settings.fields import FieldSpec, Secret, setting, spec_of
from deia_hardening.settings.files import FileText, Snapshot, take_snapshot
from deia_hardening.settings.limits import DEFAULT_LIMITS, DocumentLimits
from deia_hardening.settings.loading import Loaded, changes, load, structure
from deia_hardening.settings.nodes import Place, Source
from deia_hardening.settings.schema import document_schema, section_schema
from deia_hardening.settings.units import Bytes, Ratio, Seconds

__all__ = [
    "CORE_SECTIONS",
    "DEFAULT_LIMITS",
    "RESERVED",
    "Bytes",
    "Document",
    "DocumentLimits",
    "FieldSpec",
    "FileText",
    "Loaded",
    "Place",
    "Ratio",
    "Seconds",
    "Secret",
    "SectionHead",
    "Snapshot",
    "Source",
    "changes",
    "document_schema",
    "load",
    "read",
    "section_schema",
    "setting",
    "spec_of",
    "structure",
    "take_snapshot",
]
