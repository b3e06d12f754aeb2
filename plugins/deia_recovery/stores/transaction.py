"""`transaction()`: several stores, one commit.

    async with transaction():
        task = await tasks.claim("worker-1")
        await assignments.assign(task.id, "bot-7")

All of it is on disk when the block is left, or none of it (an exception, a timeout, a crash). Every other writer
waits while it is open, so it is short by rule: no network calls in it. Reads inside see the writes inside.
"""

from __future__ import annotations

from contextvars import Token
from types import TracebackType
from typing import Any

from deia_hardening.context import context_variable
from deia_recovery.stores.state import OpenTransaction, State, find_state, open_session


class transaction:  # noqa: N801 - it is used as a function
    """Group the writes of this task or thread into one commit; also a plain `with`, in threads.

    `seconds` bounds how long it may stay open (default: the setting `transaction_limit`); then everything in it is
    rolled back and TransactionEnded raised. Inside another transaction it is a part of that one: an exception that
    leaves it undoes this part, and is committed or not with the whole. Parts that run side by side and overlap can't
    be undone alone: then nothing of the whole is kept. Raises StateUnavailable when the disk takes nothing.
    """

    def __init__(self, *, seconds: float | None = None, app: Any = None, state: State | None = None) -> None:
        self._seconds = seconds
        self._app = app
        self._state = state
        self._session: OpenTransaction | None = None
        self._token: Token[OpenTransaction | None] | None = None
        self._outer: tuple[OpenTransaction, int] | None = None

    def _begin(self) -> None:
        state = self._state or find_state(self._app)
        outer = state.session()
        if outer is not None:
            self._outer = outer, outer.nest()
            return
        context = context_variable.get()
        seconds = state.engine.options.transaction if self._seconds is None else self._seconds
        self._session = OpenTransaction(state, None if context is None else context.actor, seconds)
        self._token = open_session.set(self._session)

    def _end(self, *, keep: bool) -> OpenTransaction | None:
        outer, self._outer = self._outer, None
        if outer is not None:
            outer[0].unnest(outer[1], keep=keep)
        session, self._session = self._session, None
        if session is not None:
            session.left = True
        token, self._token = self._token, None
        if token is not None:
            open_session.reset(token)
        return session

    async def __aenter__(self) -> transaction:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._end(keep=error is None)
        if session is not None:
            if error is None:
                await session.finish("commit")
            else:
                session.finish("abort")

    def __enter__(self) -> transaction:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._end(keep=error is None)
        if session is not None:
            if error is None:
                session.finish("commit").result()
            else:
                session.finish("abort")
