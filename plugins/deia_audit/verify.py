"""Verifies a whole trail: log, checkpoint, tiles, seals, keys, and heads that were held elsewhere.

Blocking, reads only, needs no service. It trusts nothing in the home: with no head from elsewhere the best it can
say is OK-LOCAL-ONLY. What each verdict means is in `verdict`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from deia_audit.checkpoint import Checkpoint, open_checkpoint
from deia_audit.files import no_files
from deia_audit.keys import LOG_KEY, KeyFileError, KeyFolder, epoch_file
from deia_audit.layout import LOG_NAME, Layout
from deia_audit.notes import NoteError, VerifierKey
from deia_audit.query.soundness import State, index_key, made_under, state
from deia_audit.readlog import Found, LogReading, event_of
from deia_audit.rebuilt import RebuiltTree
from deia_audit.seal import OPENED_ACTION, SEALED_ACTION, Opening, Seal, SealChain, parse_statements
from deia_audit.verdict import Verdict

_TRIES = 5
"""How often a log is read that is sealed and compressed under the reader's eyes, before what it shows is believed."""


@attrs.frozen(kw_only=True)
class Report:
    """What a verification found.

    Attributes:
        verdict: its name; `detail` says it in a sentence, with what to do.
        first_bad: the number of the first bad record, where there is one.
        records: records in the log; `first` is the number of the first one (others were pruned).
        signed: records that the local checkpoint covers; `witnessed`: those that a head from elsewhere does.
        epoch: the epoch that is open.
        notes: what else is worth knowing.
    """

    verdict: Verdict
    detail: str
    first_bad: int | None = None
    origin: str = ""
    records: int = 0
    first: int = 0
    signed: int = 0
    witnessed: int = 0
    epoch: int = 0
    notes: tuple[str, ...] = ()


def verify(
    layout: Layout,
    *,
    heads: Sequence[Checkpoint] = (),
    witness_keys: Sequence[VerifierKey] = (),
    log_key: VerifierKey | None = None,
    check_keys: bool = True,
    through: int | None = None,
    processes: int | None = None,
) -> Report:
    """Verify the trail at `layout`.

    `heads` are checkpoints of this log that were held elsewhere; `witness_keys` those of witnesses that are trusted;
    `log_key` is the log's key as it was told elsewhere (else the one in the home is taken). `check_keys` also looks
    whether the private keys are whole, which a copy of only the logs does not have. `through` stops at that many
    records, for a log that is being written. `processes` hash at the same time (default: one a core).
    """
    strange = _strange(layout, check_keys)
    if strange is not None:
        return strange
    for left in reversed(range(_TRIES)):
        verification = _Verification(layout, heads, witness_keys, log_key, check_keys, through, processes)
        report = verification.run()
        if report.verdict.ok or not left or not verification.moved():
            return report
    raise AssertionError("unreachable")


