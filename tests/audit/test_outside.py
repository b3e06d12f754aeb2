"""A verifier written from the specifications alone reads what this log publishes: no code of the log is used to check.

Sources: C2SP signed-note, tlog-checkpoint, tlog-tiles, tlog-proof, tlog-cosignature and tlog-witness; RFC 6962 section
2.1 for the tree.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from deia_audit.checkpoint import TreeHead, sign_checkpoint
from deia_audit.export import COLUMNS
from deia_audit.exporting import export
from deia_audit.notes import Signer, VerifierKey
from deia_audit.operation_types import ExportInput
from deia_audit.operations import proving
from deia_audit.proof import TlogProof
from deia_audit.staticlog import export_tlog
from deia_audit.tilestore import TileNodes, TileStore
from deia_audit.tree import inclusion_proof
from deia_audit.witness_client import WitnessClient
from deia_audit.witness_server import Witness
from deia_hardening.journal import JournalReader, JournalSettings
from deia_hardening.settings import Bytes

RECORDS = 700

# -- the verifier ------------------------------------------------------------------------------------------------------


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1: the Merkle tree hash, by its definition."""
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha(b"\x01" + mth(leaves[:k]) + mth(leaves[k:]))


class OutsideKey:
    """signed-note: `name+id+base64(type || key)`."""

    def __init__(self, vkey: str) -> None:
        self.name, hexid, encoded = vkey.split("+", 2)
        data = base64.b64decode(encoded, validate=True)
        self.type, public = data[0], data[1:]
        self.id = sha(self.name.encode() + b"\n" + data)[:4]
        assert self.id.hex() == hexid
        self.key = Ed25519PublicKey.from_public_bytes(public)


def open_note(note: bytes, keys: list[OutsideKey]) -> tuple[str, dict[str, int]]:
    """The text, and who of `keys` signed it (with the time of a cosignature)."""
    assert not any(byte < 0x20 and byte != 0x0A for byte in note)
    text, _, signatures = note.decode("utf-8").rpartition("\n\n")
    text += "\n"
    assert signatures.endswith("\n")
    found: dict[str, int] = {}
    for line in signatures[:-1].split("\n"):
        dash, name, encoded = line.split(" ")
        assert dash == "\u2014"
        blob = base64.b64decode(encoded, validate=True)
        for key in keys:
            if (key.name, key.id) == (name, blob[:4]):
                if key.type == 1:
                    key.key.verify(blob[4:], text.encode())
                    found[name] = 0
                else:
                    assert key.type == 4
                    (when,) = struct.unpack(">Q", blob[4:12])
                    assert len(blob) == 76
                    key.key.verify(blob[12:], f"cosignature/v1\ntime {when}\n{text}".encode())
                    found[name] = when
    return text, found


def checkpoint_of(note: bytes, keys: list[OutsideKey]) -> tuple[str, int, bytes]:
    text, signed = open_note(note, keys)
    origin, size, root, *extensions = text[:-1].split("\n")
    assert not extensions
    assert origin in signed
    assert str(int(size)) == size
    return origin, int(size), base64.b64decode(root, validate=True)


def path_of(index: int) -> str:
    digits = f"{index:03d}"
    while len(digits) % 3:
        digits = "0" + digits
    parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    return "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])


def bundle(folder: Path, index: int, width: int) -> list[bytes]:
    suffix = "" if width == 256 else f".p/{width}"
    data = (folder / "tile" / "entries" / (path_of(index) + suffix)).read_bytes()
    found = []
    while data:
        (length,) = struct.unpack(">H", data[:2])
        found.append(data[2 : 2 + length])
        assert len(found[-1]) == length
        data = data[2 + length :]
    assert len(found) == width
    return found


