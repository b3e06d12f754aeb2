"""What the audit operations take and give: one frozen class each, with the words that help texts and forms show."""

from __future__ import annotations

from typing import Any

import attrs

from deia_hardening.settings import setting


@attrs.frozen
class QueryInput:
    """Which records."""

    filter: str = setting("", "filters as in GET /api/audit/logs: actor=alice&status=500..599")
    limit: int = setting(100, "most records", ge=1, le=10_000)
    follow: bool = setting(False, "go on with what comes; over HTTP for those who accept text/event-stream")


@attrs.frozen
class QueryOutput:
    """The records that were found."""

    records: list[dict[str, Any]]
    size: int
    next: str = ""
    damaged: list[int] = attrs.field(factory=list)


@attrs.frozen
class VerifyInput:
    """What the trail is held against."""

    head: str = setting("", "file with a checkpoint of this log that was held elsewhere")
    witness: str = setting("", "verifier keys of trusted witnesses, separated by commas")
    key: str = setting("", "the log's verifier key as it was told elsewhere")
    logs_only: bool = setting(False, "do not look for private keys: this is a copy of the logs")


@attrs.frozen
class VerifyOutput:
    """What was found."""

    ok: bool
    verdict: str
    detail: str
    first_bad: int | None
    origin: str
    records: int
    signed: int
    witnessed: int
    epoch: int
    notes: list[str]


@attrs.frozen
class ProveInput:
    """Which record."""

    seq: int = setting(attrs.NOTHING, "the record's number", ge=0)


@attrs.frozen
class ProveOutput:
    """The record's exact line and its proof, as C2SP tlog-proof."""

    line: str
    proof: str


@attrs.frozen
class CheckProofInput:
    """What is checked."""

    line: str = setting(attrs.NOTHING, "file with the record's exact line")
    proof: str = setting(attrs.NOTHING, "file with the proof")
    key: str = setting(attrs.NOTHING, "the log's verifier key")
    witness: str = setting("", "verifier keys of trusted witnesses, separated by commas")


@attrs.frozen
class CheckProofOutput:
    """Whether the record is in the log."""

    ok: bool
    detail: str
    witnesses: list[str] = attrs.field(factory=list)


@attrs.frozen
class ExportInput:
    """What goes where."""

    to: str = setting(attrs.NOTHING, "the file to write; for tlog a folder")
    format: str = setting("jsonl", "how", choices=("jsonl", "csv", "ocsf", "tlog"))
    start: int = setting(0, "first record", ge=0)
    end: int = setting(-1, "record to stop before; -1: all", ge=-1)


@attrs.frozen
class ExportOutput:
    """What was written."""

    records: int
    to: str


@attrs.frozen
class SealOutput:
    """The newest checkpoint."""

    origin: str
    size: int
    epoch: int
    checkpoint: str


@attrs.frozen
class HoldInput:
    """What is held."""

    name: str = setting(attrs.NOTHING, "the hold's name", ge=1, le=128)
    first: int = setting(0, "first record that is kept", ge=0)
    last: int = setting(-1, "last record that is kept; -1: all that come too", ge=-1)
    release: bool = setting(False, "end the hold of this name")


@attrs.frozen
class HoldOutput:
    """The holds in force."""

    holds: list[dict[str, Any]]


@attrs.frozen
class PruneOutput:
    """What retention took."""

    segments: int
    first: int


@attrs.frozen
class EraseInput:
    """Who is erased."""

    subject: str = setting(attrs.NOTHING, "the subject's id, as it was recorded before it was encrypted", ge=1)


@attrs.frozen
class EraseOutput:
    """What was done."""

    handle: str
    key_destroyed: bool


@attrs.frozen
class LookupInput:
    """Who is looked up."""

    subject: str = setting(attrs.NOTHING, "a subject's id, or an encrypted one as it stands in the trail", ge=1)


@attrs.frozen
class LookupOutput:
    """How the subject may stand in the trail, or who is behind what stands there."""

    names: list[str]


@attrs.frozen
class WitnessInput:
    """Whom the witness serves."""

    name: str = setting(attrs.NOTHING, "the witness's name, as witness.example/w1", ge=1)
    logs: str = setting(attrs.NOTHING, "verifier keys of the logs, separated by commas")
    folder: str = setting(attrs.NOTHING, "where the witness keeps its key and the logs' heads")
    listen: str = setting("127.0.0.1:8013", "host:port")


@attrs.frozen
class WitnessOutput:
    """Where it served."""

    key: str


@attrs.frozen
class NewLogInput:
    """Why."""

    reason: str = setting(attrs.NOTHING, "why the old log can't go on", ge=1)


@attrs.frozen
class NewLogOutput:
    """What was done."""

    done: bool
    detail: str