class _Verification(LogReading):
    # -- the order of questions --

    def run(self) -> Report:
        try:
            self._load_evidence()
            self._index_key = index_key(self.layout.keys, make=False) if self.check_keys else None
            indexes = _InBackground(lambda: [path for path in self._indexes() if self._damaged(path)])
            self._foreign = self._foreign_index()
            tree = self._read_log()
            self._check_size(tree)
            tree.finish()
            self._check_tree(tree)
            self._check_pruned()
            self._check_seals(tree)
            self._check_private_keys()
            self._check_heads(tree)
            self._check_indexes(indexes.result())
            if self.torn:
                raise Found(Verdict.TORN_TAIL, self.torn, self.next)
            verdict, detail = self._good()
            return self._report(verdict, detail, None)
        except Found as found:
            return self._report(found.verdict, found.detail, found.first_bad)

    def _report(self, verdict: Verdict, detail: str, first_bad: int | None) -> Report:
        return Report(
            verdict=verdict,
            detail=detail,
            first_bad=first_bad,
            origin=self.log_key.name if self.log_key is not None else "",
            records=self.next - self.first,
            first=self.first,
            signed=self.signed,
            witnessed=self.witnessed,
            epoch=self.chain.epoch if self.chain is not None else 0,
            notes=tuple(self.notes),
        )

    def _good(self) -> tuple[Verdict, str]:
        behind = self.next - self.signed
        tail = f"; {behind} records came after the last checkpoint" if behind else ""
        if self.witnessed:
            local = self.signed - self.witnessed
            rest = f"; {local} later ones by keys of this home only" if local > 0 else ""
            return Verdict.OK_WITNESSED, f"all records fit, {self.witnessed} under a head held elsewhere{rest}{tail}"
        return (
            Verdict.OK_LOCAL_ONLY,
            f"all records fit, by keys of this home only: an old copy of the whole home put back, or records since "
            f"the last hand-over changed by whoever holds the present keys, would not be seen{tail}",
        )

    # -- evidence --

    def _load_evidence(self) -> None:
        """Read key and checkpoint; what is wrong with them is kept until the log itself was looked at."""
        try:
            if self.log_key is None:
                text = self.layout.vkey.read_text()
                self.log_key = VerifierKey.parse(text)
                if text != f"{self.log_key}\n":
                    self.unsealed = f"the log's verifier key {self.layout.vkey} is not as it was written"
        except (OSError, ValueError) as error:
            self.unsealed = f"the log's verifier key {self.layout.vkey} can't be read ({_why(error)})"
            return
        try:
            data = self.layout.checkpoint.read_bytes()
            self.checkpoint = open_checkpoint(data, [self.log_key], self.log_key.name)
            if str(self.checkpoint).encode() != data:
                self.unsealed = "the checkpoint is not written as it was signed"
        except (OSError, ValueError) as error:
            self.unsealed = f"the checkpoint {self.layout.checkpoint} can't be believed ({_why(error)})"
        self._load_witnessed()

    def _load_witnessed(self) -> None:
        """Take the cosigned checkpoint as a head from elsewhere, where its witnesses are trusted."""
        if not self.witness_keys or self.log_key is None:
            return
        for path in (self.layout.witnessed, self.layout.checkpoint):
            try:
                cosigned = open_checkpoint(path.read_bytes(), [self.log_key], self.log_key.name)
                if cosigned.witnesses(self.witness_keys):
                    self.heads.append(cosigned)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                self.notes.append(f"the cosigned checkpoint {path} can't be believed ({_why(error)})")

    # -- the tree --

    def _check_size(self, tree: RebuiltTree) -> None:
        if self.unsealed:
            raise Found(Verdict.UNSEALED, f"{self.unsealed}; the {self.next - self.first} records form a whole chain")
        if self.next < self.signed:
            if tree.differs is not None:
                raise self._rewritten(tree.differs)
            raise Found(
                Verdict.TRUNCATED, f"the log ends before record {self.next}, {self.signed} were signed", self.next
            )

    def _check_tree(self, tree: RebuiltTree) -> None:
        assert self.checkpoint is not None
        same = tree.root(self.signed) == self.checkpoint.head.root
        if tree.differs is not None and not same:
            raise self._rewritten(tree.differs)
        if not same:
            raise Found(Verdict.ALTERED, *self._bounded(tree, "the records are not those that were signed"))
        if tree.bad_tiles and not self._superseded(tree.bad_tiles):
            raise Found(
                Verdict.ALTERED,
                f"the records are whole, but {len(tree.bad_tiles)} tiles are missing or damaged, the first "
                f"{tree.bad_tiles[0]}; the next start makes them anew from the log",
                tree.differs,
            )

    def _superseded(self, paths: list[str]) -> bool:
        """Whether tiles are gone because a newer checkpoint, signed meanwhile, needs other ones."""
        assert self.log_key is not None
        try:
            newer = open_checkpoint(self.layout.checkpoint.read_bytes(), [self.log_key], self.log_key.name)
        except (OSError, ValueError):
            return False
        return newer.head.size > self.signed and all(
            ".p/" in path and not (self.layout.evidence / path).exists() for path in paths
        )

    def _bounded(self, tree: RebuiltTree, what: str) -> tuple[str, int]:
        """Name the earliest record that may be bad: the last seal whose root still fits."""
        low = self.first
        for _seq, line in self.special:
            seal = _seal_in(line)
            if seal is not None and seal.size <= tree.size:
                if tree.root(seal.size) != seal.root:
                    break
                low = max(low, seal.size)
        return f"{what}; the first bad one is record {low} or a later one", low

    # -- seals and keys --

    def _check_seals(self, tree: RebuiltTree) -> None:
        assert self.checkpoint is not None
        assert self.log_key is not None
        try:
            statements = self._statements()
        except (OSError, NoteError) as error:
            raise Found(Verdict.UNSEALED, f"{self.layout.seals} can't be believed ({_why(error)})") from None
        opening = next((text for _, text in statements if isinstance(text, str)), "")
        if not opening and self.signed == 0:
            return
        try:
            chain = self.chain = SealChain(Opening.parse(opening))
            if chain.opening.log_key != self.log_key:
                raise NoteError("the log was opened under another key")
            for seq, statement in statements:
                if isinstance(statement, tuple):
                    seal = chain.add(seq, statement[0])
                    if seal.size >= self.first and tree.root(seal.size) != seal.root:
                        raise Found(
                            Verdict.ALTERED,
                            *self._bounded(tree, f"the records before the seal of epoch {seal.epoch} are not its own"),
                        )
            chain.check_head(self.checkpoint.note, self.signed)
        except NoteError as error:
            raise Found(Verdict.UNSEALED, f"the seals do not hold: {error}") from None

    def _statements(self) -> list[tuple[int, str | tuple[str]]]:
        """Return the opening (text) and the seals (1-tuples), with the number of their records, in order."""
        found: dict[int, str | tuple[str]] = {}
        for seq, line in self.special:
            event = event_of(line)
            if event.get("kind") != "system":
                continue
            opening, seal = event.get("opening"), event.get("seal")
            if event.get("action") == OPENED_ACTION and isinstance(opening, str):
                if not any(isinstance(one, str) for one in found.values()):
                    found[seq] = opening
            elif event.get("action") == SEALED_ACTION and isinstance(seal, str):
                found[seq] = (seal,)
        copies: dict[int, str | tuple[str]] = {
            one.seq: one.text if one.opening else (one.text,)
            for one in parse_statements(self.layout.seals.read_bytes())
        }
        if self.first:
            found = {**{seq: one for seq, one in copies.items() if seq < self.first}, **found}
        opening = next((one for one in found.values() if isinstance(one, str)), "")
        for seq, copy in copies.items():
            if (opening if seq < 0 else found.get(seq)) != copy and seq < self.next and self.signed:
                raise Found(Verdict.UNSEALED, f"{self.layout.seals} holds a statement that the log does not")
        for seq, one in found.items():
            if seq < self.signed and copies.get(-1 if isinstance(one, str) else seq) != one:
                raise Found(Verdict.UNSEALED, f"{self.layout.seals} lacks the statement of record {seq}")
        return sorted(found.items())

    def _check_private_keys(self) -> None:
        if not self.check_keys or self.log_key is None:
            return
        folder = KeyFolder(self.layout.keys)
        try:
            if folder.load(LOG_KEY).public_key().public_bytes_raw() != self.log_key.public:
                raise KeyFileError("the log's private key is not that of its verifier key")
            epochs = folder.epochs()
            open_epoch = self.chain.epoch if self.chain is not None else 0
            if open_epoch not in epochs:
                raise KeyFileError(f"the key of epoch {open_epoch} is missing from {folder.folder}")
            public = folder.load(epoch_file(open_epoch)).public_key().public_bytes_raw()
            if self.chain is not None and public != self.chain.keys[-1].public:
                raise KeyFileError(f"the private key of epoch {open_epoch} is not the one that was handed over to")
            if self.signed and folder.begun_origin() != self.log_key.name:
                raise KeyFileError(f"the keys in {folder.folder} say that they are of another log")
            if self._foreign:
                raise KeyFileError(
                    f"the key of the indexes is missing from {folder.folder}, or is not the one of {self._foreign}"
                )
        except PermissionError:
            self.notes.append("the private keys may not be read by this user, and were not looked at")
        except (KeyFileError, OSError) as error:
            raise Found(Verdict.UNSEALED, f"{error}; what comes next can't be sealed") from None

    def _indexes(self) -> list[Path]:
        return sorted(self.layout.index.glob("*.sqlite"))

    def _foreign_index(self) -> str:
        """Return the name of an index that is not of the key that is here, "" where there is none."""
        if not self.check_keys or not os.access(self.layout.keys, os.R_OK | os.X_OK):
            return ""
        return next((path.name for path in self._indexes() if not made_under(path, self._index_key)), "")

    def _damaged(self, path: Path) -> bool:
        """Whether an index is not as it was made; it is read whole, whatever queries found before."""
        return state(path, self._index_key, whole=True) is State.DAMAGED

    def _check_indexes(self, unsound: list[Path]) -> None:
        """An index decides nothing, but one that was changed says that somebody was here."""
        for path in unsound:
            if path.exists() and self._damaged(path):  # it may just have been made anew
                raise Found(
                    Verdict.ALTERED,
                    f"the records are whole, but the index {path.name} is not as it was made; queries make it anew",
                )

    # -- heads from elsewhere --

    def _check_heads(self, tree: RebuiltTree) -> None:
        assert self.log_key is not None
        for outside in sorted(self.heads, key=lambda one: one.head.size):
            head = outside.head
            if head.origin != self.log_key.name:
                raise Found(
                    Verdict.FORKED,
                    f"a head held elsewhere is of log {head.origin!r}, this home holds {self.log_key.name!r}, "
                    "which was begun anew",
                )
            if head.size > self.next:
                raise Found(
                    Verdict.STALE,
                    f"log and evidence end at {self.next} records, a head from elsewhere is of {head.size}: an old one",
                    self.next,
                )
            if head.size >= self.first and tree.root(head.size) != head.root:
                raise Found(
                    Verdict.FORKED,
                    *self._bounded(tree, f"a head of {head.size} records held elsewhere is of another history"),
                )
            self.witnessed = max(self.witnessed, head.size)