def verify_static(folder: Path, vkey: str) -> tuple[int, list[bytes]]:
    """Check a static log as a monitor would: signature, every tile of every level, every entry, the root."""
    _, size, root = checkpoint_of((folder / "checkpoint").read_bytes(), [OutsideKey(vkey)])
    entries = []
    for index in range(-(-size // 256)):
        entries += bundle(folder, index, min(256, size - index * 256))
    leaves = [sha(b"\x00" + entry) for entry in entries]
    assert mth(leaves) == root
    level, span = 0, 1
    while size // span:
        count = size // span
        for index in range(-(-count // 256)):
            width = min(256, count - index * 256)
            suffix = "" if width == 256 else f".p/{width}"
            tile = (folder / "tile" / str(level) / (path_of(index) + suffix)).read_bytes()
            starts = range(index * 256 * span, (index * 256 + width) * span, span)
            assert tile == b"".join(mth(leaves[at : at + span]) for at in starts)
        level, span = level + 1, span * 256
    return size, leaves


def verify_tlog_proof(text: str, entry: bytes, keys: list[OutsideKey]) -> int:
    """tlog-proof, with RFC 6962's audit path walked from its definition."""
    head, _, note = text.partition("\n\n")
    first, *lines = head.split("\n")
    assert first == "c2sp.org/tlog-proof@v1"
    if lines[0].startswith("extra "):
        del lines[0]
    index = int(lines[0].removeprefix("index "))
    _, size, root = checkpoint_of(note.encode(), keys)

    def climb(m: int, n: int, path: list[bytes]) -> bytes:
        if n == 1:
            assert not path
            return sha(b"\x00" + entry)
        k = 1
        while k * 2 < n:
            k *= 2
        if m < k:
            return sha(b"\x01" + climb(m, k, path[:-1]) + path[-1])
        return sha(b"\x01" + path[-1] + climb(m - k, n - k, path[:-1]))

    assert climb(index, size, [base64.b64decode(line, validate=True) for line in lines[1:]]) == root
    return index


# -- what it is run against --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    made = request.getfixturevalue("trail_class")(tmp_path_factory.mktemp("outside") / "home", epoch=300)
    made.heads = []
    for start in range(0, RECORDS, 100):
        made.add(100, start)
        made.heads.append(str(made.sealer.checkpoint).encode())
    made.journal.append_body(b'"kind":"test","text":"' + b"x" * 65_000 + b'"')  # the longest that a journal takes
    made.add(1, RECORDS)
    yield made
    made.close()


def test_the_static_log_verifies_with_its_longest_entry(trail: Any, tmp_path: Path) -> None:
    export(trail.layout, ExportInput(to=str(tmp_path / "log"), format="tlog"))
    size, leaves = verify_static(tmp_path / "log", trail.layout.vkey.read_text().strip())
    assert size == trail.sealer.checkpoint.head.size
    key = OutsideKey(trail.layout.vkey.read_text().strip())
    for head in trail.heads:  # every checkpoint is one history, and its tiles are there
        _, old, root = checkpoint_of(head, [key])
        assert mth(leaves[:old]) == root
        if old % 256:
            full, partial = tmp_path / f"log/tile/0/{path_of(old // 256)}", f".p/{old % 256}"
            assert full.exists() or Path(f"{full}{partial}").exists()


def test_a_changed_entry_fails_the_outside_verifier(trail: Any, tmp_path: Path) -> None:
    export(trail.layout, ExportInput(to=str(tmp_path / "log"), format="tlog"))
    path = tmp_path / "log/tile/entries/000"
    path.write_bytes(path.read_bytes().replace(b'"number":7,', b'"number":8,'))
    with pytest.raises(AssertionError):
        verify_static(tmp_path / "log", trail.layout.vkey.read_text().strip())
    note = (tmp_path / "log/checkpoint").read_bytes()
    with pytest.raises(InvalidSignature):
        checkpoint_of(note.replace(b"\n7", b"\n6", 1), [OutsideKey(trail.layout.vkey.read_text().strip())])


@pytest.mark.parametrize("seq", [0, 1, 255, 256, 511, RECORDS - 1])
def test_a_proof_convinces_the_outside_verifier(trail: Any, seq: int) -> None:
    checkpoint = proving(trail.layout, seq)
    size = checkpoint.head.size
    path = inclusion_proof(TileNodes(TileStore(trail.layout.evidence), size), seq, size)
    line = trail.lines()[seq]
    keys = [OutsideKey(trail.layout.vkey.read_text().strip())]
    assert verify_tlog_proof(str(TlogProof(seq, tuple(path), checkpoint)), line, keys) == seq
    with pytest.raises(AssertionError):
        verify_tlog_proof(str(TlogProof(seq, tuple(path), checkpoint)), line + b" ", keys)


def test_a_cosigned_proof_names_its_witness_to_the_outside_verifier(trail: Any, tmp_path: Path) -> None:
    log = VerifierKey.parse(trail.layout.vkey.read_text())
    witness = Witness(tmp_path / "witness", "witness.example/w1", [log], lambda: 1_700_000_000.0)
    client = WitnessClient(trail.layout, [(witness.signer.verifier, "http://unused.example")], 1.0)

    def post(url: str, body: bytes) -> tuple[int, bytes]:
        answer = witness.answer(body)
        return answer.status, answer.body

    client._post = post  # type: ignore[method-assign]
    client.submit(trail.sealer.checkpoint)
    assert not client.problems
    checkpoint = proving(trail.layout, 3)
    keys = [OutsideKey(str(log)), OutsideKey(str(witness.signer.verifier))]
    _, signed = open_note(str(checkpoint).encode(), keys)
    assert signed["witness.example/w1"] == 1_700_000_000
    size = checkpoint.head.size
    path = inclusion_proof(TileNodes(TileStore(trail.layout.evidence), size), 3, size)
    assert verify_tlog_proof(str(TlogProof(3, tuple(path), checkpoint)), trail.lines()[3], keys) == 3


def test_workers_that_submit_out_of_turn_are_no_alarm_and_take_no_cosignature_back(
    make_trail: Callable[..., Any], tmp_path: Path
) -> None:
    trail = make_trail()
    trail.add(5)
    older = trail.sealer.checkpoint
    trail.add(5)
    newer = trail.sealer.checkpoint
    log = VerifierKey.parse(trail.layout.vkey.read_text())
    witness = Witness(tmp_path / "witness", "witness.example/w1", [log], lambda: 1_700_000_000.0)
    post = lambda url, body: ((answer := witness.answer(body)).status, answer.body)  # noqa: E731
    one, other = (
        WitnessClient(trail.layout, [(witness.signer.verifier, "http://unused.example")], 1.0) for _ in range(2)
    )
    one._post = other._post = post  # type: ignore[method-assign]
    one.submit(newer)
    cosigned = trail.layout.witnessed.read_bytes()
    other.submit(older)
    assert not other.problems
    assert trail.layout.witnessed.read_bytes() == cosigned
    trail.layout.checkpoint.write_text(str(older))  # the home is an old copy: now it is one
    other.submit(older)
    assert "has seen another tree" in other.problems["witness.example/w1"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda body: body, 200),
        (lambda body: body.replace(b"old 0", b"old 00"), 400),
        (lambda body: body.replace(b"old 0\n", b"old 0\n" + base64.b64encode(bytes(32)) + b"\n"), 422),
        (lambda body: body.replace(b"old 0", b"old 5"), 409),
        (lambda body: body.replace(b"old 0", b"old 99999"), 400),
        (lambda body: body.replace(b"test.example", b"else.example"), 404),
        (lambda body: body[: body.rindex(b"\xe2\x80\x94")][: body.index(b"\n\n") + 2] + b"x", 400),
    ],
)
def test_a_witness_answers_as_the_specification_says(
    trail: Any, tmp_path: Path, change: Callable[[bytes], bytes], status: int
) -> None:
    log = VerifierKey.parse(trail.layout.vkey.read_text())
    witness = Witness(tmp_path / "witness", "witness.example/w1", [log], lambda: 1_700_000_000.0)
    body = b"old 0\n\n" + str(trail.sealer.checkpoint).encode()
    answer = witness.answer(change(body))
    assert answer.status == status, answer
    if status == 409:
        assert (answer.body, answer.content_type) == (b"0\n", "text/x.tlog.size")
    if status == 200:
        again = witness.answer(body)
        size = trail.sealer.checkpoint.head.size
        assert (again.status, again.body) == (409, f"{size}\n".encode())
        forged = str(trail.sealer.checkpoint).replace("\n— ", "\n— x", 1).encode()
        assert witness.answer(b"old %d\n\n" % size + forged).status == 403


def test_a_witness_knows_each_key_of_an_origin_and_the_one_empty_tree(trail: Any, tmp_path: Path) -> None:
    log = VerifierKey.parse(trail.layout.vkey.read_text())
    other = Ed25519PrivateKey.generate()
    keys = [log, VerifierKey(log.name, 1, other.public_key().public_bytes_raw())]
    witness = Witness(tmp_path / "witness", "witness.example/w1", keys, lambda: 1_700_000_000.0)
    forged = sign_checkpoint(TreeHead(log.name, 0, bytes(32)), [Signer(log.name, other)])
    assert witness.answer(b"old 0\n\n" + str(forged).encode()).status == 409
    empty = sign_checkpoint(TreeHead(log.name, 0, sha(b"")), [Signer(log.name, other)])
    assert witness.answer(b"old 0\n\n" + str(empty).encode()).status == 200
    assert witness.answer(b"old 0\n\n" + str(trail.sealer.checkpoint).encode()).status == 200


def test_exported_lines_are_the_entries(trail: Any, tmp_path: Path) -> None:
    export(trail.layout, ExportInput(to=str(tmp_path / "lines"), format="jsonl", start=3, end=5))
    lines = (tmp_path / "lines").read_bytes().splitlines()
    assert lines == trail.lines()[3:5]
    assert json.loads(lines[0])["seq"] == 3


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_csv_export_counts_its_records_and_always_has_its_columns(trail: Any, tmp_path: Path, count: int) -> None:
    done = export(trail.layout, ExportInput(to=str(tmp_path / "rows"), format="csv", start=0, end=count))
    assert done.records == count
    rows = list(csv.reader((tmp_path / "rows").read_text().splitlines()))
    assert rows[0] == list(COLUMNS)
    assert [row[0] for row in rows[1:]] == [str(number) for number in range(count)]


def test_a_pruned_log_is_exported_from_its_first_whole_bundle_on(
    make_trail: Callable[..., Any], tmp_path: Path
) -> None:
    settings = JournalSettings(
        durability="sync", compression="none", segment_bytes=Bytes("16KiB"), retain_bytes=Bytes("40KiB")
    )
    trail = make_trail(settings=settings)
    trail.journal.guard_retention(lambda segment: segment.first + 200 > trail.sealer.checkpoint.head.size)
    for start in range(0, 900, 50):
        trail.add(50, start)
        trail.journal.maintain()
    first = JournalReader(trail.layout.log).segments()[0].first
    assert first > 0
    count = export_tlog(trail.layout, tmp_path / "log")
    _, size, _ = checkpoint_of(
        (tmp_path / "log/checkpoint").read_bytes(), [OutsideKey(trail.layout.vkey.read_text().strip())]
    )
    start = size - count
    assert start % 256 == 0
    assert start - first < 256
    for index in range(start // 256, -(-size // 256)):
        width = min(256, size - index * 256)
        suffix = "" if width == 256 else f".p/{width}"
        tile = (tmp_path / "log/tile/0" / (path_of(index) + suffix)).read_bytes()
        assert tile == b"".join(sha(b"\x00" + entry) for entry in bundle(tmp_path / "log", index, width))
