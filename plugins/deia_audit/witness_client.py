"""Asks witnesses to cosign the log's checkpoints (C2SP tlog-witness) and keeps what they answered beside the log.

Blocking; for core-owned threads. It fails open: a witness that is away or refuses is told in `problems`, nothing
waits.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deia_audit.checkpoint import Checkpoint
from deia_audit.files import replace_file
from deia_audit.layout import Layout
from deia_audit.notes import COSIGNATURE_V1, NoteError, Signature, VerifierKey, decimal, parse_signature_line
from deia_audit.tilestore import TileNodes, TileStore
from deia_audit.tree import consistency_proof
from deia_audit.witness import AddCheckpoint

_MOST = 64 * 1024


def parse_witnesses(texts: Sequence[str]) -> list[tuple[VerifierKey, str]]:
    """Read witnesses as `<vkey> <url>`. Raises ValueError that says what is wrong."""
    found = []
    for text in texts:
        vkey, _, url = text.strip().partition(" ")
        key = VerifierKey.parse(vkey)
        if key.kind != COSIGNATURE_V1:
            raise ValueError(f"the key of witness {key.name} is not of a cosigner (type 4)")
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the witness {key.name} needs a URL: '<vkey> https://witness.example'")
        found.append((key, url.strip().rstrip("/")))
    return found


class WitnessClient:
    """Submits checkpoints to the witnesses of one log."""

    def __init__(self, layout: Layout, witnesses: Sequence[tuple[VerifierKey, str]], timeout: float) -> None:
        self._layout = layout
        self._witnesses = witnesses
        self._timeout = timeout
        self._known: dict[str, int] = {}
        self.problems: dict[str, str] = {}

    def submit(self, checkpoint: Checkpoint) -> Checkpoint:
        """Ask every witness; return the checkpoint with the cosignatures that came, kept durable if there are any."""
        found: list[Signature] = []
        for key, url in self._witnesses:
            try:
                found += self._ask(key, url, checkpoint)
                self.problems.pop(key.name, None)
            except (OSError, NoteError, LookupError, http.client.HTTPException, ValueError) as error:
                self.problems[key.name] = f"witness {key.name} did not cosign: {error}"
        if not found:
            return checkpoint
        cosigned = checkpoint.with_signatures(found)
        if self._size(self._layout.witnessed) > checkpoint.head.size:  # another worker's, which is newer
            return cosigned
        replace_file(self._layout.witnessed, str(cosigned).encode())
        return cosigned

    def _ask(self, key: VerifierKey, url: str, checkpoint: Checkpoint) -> list[Signature]:
        for _try in range(2):
            old = min(self._known.get(key.name, 0), checkpoint.head.size)
            nodes = TileNodes(TileStore(self._layout.evidence), checkpoint.head.size)
            proof = consistency_proof(nodes, old, checkpoint.head.size)
            status, body = self._post(url, AddCheckpoint(old, tuple(proof), checkpoint).encode())
            if status == 409:
                told = decimal(body.decode("ascii").strip())
                if checkpoint.head.size < told <= self._size(self._layout.checkpoint):
                    return []  # another worker has submitted a newer one of this log
                if told == old or told > checkpoint.head.size:
                    raise NoteError(f"it has seen another tree, of {told} records")
                self._known[key.name] = told
                continue
            if status != 200:
                raise NoteError(f"it answered {status}: {body[:200].decode('utf-8', 'replace').strip()}")
            signatures = [parse_signature_line(line) for line in body.decode().splitlines() if line]
            good = [one for one in signatures if (one.name, one.id) == (key.name, key.id)]
            for one in good:
                key.check(checkpoint.note.text, one.blob)
            if not good:
                raise NoteError("its answer holds no cosignature by its key")
            self._known[key.name] = checkpoint.head.size
            return good
        raise NoteError("it names another size each time")

    @staticmethod
    def _size(path: Path) -> int:
        """Return the size that a checkpoint on disk is of, -1 where there is none."""
        try:
            return Checkpoint.parse(path.read_bytes()).head.size
        except (OSError, NoteError):
            return -1

    def _post(self, url: str, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(url)
        assert parts.hostname is not None
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self._timeout, context=context)
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=self._timeout)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

        # The connection's own timeout begins anew with each byte that comes.
        timer = threading.Timer(self._timeout, give_up)
        timer.daemon = True
        timer.start()
        try:
            connection.request("POST", f"{parts.path}/add-checkpoint", body, {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            found = answer.status, answer.read(_MOST)
        except (OSError, http.client.HTTPException):
            if not late.is_set():
                raise
        finally:
            timer.cancel()
            connection.close()
        if late.is_set():
            raise TimeoutError(f"no whole answer came within {self._timeout:g} s")
        return found
