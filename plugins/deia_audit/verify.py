"""Verifies a whole trail: log, checkpoint, tiles, seals, keys, and heads that were held elsewhere.

Blocking, reads only, needs no service. It trusts nothing in the home: with no head from elsewhere the best it can
say is OK-LOCAL-ONLY. What each verdict means is in `verdict`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import msgspec

from deia_audit.checkpoint import Checkpoint, open_checkpoint
from deia_audit.keys import LOG_KEY, KeyFileError, KeyFolder, epoch_file
from deia_audit.layout import Layout
from deia_audit.notes import NoteError, VerifierKey
from deia_audit.query.index import sound
from deia_audit.rebuilt import RebuiltTree
from deia_audit.scan import Part
from deia_audit.seal import OPENED_ACTION, SEALED_ACTION, Opening, Seal, SealChain
from deia_audit.tiles import TILE_WIDTH, Tile
from deia_audit.tilestore import TileError, TileNodes, TileStore
from deia_audit.tree import HASH_SIZE
from deia_audit.verdict import WINDOW, Line, Verdict, classify, find_bad
from deia_audit.walk import Piece, walk
from deia_hardening.journal import JournalReader, Segment, leaf_hash
from deia_hardening.journal.lines import GENESIS, parse_header, parse_prefix
from deia_hardening.journal.reader import SegmentText


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


class _Found(Exception):  # noqa: N818 - it carries a verdict up, it is no error
    """The first thing that is wrong ends the search for others."""

    def __init__(self, verdict: Verdict, detail: str, first_bad: int | None = None) -> None:
        self.verdict = verdict
        self.detail = detail
        self.first_bad = first_bad


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
    return _Verification(layout, heads, witness_keys, log_key, check_keys, through, processes).run()


class _Verification:
    def __init__(
        self,
        layout: Layout,
        heads: Sequence[Checkpoint],
        witness_keys: Sequence[VerifierKey],
        log_key: VerifierKey | None,
        check_keys: bool,
        through: int | None,
        processes: int | None,
    ) -> None:
        self.layout = layout
        self.heads = list(heads)
        self.witness_keys = witness_keys
        self.log_key = log_key
        self.check_keys = check_keys
        self.through = through
        self.processes = processes
        self.store = TileStore(layout.evidence)
        self.reader = JournalReader(layout.log)
        self.notes: list[str] = []
        self.checkpoint: Checkpoint | None = None
        self.unsealed = ""
        self.first = self.next = 0
        self.last_leaf: bytes | None = None
        self.synced = -1
        self.special: list[tuple[int, bytes]] = []
        self.torn: str = ""
        self.chain: SealChain | None = None
        self.witnessed = 0
        self.header_origin = ""

    # -- the order of questions --

    def run(self) -> Report:
        try:
            self._load_evidence()
            tree = self._read_log()
            self._check_size(tree)
            tree.finish()
            self._check_tree(tree)
            self._check_pruned()
            self._check_seals(tree)
            self._check_private_keys()
            self._check_heads(tree)
            self._check_indexes()
            if self.torn:
                raise _Found(Verdict.TORN_TAIL, self.torn, self.next)
            verdict, detail = self._good()
            return self._report(verdict, detail, None)
        except _Found as found:
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

    @property
    def signed(self) -> int:
        return self.checkpoint.head.size if self.checkpoint is not None else 0

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
                self.log_key = VerifierKey.parse(self.layout.vkey.read_text())
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

    # -- the log --

    def _read_log(self) -> RebuiltTree:
        segments = self.reader.segments()
        if not segments:
            if self.signed:
                raise _Found(Verdict.TRUNCATED, f"the log is gone; {self.signed} records were signed", 0)
            if self.unsealed:
                raise _Found(Verdict.UNSEALED, f"there is no log, and {self.unsealed}")
        self.first = self.next = max(segments[0].first, 0) if segments else 0
        sizes = {self.signed, *(head.head.size for head in self.heads)}
        tree = RebuiltTree(self.store, self.signed, sizes, self._reread)
        if self.first:
            self._take_pruned(tree)
        failed: list[tuple[Segment, str]] = []
        pieces = walk(segments, processes=self.processes, on_error=lambda *what: failed.append(what))
        previous: Segment | None = None
        try:
            for piece, part in pieces:
                if piece.header is not None:
                    self.header_origin = self._check_header(piece, previous, self.header_origin)
                    previous = piece.segment
                if self.through is not None and self.next >= self.through:
                    break
                self._take(piece, part, tree, last=piece.segment is segments[-1])
                if self.torn:
                    break
        finally:
            pieces.close()  # type: ignore[attr-defined]
        if failed:
            segment, why = failed[0]
            raise _Found(Verdict.ALTERED, f"segment {segment.path.name} can't be read: {why}", self.next)
        return tree

    def _take_pruned(self, tree: RebuiltTree) -> None:
        """Put the tiles in the place of the records that retention took."""
        try:
            nodes = TileNodes(self.store, self.signed)
            leaves = b"".join(nodes.leaf(index) for index in range(self.first))
        except LookupError as error:
            raise _Found(
                Verdict.TRUNCATED, f"records 0 to {self.first - 1} are gone, and of their tiles {error}", 0
            ) from None
        tree.add_stored(leaves)
        self.last_leaf = leaves[-HASH_SIZE:]

    def _check_header(self, piece: Piece, previous: Segment | None, origin: str) -> str:
        """Check a segment's header against the chain, and return the origin that it names."""
        header = parse_header(piece.header or b"")
        name = piece.segment.path.name
        if header is None:
            if (piece.segment.live and piece.segment.size == 0) or (not piece.header and piece.torn):
                self.torn = f"the segment {name} was torn as it was begun"
                return origin
            raise _Found(Verdict.ALTERED, f"the header of segment {name} is not as it was written", self.next)
        wanted = GENESIS if self.last_leaf is None else self.last_leaf.hex().encode()
        fits = header.first == self.next and header.prev.encode() == wanted and header.segment == piece.segment.number
        if not fits or (origin and header.origin != origin):
            if previous is not None and header.first > self.next:
                raise _Found(
                    Verdict.TRUNCATED, f"records {self.next} to {header.first - 1} are missing before {name}", self.next
                )
            if (
                header.first == self.next
                and header.segment == piece.segment.number
                and header.origin == (origin or header.origin)
            ):
                raise self._name_bad(piece, [])
            raise _Found(Verdict.ALTERED, f"the header of segment {name} does not continue the chain", self.next)
        return header.origin

    def _take(self, piece: Piece, part: Part, tree: RebuiltTree, *, last: bool) -> None:
        if part.error:
            raise _Found(Verdict.ALTERED, *self._unreadable(piece, part.error))
        if part.count:
            before = GENESIS if self.last_leaf is None else self.last_leaf.hex().encode()
            if part.bad >= 0 or part.first != self.next or part.first_prev != before:
                raise self._name_bad(piece, self._lines_from(piece))
            self.special += [(self.next + place, line) for place, line in part.special]
            self.synced = max(self.synced, part.synced)
            tree.add(part)
            self.next += part.count
            self.last_leaf = part.leaves[-HASH_SIZE:]
            if part.special and self._other_origin(part.special[0]):
                raise _Found(Verdict.ALTERED, "the header of the first segment is not as it was written", 0)
        if piece.torn:
            if not last or not piece.segment.live or piece.segment.compressed:
                raise _Found(
                    Verdict.ALTERED, f"the sealed segment {piece.segment.path.name} does not end with a line", self.next
                )
            self.torn = f"the last line, record {self.next}, has no end ({len(piece.torn)} bytes)"

    def _other_origin(self, special: tuple[int, bytes]) -> bool:
        """Whether record 0, which binds the journal's origin into the chain, names another one than the headers."""
        event = _event(special[1])
        return (
            event.get("kind") == "journal.created"
            and event.get("seq") == 0
            and event.get("origin") != self.header_origin
        )

    def _check_pruned(self) -> None:
        """What is gone at the beginning must have been taken by retention, which says so in the log itself."""
        if not self.first:
            return
        for _seq, line in self.special:
            event = _event(line)
            if event.get("kind") == "journal.pruned" and event.get("through") == self.first - 1:
                return
        raise _Found(
            Verdict.TRUNCATED, f"records 0 to {self.first - 1} are gone, and no record says that they were pruned", 0
        )

    def _unreadable(self, piece: Piece, error: str) -> tuple[str, int]:
        """Find the first record of a range that can't be read."""
        seq = self.next
        try:
            with SegmentText(piece.segment) as text:
                at = piece.task.start
                while chunk := text.read(at, 1 << 16):
                    seq += chunk.count(b"\n")
                    at += len(chunk)
        except (OSError, ValueError):
            pass
        return f"segment {piece.segment.path.name} can't be read from record {seq} on: {error}", seq

    # -- naming what is wrong --

    def _lines_from(self, piece: Piece) -> list[bytes]:
        """Return the lines from a bad range on, over segments, as many as naming the damage may need."""
        lines: list[bytes] = []
        segments = [one for one in self.reader.segments() if one.number >= piece.segment.number]
        for segment in segments:
            with SegmentText(segment) as text:
                at = piece.task.start if segment.number == piece.segment.number else None
                if at is None:
                    at = len(text.read(0, 1 << 16).partition(b"\n")[0]) + 1
                rest = b""
                while chunk := text.read(at, 1 << 20):
                    at += len(chunk)
                    found = (rest + chunk).split(b"\n")
                    rest = found.pop()
                    lines += found
                    if self._enough(lines):
                        return lines
                if rest:
                    lines.append(rest)
        return lines

    def _enough(self, lines: list[bytes]) -> bool:
        return len(lines) > (8 << 20) // 100 + 2 * WINDOW

    def _name_bad(self, piece: Piece, raw: list[bytes]) -> _Found:
        """Say what happened in a range that does not continue the chain."""
        raw = raw or self._lines_from(piece)
        facts = []
        for line in raw:
            prefix = parse_prefix(line)
            known = prefix is not None and line.endswith(b"}")
            facts.append(
                Line(
                    prefix.seq if prefix is not None and known else None,
                    bytes.fromhex(prefix.prev.decode()) if prefix is not None and known else None,
                    leaf_hash(line),
                )
            )
        expected = self._expected
        place = find_bad(facts, self.next, self.last_leaf or bytes(HASH_SIZE), expected)
        if place is None:
            return _Found(Verdict.ALTERED, f"a record from {self.next} on does not continue the chain", self.next)
        if self._torn_at(self.next + place, raw[place:]):
            self.next += place
            self.last_leaf = facts[place - 1].leaf if place else self.last_leaf
            return _Found(
                Verdict.TORN_TAIL, f"the log is torn at record {self.next}, behind what was on disk", self.next
            )
        verdict, seq = classify(facts, self.next, place, self.last_leaf, expected)
        what = {
            Verdict.ALTERED: "is not as it was written",
            Verdict.INSERTED: "stands where none was written",
            Verdict.REORDERED: "stands in another order than it was written",
            Verdict.TRUNCATED: "is missing",
        }[verdict]
        return _Found(verdict, f"record {seq} {what}", seq)

    def _torn_at(self, seq: int, raw: list[bytes]) -> bool:
        """Whether what begins at `seq` is what a power cut leaves: not known to be on disk, and never written whole."""
        claimed = self.synced
        for line in raw:
            prefix = parse_prefix(line)
            if prefix is not None and prefix.synced is not None:
                claimed = max(claimed, prefix.synced)
        known = max([self.signed, claimed + 1, *(head.head.size for head in self.heads)])
        return seq >= known and (b"\0" in raw[0] or not raw[0].endswith(b"}"))

    def _expected(self, seq: int) -> bytes | None:
        """The stored leaf hash of a record, where a tile of the signed tree has one."""
        if seq >= self.signed:
            return None
        index, place = divmod(seq, TILE_WIDTH)
        width = min(TILE_WIDTH, self.signed - index * TILE_WIDTH)
        try:
            return self.store.read(Tile(0, index, width))[place * HASH_SIZE : (place + 1) * HASH_SIZE]
        except (TileError, OSError):
            return None

    def _rewritten(self, seq: int) -> _Found:
        return _Found(
            Verdict.ALTERED,
            f"record {seq} is not the one whose hash was stored; the chain behind it was made anew",
            seq,
        )

    # -- the tree --

    def _check_size(self, tree: RebuiltTree) -> None:
        if self.unsealed:
            raise _Found(Verdict.UNSEALED, f"{self.unsealed}; the {self.next - self.first} records form a whole chain")
        if self.next < self.signed:
            if tree.differs is not None:
                raise self._rewritten(tree.differs)
            raise _Found(
                Verdict.TRUNCATED, f"the log ends before record {self.next}, {self.signed} were signed", self.next
            )

    def _check_tree(self, tree: RebuiltTree) -> None:
        assert self.checkpoint is not None
        same = tree.root(self.signed) == self.checkpoint.head.root
        if tree.differs is not None and not same:
            raise self._rewritten(tree.differs)
        if not same:
            raise _Found(Verdict.ALTERED, *self._bounded(tree, "the records are not those that were signed"))
        if tree.bad_tiles:
            raise _Found(
                Verdict.ALTERED,
                f"the records are whole, but {len(tree.bad_tiles)} tiles are missing or damaged, the first "
                f"{tree.bad_tiles[0]}; the next start makes them anew from the log",
                tree.differs,
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

    def _reread(self, index: int) -> bytes:
        return b"".join(
            leaf_hash(record.line) for record in self.reader.records(index * TILE_WIDTH, (index + 1) * TILE_WIDTH)
        )

    # -- seals and keys --

    def _check_seals(self, tree: RebuiltTree) -> None:
        assert self.checkpoint is not None
        assert self.log_key is not None
        try:
            statements = self._statements()
        except (OSError, msgspec.DecodeError) as error:
            raise _Found(Verdict.UNSEALED, f"{self.layout.seals} can't be read ({_why(error)})") from None
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
                        raise _Found(
                            Verdict.ALTERED,
                            *self._bounded(tree, f"the records before the seal of epoch {seal.epoch} are not its own"),
                        )
            chain.check_head(self.checkpoint.note, self.signed)
        except NoteError as error:
            raise _Found(Verdict.UNSEALED, f"the seals do not hold: {error}") from None

    def _statements(self) -> list[tuple[int, str | tuple[str]]]:
        """Return the opening (text) and the seals (1-tuples), with the number of their records, in order."""
        found: dict[int, str | tuple[str]] = {}
        for seq, line in self.special:
            event = _event(line)
            if event.get("kind") != "system":
                continue
            opening, seal = event.get("opening"), event.get("seal")
            if event.get("action") == OPENED_ACTION and isinstance(opening, str):
                if not any(isinstance(one, str) for one in found.values()):
                    found[seq] = opening
            elif event.get("action") == SEALED_ACTION and isinstance(seal, str):
                found[seq] = (seal,)
        copies: dict[int, str | tuple[str]] = {}
        for line in self.layout.seals.read_bytes().splitlines():
            entry = msgspec.json.decode(line, type=dict)
            if "opening" in entry:
                copies[-1] = str(entry["opening"])
            else:
                copies[int(entry["seq"])] = (str(entry["seal"]),)
        if self.first:
            found = {**{seq: one for seq, one in copies.items() if seq < self.first}, **found}
        written = {one if isinstance(one, str) else one[0] for one in found.values()}
        for seq, copy in copies.items():
            text = copy if isinstance(copy, str) else copy[0]
            if text not in written and seq < self.next and self.signed:
                raise _Found(Verdict.UNSEALED, f"{self.layout.seals} holds a statement that the log does not")
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
        except PermissionError:
            self.notes.append("the private keys may not be read by this user, and were not looked at")
        except KeyFileError as error:
            raise _Found(Verdict.UNSEALED, f"{error}; what comes next can't be sealed") from None

    def _check_indexes(self) -> None:
        """An index decides nothing, but one that was changed says that somebody was here."""
        for path in sorted(self.layout.index.glob("*.sqlite")):
            if not sound(path):
                raise _Found(
                    Verdict.ALTERED,
                    f"the records are whole, but the index {path.name} is not as it was made; queries make it anew",
                )

    # -- heads from elsewhere --

    def _check_heads(self, tree: RebuiltTree) -> None:
        assert self.log_key is not None
        for outside in sorted(self.heads, key=lambda one: one.head.size):
            head = outside.head
            if head.origin != self.log_key.name:
                raise _Found(
                    Verdict.FORKED,
                    f"a head held elsewhere is of log {head.origin!r}, this home holds {self.log_key.name!r}, "
                    "which was begun anew",
                )
            if head.size > self.next:
                raise _Found(
                    Verdict.STALE,
                    f"log and evidence end at {self.next} records, a head from elsewhere is of {head.size}: an old one",
                    self.next,
                )
            if head.size >= self.first and tree.root(head.size) != head.root:
                raise _Found(
                    Verdict.FORKED,
                    *self._bounded(tree, f"a head of {head.size} records held elsewhere is of another history"),
                )
            self.witnessed = max(self.witnessed, head.size)


def _event(line: bytes) -> dict[str, object]:
    try:
        found = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _seal_in(line: bytes) -> Seal | None:
    event = _event(line)
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