class _InBackground:
    """Hashes the indexes beside the log: hashing gives other threads way."""

    def __init__(self, work: Callable[[], list[Path]]) -> None:
        self._found: list[Path] = []
        self._thread = threading.Thread(target=lambda: self._found.extend(work()), daemon=True)
        self._thread.start()

    def result(self) -> list[Path]:
        self._thread.join()
        return self._found


def _strange(layout: Layout, check_keys: bool) -> Report | None:
    """Return what there is to say of what is no file where one belongs; nothing may try to read it."""
    if layout.log.is_dir():
        return Report(verdict=Verdict.ALTERED, detail=f"{layout.log} is a folder, where the live segment was")
    for path in (*no_files(layout.log.parent, LOG_NAME), *(no_files(layout.keys) if check_keys else ())):
        sealing = path.is_relative_to(layout.keys) or path.parent == layout.evidence
        return Report(
            verdict=Verdict.UNSEALED if sealing else Verdict.ALTERED,
            detail=f"{path} is a pipe, a socket or a device, where a file was",
        )
    return None


def _seal_in(line: bytes) -> Seal | None:
    event = event_of(line)
    text = event.get("seal")
    if event.get("kind") != "system" or not isinstance(text, str):
        return None
    try:
        return Seal.parse(text)[0]
    except NoteError:
        return None


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


__all__ = ["Report", "verify"]
