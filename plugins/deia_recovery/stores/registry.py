"""`Registry[T]`: a durable mapping of names to typed values.

A write is acknowledged when it is on disk; a read that begins after that sees it, in any worker. Reads come from
memory when the home's position says that memory is true, else from SQLite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import attrs

from deia_recovery.engine.cache import ABSENT
from deia_recovery.engine.jobs import Entry
from deia_recovery.engine.pending import Pending, resolved
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StaleRevision, Undecodable
from deia_recovery.stores.codec import codec_for
from deia_recovery.stores.events import registry_note
from deia_recovery.stores.names import check_key, check_name
from deia_recovery.stores.state import State, find_state

T = TypeVar("T")
Item = tuple[str, T]
Keys = list[str]
Items = list[Item[T]]
Rows = list[Any]
Parked = list[Undecodable]


@attrs.frozen
class RegistryEntry(Generic[T]):
    """A value with the revision under which it was written."""

    value: T
    revision: int


class Registry(Generic[T]):
    """A named registry of values of type `kind` (a builtin, dataclass, attrs class, Struct or pydantic model).

    Making one does no I/O; it may be module-level and used from every loop and thread. Each call returns a
    `Pending`: `await` it, or in a plain thread call `.result()`.

    Example:
        bots = Registry("bots", Bot)
        await bots.put("b1", Bot(name="one"))
        bot = await bots.get("b1")
    """

    def __init__(self, name: str, kind: Any = Any, *, app: Any = None, state: State | None = None) -> None:
        self.name = check_name(name)
        self.kind = kind
        self._codec = codec_for(kind)
        self._app = app
        self._bound = state

    @property
    def _state(self) -> State:
        return self._bound or find_state(self._app)

    def get(self, key: str) -> Pending[T | None]:
        """The value of `key`, or None. Raises Undecodable when it does not fit the type (it is kept)."""
        entry = self._cached(key)
        if entry is not None:
            return resolved(self._decode(key, entry[0]))
        return self._read(key).then(lambda entry: self._decode(key, entry[0]))

    def entry(self, key: str) -> Pending[RegistryEntry[T] | None]:
        """The value with its revision, for compare-and-set."""

        def wrap(entry: tuple[bytes | None, int]) -> RegistryEntry[T] | None:
            value = self._decode(key, entry[0])
            return None if value is None else RegistryEntry(value, entry[1])

        entry = self._cached(key)
        return resolved(wrap(entry)) if entry is not None else self._read(key).then(wrap)

    def put(self, key: str, value: T, *, if_revision: int | None = None) -> Pending[int]:
        """Store `value`. Returns its revision once on disk.

        With `if_revision` only if that is the present one (0: the key must not exist yet); else StaleRevision.
        Raises StateUnavailable (507) when the disk takes nothing.
        """
        check_key(key)
        data = self._codec.encode(value)
        store = self.name

        state = self._state
        if if_revision is None:
            if state.session() is None:
                return state.enter(store, key, data, _put_note)

            def write(tx: Tx) -> int:
                revision = tx.put_registry(store, key, data)
                tx.notes.append((registry_note, ("registry.put", store, key, None, revision)))
                return revision
        else:

            def write(tx: Tx) -> int:
                found = _revision(tx, store, key)
                if found != if_revision:
                    raise StaleRevision(store, key, if_revision, found)
                revision = tx.put_registry(store, key, data)
                tx.notes.append((registry_note, ("registry.put", store, key, found, revision)))
                return revision

        return state.write(write)

    def update(self, key: str, change: Callable[[T | None], T]) -> Pending[T]:
        """Replace the value by `change(old)` (old is None without one), atomically. Returns the new value.

        `change` runs on the writer thread and may run twice: no side effects, nothing slow, no loop.
        """
        check_key(key)
        store = self.name

        def write(tx: Tx) -> T:
            row = tx.one("SELECT value, revision FROM registry WHERE store = ? AND key = ?", store, key)
            value = change(self._decode(key, row[0] if row else None))
            revision = tx.put_registry(store, key, self._codec.encode(value))
            tx.notes.append((registry_note, ("registry.put", store, key, row[1] if row else 0, revision)))
            return value

        return self._state.write(write)

    def delete(self, key: str, *, if_revision: int | None = None) -> Pending[bool]:
        """Remove `key`. Returns whether it was there. With `if_revision` as in `put`."""
        store = self.name

        def write(tx: Tx) -> bool:
            found = _revision(tx, store, key)
            if if_revision is not None and found != if_revision:
                raise StaleRevision(store, key, if_revision, found)
            if not found:
                return False
            tx.delete("registry", (store, key))
            tx.notes.append((registry_note, ("registry.deleted", store, key, found, None)))
            return True

        return self._state.write(write, grows=False)

    def list(self, prefix: str = "", *, after: str = "", limit: int = 10_000) -> Pending[Keys]:
        """Keys that begin with `prefix`, in order, beginning behind `after`."""
        return self._rows("key", prefix, after, limit).then(lambda rows: [row[0] for row in rows])

    def items(self, prefix: str = "", *, after: str = "", limit: int = 10_000) -> Pending[Items[T]]:
        """Keys and values as of one commit, in order. Undecodable ones are left out; see `parked`."""

        def decode(rows: Rows) -> Items[T]:
            found = []
            for key, value in rows:
                try:
                    found.append((key, cast("T", self._decode(key, value))))
                except Undecodable:
                    continue
            return found

        return self._rows("key, value", prefix, after, limit).then(decode)

    def parked(self, *, limit: int = 1_000) -> Pending[Parked]:
        """The records that the declared type can't read; they are kept as they are."""

        def search(connection: sqlite3.Connection) -> Parked:
            found: Parked = []
            for key, value in connection.execute("SELECT key, value FROM registry WHERE store = ?", (self.name,)):
                try:
                    self._decode(key, value)
                except Undecodable as error:
                    found.append(error)
                    if len(found) >= limit:
                        break
            return found

        return self._state.read(search)

    def count(self) -> Pending[int]:
        """How many keys there are."""
        return self._state.read(
            lambda connection: connection.execute(
                "SELECT count(*) FROM registry WHERE store = ?", (self.name,)
            ).fetchone()[0]
        )

    def _cached(self, key: str) -> Any:
        state = self._state
        if state.in_transaction():
            return None
        return state.engine.cached((self.name, key))

    def _read(self, key: str) -> Pending[Any]:
        check_key(key)
        state = self._state
        name = (self.name, key)
        engine = None if state.in_transaction() else state.engine

        def read(connection: sqlite3.Connection) -> tuple[bytes | None, int]:
            row = connection.execute(
                "SELECT value, revision FROM registry WHERE store = ? AND key = ?", name
            ).fetchone()
            entry = row or ABSENT
            if engine is not None:
                engine.fill(connection, name, entry)
            return cast("tuple[bytes | None, int]", entry)

        return state.read(read)

    def _decode(self, key: str, data: bytes | None) -> T | None:
        if data is None:
            return None
        try:
            return cast("T", self._codec.decode(data))
        except Exception as error:
            raise Undecodable(self.name, key, f"{type(error).__name__}: {error}") from error

    def _rows(self, columns: str, prefix: str, after: str, limit: int) -> Pending[Rows]:
        end = prefix + "\U0010ffff"
        sql = (
            f"SELECT {columns} FROM registry WHERE store = ? AND key > ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"  # noqa: S608
        )
        return self._state.read(
            lambda connection: connection.execute(sql, (self.name, after, prefix, end, limit)).fetchall()
        )

    def __repr__(self) -> str:
        return f"Registry({self.name!r}, {getattr(self.kind, '__name__', self.kind)})"


def _put_note(entry: Entry) -> tuple[Any, tuple[Any, ...]]:
    return registry_note, ("registry.put", entry.store, entry.key, None, entry._value)


def _revision(tx: Tx, store: str, key: str) -> int:
    row = tx.one("SELECT revision FROM registry WHERE store = ? AND key = ?", store, key)
    return int(row[0]) if row else 0
