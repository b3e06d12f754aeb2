"""The control plane's own operations: tokens. Listing never shows a secret; making and rotating show it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import msgspec

from deia_hardening.control import tokens
from deia_hardening.control.auth import TokenTable
from deia_hardening.control.settings import ControlSettings
from deia_hardening.control.tokens import Token
from deia_hardening.operations import Call, NoInput, Operation, Role
from deia_hardening.plugin import Host
from deia_hardening.problem import Problem
from deia_hardening.settings import Seconds, setting


@attrs.frozen
class TokenShown:
    """A token as a list shows it. Times are Unix seconds; `last_used` is 0 for never, to the minute."""

    id: str
    name: str
    role: str
    created: float
    expires: float
    created_by: str
    last_used: float
    expired: bool


@attrs.frozen
class TokenList:
    """All tokens."""

    tokens: tuple[TokenShown, ...]


@attrs.frozen
class CreateToken:
    """A new token."""

    name: str = setting(attrs.NOTHING, "who or what uses it, as the trail will name it", ge=1, le=64)
    role: str = setting("viewer", "what it may do", choices=("viewer", "operator", "admin"))
    ttl: Seconds | None = setting(None, "how long it is valid; without it, control.token_ttl", ge=1)


@attrs.frozen
class TokenId:
    """Which token."""

    id: str = setting(attrs.NOTHING, "its id or its name", ge=1, le=64)


@attrs.frozen
class TokenSecret:
    """A token's text: shown now and never again."""

    id: str
    name: str
    role: str
    expires: float
    token: str


@attrs.frozen
class TokenRevoked:
    """The token that no longer works."""

    id: str
    name: str


class TokenOperations:
    """Handlers of `token.*`; they run on the background loop."""

    def __init__(self, host: Host, table: TokenTable, settings: Callable[[], ControlSettings]) -> None:
        self._host = host
        self._table = table
        self._settings = settings

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                name="token.list", summary="Tokens: names, roles, expiry, last use.", role=Role.ADMIN,
                handler=self._list, output=TokenList, changes=False,
            ),
            Operation(
                name="token.create", summary="Make a token; its text is shown once.", role=Role.ADMIN,
                handler=self._create, input=CreateToken, output=TokenSecret,
            ),
            Operation(
                name="token.rotate", summary="Give a token a new secret; the old one works for a short while.",
                role=Role.ADMIN, handler=self._rotate, input=TokenId, output=TokenSecret,
            ),
            Operation(
                name="token.revoke", summary="Make a token useless at once.", role=Role.ADMIN,
                handler=self._revoke, input=TokenId, output=TokenRevoked,
                confirm="Whatever uses this token stops working. Revoke it?",
            ),
        )  # fmt: skip

    async def _list(self, _: NoInput, call: Call) -> TokenList:
        now = self._host.clock.wall()
        used = {}
        for key, entry in await self._host.store.list(tokens.USE_PREFIX):
            used[key.removeprefix(tokens.USE_PREFIX)] = float(msgspec.json.decode(entry.value, type=int))
        shown = [
            TokenShown(
                one.id, one.name, one.role, one.created, one.expires, one.created_by,
                used.get(one.id, 0.0), now >= one.expires,
            )
            for _, (one, _) in (await self._all()).items()
        ]  # fmt: skip
        return TokenList(tuple(sorted(shown, key=lambda each: (each.name, each.id))))

    async def _create(self, value: CreateToken, call: Call) -> TokenSecret:
        settings, now = self._settings(), self._host.clock.wall()
        try:
            name = tokens.check_name(value.name)
        except ValueError as error:
            raise Problem(422, f"{error}; no token was made") from None
        ttl = settings.token_ttl if value.ttl is None else value.ttl
        present = await self._all()
        if len(present) >= settings.max_tokens:
            raise Problem(409, f"there are {len(present)} tokens, as many as control.max_tokens allows: revoke some")
        if any(one.name == name for one, _ in present.values()):
            raise Problem(409, f"there is a token '{name}' already: rotate it, revoke it, or take another name")
        identity = tokens.new_id()
        text, digest = tokens.new_secret(identity)
        token = Token(identity, name, value.role, digest, now, now + ttl, call.actor.id)
        await self._host.store.put(tokens.PREFIX + identity, tokens.encode(token), if_revision=0)
        return TokenSecret(identity, name, value.role, token.expires, text)

    async def _rotate(self, value: TokenId, call: Call) -> TokenSecret:
        old, revision = await self._one(value.id)
        settings, now = self._settings(), self._host.clock.wall()
        if now >= old.expires:
            raise Problem(409, f"the token '{old.name}' has expired: make a new one")
        text, digest = tokens.new_secret(old.id)
        new = attrs.evolve(
            old,
            digest=digest,
            old_digest=old.digest,
            old_until=now + settings.rotation_grace,
            expires=now + (old.expires - old.created),
            created=now,
        )
        await self._host.store.put(tokens.PREFIX + old.id, tokens.encode(new), if_revision=revision)
        return TokenSecret(new.id, new.name, new.role, new.expires, text)

    async def _revoke(self, value: TokenId, call: Call) -> TokenRevoked:
        token, _ = await self._one(value.id)
        await self._host.store.delete(tokens.PREFIX + token.id)
        await self._host.store.delete(tokens.USE_PREFIX + token.id)
        return TokenRevoked(token.id, token.name)

    async def _all(self) -> dict[str, tuple[Token, int]]:
        found = {}
        for _, entry in await self._host.store.list(tokens.PREFIX):
            token = tokens.decode(entry.value)
            if token is not None:
                found[token.id] = (token, entry.revision)
        return found

    async def _one(self, identity: str) -> tuple[Token, int]:
        present = await self._all()
        if identity in present:
            return present[identity]
        for token, revision in present.values():
            if token.name == identity:
                return token, revision
        raise Problem(404, "there is no such token; 'token list' shows what there is")
