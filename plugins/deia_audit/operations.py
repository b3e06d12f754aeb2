"""What an operator can do with the trail: query, verify, prove, export, seal, hold, prune, new-log.

Each is one declaration for HTTP, command line and console. What reads or writes files that the caller names is for
the local socket and the shell only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import msgspec

from deia_audit import atrest, newlog, untold
from deia_audit.checkpoint import Checkpoint
from deia_audit.exporting import export
from deia_audit.holds import Hold, Holds
from deia_audit.keys import KeyFileError
from deia_audit.layout import Layout
from deia_audit.notes import NoteError, VerifierKey
from deia_audit.operation_types import (
    CheckProofInput,
    CheckProofOutput,
    EraseInput,
    EraseOutput,
    ExportInput,
    ExportOutput,
    HoldInput,
    HoldOutput,
    LookupInput,
    LookupOutput,
    NewLogInput,
    NewLogOutput,
    ProveInput,
    ProveOutput,
    PruneOutput,
    QueryInput,
    QueryOutput,
    SealOutput,
    VerifyInput,
    VerifyOutput,
    WitnessInput,
    WitnessOutput,
)
from deia_audit.proof import TlogProof, check_proof
from deia_audit.query.follow import follow
from deia_audit.query.grammar import QueryError
from deia_audit.query.search import Search
from deia_audit.tilestore import TileNodes, TileStore
from deia_audit.tree import ProofError, inclusion_proof
from deia_audit.verify import verify
from deia_audit.witness_server import Witness, WitnessServer
from deia_hardening.journal import JournalReader
from deia_hardening.plugin import Call, NoInput, Operation, Problem, Progress, Role

_FOLLOW_STEP = 0.5
"""Seconds between two looks of `query --follow`: what a person who watches a terminal takes for at once."""

T = TypeVar("T")

if TYPE_CHECKING:
    from deia_audit.plugin import AuditPlugin


def parse_keys(text: str) -> list[VerifierKey]:
    """Read verifier keys separated by commas. Raises Problem 400."""
    try:
        return [VerifierKey.parse(part) for part in text.split(",") if part.strip()]
    except NoteError as error:
        raise Problem(400, f"a verifier key can't be read: {error}") from None


def read_head(path: str) -> list[Checkpoint]:
    """Read a checkpoint that was held elsewhere. Raises Problem 400."""
    if not path:
        return []
    try:
        return [Checkpoint.parse(Path(path).read_bytes())]
    except (OSError, NoteError) as error:
        raise Problem(400, f"the head {path} can't be read: {error}") from None


def proving(layout: Layout, seq: int) -> Checkpoint:
    """Return the checkpoint that a proof of record `seq` is best made under: one that witnesses cosigned, if any."""
    newest = Checkpoint.parse(layout.checkpoint.read_bytes())
    try:
        cosigned = Checkpoint.parse(layout.witnessed.read_bytes())
    except (OSError, NoteError):
        return newest
    return cosigned if seq < cosigned.head.size <= newest.head.size else newest


def _newest(layout: Layout) -> Checkpoint | None:
    try:
        return Checkpoint.parse(layout.checkpoint.read_bytes())
    except (OSError, NoteError):
        return None


class Handlers:
    """The handlers of one app's audit operations; on the background loop."""

    def __init__(self, plugin: AuditPlugin) -> None:
        self._plugin = plugin
        self._host = plugin.host
        self._layout = Layout.of(plugin.host.home)

    @property
    def _running(self) -> bool:
        return self._plugin.logger.search is not None

    async def query(self, value: QueryInput, call: Call) -> AsyncIterator[Progress | QueryOutput]:
        limit = "" if "limit=" in value.filter else f"&limit={value.limit}"
        try:
            ask = self._plugin.logger.query
            if not self._running:
                await self._host.blocking(atrest.require_trail, self._layout)
                ask = partial(ask, at_rest=Search(self._layout, partial(_newest, self._layout)))
            page = await ask(f"{value.filter}{limit}".lstrip("&"))
            following = value.follow and call.stepwise  # one JSON answer would never come
            self._read(call, "query", followed=following)
            if following:
                async for row in follow(ask, value.filter, value.limit, self._pause):
                    yield Progress(row.line.decode())
        except QueryError as error:
            raise Problem(400, f"{error.field}: {error}", extensions={"field": error.field}) from None
        records = [msgspec.json.decode(row.line) for row in page.rows]
        yield QueryOutput(records, page.size, page.next, list(page.damaged))

    async def _pause(self) -> None:
        await self._host.clock.sleep(_FOLLOW_STEP)

    def _read(self, call: Call, how: str, **detail: bool | int) -> None:
        """Record who read the trail; over HTTP the request's own record says it."""
        if call.local and self._running:
            self._plugin.logger.system("audit.read", by=call.actor, detail={"by": how, **detail})

    async def verify(self, value: VerifyInput, call: Call) -> VerifyOutput:
        _local(call)
        heads = read_head(value.head)
        keys = parse_keys(value.witness) + self._plugin.witness_keys()
        log_key = next(iter(parse_keys(value.key)), None)
        through = None
        if self._running:
            sealer = self._plugin.keeper.sealer
            await self._host.blocking(sealer.tick)
            through = sealer.checkpoint.head.size if sealer.checkpoint is not None else None

        def work() -> VerifyOutput:
            report = verify(
                self._layout,
                heads=heads,
                witness_keys=keys,
                log_key=log_key,
                check_keys=not value.logs_only,
                through=through,
            )
            told = attrs.asdict(report)
            told.pop("first")
            return VerifyOutput(
                ok=report.verdict.ok, **{**told, "verdict": str(report.verdict), "notes": list(report.notes)}
            )

        return await self._host.blocking(work)

    async def prove(self, value: ProveInput, call: Call) -> ProveOutput:
        def work() -> ProveOutput:
            atrest.require_trail(self._layout)
            try:
                checkpoint = proving(self._layout, value.seq)
                size = checkpoint.head.size
                if value.seq >= size:
                    raise Problem(404, f"record {value.seq} is not under the checkpoint of {size} records (yet)")
                path = inclusion_proof(TileNodes(TileStore(self._layout.evidence), size), value.seq, size)
            except (OSError, NoteError, LookupError) as error:
                raise Problem(500, f"no proof can be made: {error}; `audit verify` tells more") from None
            record = JournalReader(self._layout.log).get(value.seq)
            line = record.line.decode() if record is not None else ""
            return ProveOutput(line, str(TlogProof(value.seq, tuple(path), checkpoint)))

        self._read(call, "prove", record=value.seq)
        return await self._host.blocking(work)

    async def check_proof(self, value: CheckProofInput, call: Call) -> CheckProofOutput:
        _local(call)
        keys, witnesses = parse_keys(value.key), parse_keys(value.witness)
        try:
            line = Path(value.line).read_bytes().removesuffix(b"\n")
            proof = TlogProof.parse(Path(value.proof).read_bytes())
            signed = check_proof(line, proof, keys, witnesses)
        except OSError as error:
            raise Problem(400, f"a file can't be read: {error}") from None
        except (NoteError, ProofError) as error:
            return CheckProofOutput(False, str(error))
        head = proof.checkpoint.head
        return CheckProofOutput(
            True, f"record {proof.index} is in {head.origin} at {head.size} records", [key.name for key, _ in signed]
        )

    async def export(self, value: ExportInput, call: Call) -> ExportOutput:
        _local(call)
        try:
            await self._host.blocking(atrest.require_trail, self._layout)
            return await self._host.blocking(export, self._layout, value)
        except OSError as error:
            raise Problem(400, f"nothing was exported: {error}") from None

    async def seal(self, value: NoInput, call: Call) -> SealOutput:
        return await self._host.blocking(self._at_work, call, "audit.seal", self._seal)

    def _seal(self) -> SealOutput:
        sealer = self._plugin.keeper.sealer
        sealer.seal_now()
        checkpoint = sealer.checkpoint
        if checkpoint is None or sealer.problem:
            raise Problem(500, f"the trail could not be sealed: {sealer.problem}")
        self._plugin.logger.journal.seal()
        return SealOutput(checkpoint.head.origin, checkpoint.head.size, sealer.epoch, str(checkpoint))

    def _at_work(self, call: Call, action: str, work: Callable[[], T]) -> T:
        """Do what writes the trail: in the service that runs, else with the trail for itself. Blocking."""
        if self._running:
            return work()
        atrest.require_trail(self._layout)
        try:
            with atrest.alone(self._layout):
                return self._plugin.at_rest(work, action, call.actor, call.reason)
        except atrest.InUseError:
            raise Problem(
                409, "a service has this trail open but does not answer here: call it there, or stop it first"
            ) from None

    async def hold(self, value: HoldInput, call: Call) -> HoldOutput:
        def work() -> HoldOutput:
            atrest.require_trail(self._layout)
            holds = Holds(self._layout.evidence)
            if value.release:
                if not holds.remove(value.name):
                    raise Problem(404, f"there is no hold called {value.name!r}")
            else:
                last = None if value.last < 0 else value.last
                holds.put(Hold(value.name, value.first, last, call.reason, f"{call.actor.type}:{call.actor.id}"))
            if not self._running:
                self._untold("audit.hold", call, {"type": "hold", "id": value.name}, release=value.release)
            return HoldOutput([attrs.asdict(one) for one in holds.all()])

        return await self._host.blocking(work)

    async def prune(self, value: NoInput, call: Call) -> PruneOutput:
        return await self._host.blocking(self._at_work, call, "audit.prune", self._prune)

    def _prune(self) -> PruneOutput:
        reader = JournalReader(self._layout.log)
        before = len(reader.segments())
        self._plugin.logger.journal.maintain()
        left = reader.segments()
        return PruneOutput(before - len(left), left[0].first if left else 0)

    async def erase(self, value: EraseInput, call: Call) -> EraseOutput:
        subjects = self._plugin.logger.subjects
        await self._host.blocking(atrest.require_trail, self._layout)
        destroyed = await self._host.blocking(subjects.erase, value.subject)
        self._plugin.logger.assembler.reset()
        handle = await self._host.blocking(subjects.handle, value.subject)
        target = {"type": "subject", "id": handle}
        if self._running:
            await self._plugin.logger.tell_erased(handle)
            self._plugin.logger.system("audit.erased", target=target, by=call.actor)
        else:
            await self._host.blocking(self._untold, "audit.erased", call, target)
        return EraseOutput(handle, destroyed)

    def _untold(self, action: str, call: Call, target: dict[str, str], **detail: bool) -> None:
        """Have the next start record what was done without a service."""
        members = {"target": target, "detail": detail, **({"reason": call.reason} if call.reason else {})}
        untold.keep(self._layout, action, call.actor, self._host.clock.wall(), **members)

    async def lookup(self, value: LookupInput, call: Call) -> LookupOutput:
        logger = self._plugin.logger

        def work() -> LookupOutput:
            atrest.require_trail(self._layout)
            if value.subject.startswith("e:"):
                try:
                    return LookupOutput([logger.subjects.decrypt(value.subject)])
                except ValueError as error:
                    raise Problem(400, str(error)) from None
            return LookupOutput(logger.shown(value.subject))

        return await self._host.blocking(work)

    async def witness(self, value: WitnessInput, call: Call) -> AsyncIterator[Progress | WitnessOutput]:
        _local(call)
        host, _, port = value.listen.rpartition(":")
        if not port.isdecimal() or len(port) > 5 or int(port) > 65_535:
            raise Problem(400, "listen is written host:port")
        logs, folder = parse_keys(value.logs), Path(value.folder)
        try:
            witness = await self._host.blocking(Witness, folder, value.name, logs, self._host.clock.wall)
            server = WitnessServer(witness, self._host.blocking)
            await server.start(host or "127.0.0.1", int(port))
        except (OSError, KeyFileError, NoteError) as error:
            raise Problem(400, f"the witness can't serve: {error}") from None
        key = str(witness.signer.verifier)
        try:
            yield Progress(f"witness {key} serves on http://{host}:{server.port}/add-checkpoint")
            while server.serving:
                await self._host.clock.sleep(1)
        finally:
            await server.close()
        yield WitnessOutput(key)

    async def new_log(self, value: NewLogInput, call: Call) -> NewLogOutput:
        def work() -> NewLogOutput:
            atrest.require_trail(self._layout)
            try:
                if self._running:
                    raise atrest.InUseError
                with atrest.alone(self._layout), newlog.exclusively(self._layout):
                    folder = newlog.set_aside(self._layout, value.reason, self._host.clock.wall())
            except atrest.InUseError:
                newlog.request(self._layout, value.reason)
                return NewLogOutput(
                    False, "the next start sets this log aside and begins a new one; until then it goes on"
                )
            return NewLogOutput(
                True, f"the old log is in {folder}; the next start begins a new one that names its head"
            )

        return await self._host.blocking(work)


def _local(call: Call) -> None:
    if not call.local:
        raise Problem(403, "this reads or writes files that the caller names: use the command line on this machine")


def operations(plugin: AuditPlugin) -> Sequence[Operation]:
    """Return the audit plugin's operations."""
    do = Handlers(plugin)
    reading = [
        Operation(
            name="audit.query", summary="Find records of the trail.", role=Role.VIEWER, handler=do.query,
            input=QueryInput, output=QueryOutput, changes=False, offline=True,
        ),
        Operation(
            name="audit.verify", summary="Check the whole trail; says what is wrong and where it begins.",
            role=Role.VIEWER, handler=do.verify, input=VerifyInput, output=VerifyOutput, changes=False, offline=True,
            local=True,
        ),
        Operation(
            name="audit.prove", summary="A proof that a record is in the trail, to be checked offline.",
            role=Role.VIEWER, handler=do.prove, input=ProveInput, output=ProveOutput, changes=False, offline=True,
        ),
        Operation(
            name="audit.check-proof", summary="Check such a proof; needs no service and no home.", role=Role.VIEWER,
            handler=do.check_proof, input=CheckProofInput, output=CheckProofOutput, changes=False, offline=True,
            local=True,
        ),
    ]  # fmt: skip
    changing = [
        Operation(
            name="audit.export", summary="Write records as JSON lines, CSV, OCSF or a static tlog.", role=Role.ADMIN,
            handler=do.export, input=ExportInput, output=ExportOutput, offline=True, local=True,
        ),
        Operation(
            name="audit.seal", summary="Make a checkpoint, hand over to a new key, close the segment.",
            role=Role.OPERATOR, handler=do.seal, output=SealOutput, offline=True,
        ),
        Operation(
            name="audit.hold", summary="Keep records from retention, or end a hold.", role=Role.ADMIN, handler=do.hold,
            input=HoldInput, output=HoldOutput, offline=True,
        ),
        Operation(
            name="audit.prune", summary="Let retention take what the settings let go, except under hold.",
            role=Role.ADMIN, handler=do.prune, output=PruneOutput, offline=True,
        ),
        Operation(
            name="audit.erase", summary="Destroy a subject's key: what it encrypted can't be read any more.",
            role=Role.ADMIN, handler=do.erase, input=EraseInput, output=EraseOutput, offline=True,
            confirm="The subject's key is destroyed for good. Go on?",
        ),
        Operation(
            name="audit.lookup", summary="How a subject stands in the trail, or who is behind a name there.",
            role=Role.ADMIN, handler=do.lookup, input=LookupInput, output=LookupOutput, local=True, offline=True,
        ),
        Operation(
            name="audit.witness", summary="Serve a witness for logs of others, until it is interrupted.",
            role=Role.ADMIN, handler=do.witness, input=WitnessInput, output=WitnessOutput, offline=True, local=True,
        ),
        Operation(
            name="audit.new-log", summary="Begin a new log after the old one was lost or damaged.", role=Role.ADMIN,
            handler=do.new_log, input=NewLogInput, output=NewLogOutput, offline=True, local=True,
            confirm="The old log is set aside and a new origin begins. Go on?",
        ),
    ]  # fmt: skip
    every = chain(reading, changing)
    return [attrs.evolve(one, handler=atrest.plainly(one.handler)) for one in every]
