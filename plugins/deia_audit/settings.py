"""What an operator may set about the audit trail: the section `audit:`.

Every default works. What would weaken the evidence, or names keys, files and addresses, is file-only.
"""

from __future__ import annotations

import attrs

from deia_hardening.settings import Bytes, Ratio, Seconds, setting

LEVELS = ("none", "metadata", "request", "request+response")


@attrs.frozen
class AuditRule:
    """One rule of the policy: the first one that a request matches says how much of it is recorded."""

    level: str = setting("metadata", "how much is recorded", choices=LEVELS)
    routes: tuple[str, ...] = setting((), "route patterns as 'POST /api/bots/{id}'; none: every route")
    methods: tuple[str, ...] = setting((), "methods as POST, or WEBSOCKET; none: every method")
    actors: tuple[str, ...] = setting((), "actors as 'user:alice', globs allowed; none: everybody")
    status: tuple[str, ...] = setting((), "statuses as '404' or '500..599'; none: every status")
    sample: Ratio = setting(
        Ratio("100%"), "share of matching reads that is recorded; what changes something is always recorded", ge=0, le=1
    )


@attrs.frozen
class AuditSettings:
    """The section `audit:`."""

    guarantee: str = setting(
        "batch",
        "'batch' records within milliseconds of the answer; 'response' holds the answer's start until its record is "
        "durable; 'intent' records a changing call durably before the handler runs",
        choices=("batch", "response", "intent"),
        file_only=True,
    )
    on_failure: str = setting(
        "continue",
        "when nothing can be recorded under 'response' or 'intent': 'continue' serves on, loudly; 'refuse' "
        "answers 503 before the handler runs",
        choices=("continue", "refuse"),
        file_only=True,
    )
    durable_timeout: Seconds = setting(
        Seconds("5s"), "longest wait for a record to be durable under 'response' and 'intent'", ge=0.01, le=300
    )
    level: str = setting("metadata", "how much is recorded where no rule matches", choices=LEVELS, file_only=True)
    rules: tuple[AuditRule, ...] = setting((), "the policy, first match wins", file_only=True)
    probes: tuple[str, ...] = setting(
        ("GET|HEAD /healthz", "GET|HEAD /livez", "GET|HEAD /readyz", "GET|HEAD /deia/livez", "GET|HEAD /deia/readyz"),
        "routes that are never recorded",
        file_only=True,
    )
    require_reason: tuple[str, ...] = setting(
        (), "routes whose calls must say why, in the header Deia-Reason; others get a 400", file_only=True
    )
    body_limit: Bytes = setting(
        Bytes("4KiB"), "first bytes of a body that are looked at where the policy or a recogniser asks", ge=0, le=65536
    )
    body_text: bool = setting(
        False, "whether 'request' levels keep the first bytes of bodies as text, not only digests", file_only=True
    )
    headers: tuple[str, ...] = setting(
        (), "request headers whose values are kept; all others are left out", file_only=True
    )
    query: tuple[str, ...] = setting(
        (), "query parameters whose values are kept; of all others only the name is", file_only=True
    )
    user_agent: bool = setting(True, "whether the user agent is kept")
    client_address: str = setting(
        "plain", "how client addresses are kept", choices=("plain", "pseudonym", "none"), file_only=True
    )
    actor_ids: str = setting(
        "plain",
        "how actors' ids are kept: 'plain', 'pseudonym' (an HMAC under a key of this home) or 'encrypted' (readable "
        "until the subject is erased)",
        choices=("plain", "pseudonym", "encrypted"),
        file_only=True,
    )
    mcp: tuple[str, ...] = setting(("/mcp",), "exact paths that speak MCP: method and tool are recorded")
    openai: tuple[str, ...] = setting(
        ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"),
        "exact paths that speak a model API: the model is recorded",
    )
    chat: tuple[str, ...] = setting((), "exact paths that take a chat platform's events: the event's type is recorded")
    flood_rate: float = setting(
        50.0, "refusals of unknown callers recorded one by one, a second; more become counted summaries", ge=0.1
    )
    flood_burst: int = setting(200, "refusals of unknown callers recorded one by one after a quiet time", ge=1)
    flood_summary: Seconds = setting(Seconds("10s"), "how often a flood is summed up in a record", ge=1)
    path: str = setting("/api/audit/logs", "where the trail is read over HTTP", file_only=True)
    origin: str = setting(
        "audit.deia.local",
        "the first part of the log's name in checkpoints, as audit.example.com",
        ge=1,
        file_only=True,
    )
    checkpoint_interval: Seconds = setting(
        Seconds("1s"), "longest time between a durable record and the checkpoint that covers it", ge=0.05, le=60
    )
    epoch_records: int = setting(100_000, "records after which the epoch's key is handed over and destroyed", ge=1)
    epoch_time: Seconds = setting(
        Seconds("1h"), "running time after which the epoch's key is handed over and destroyed", ge=1
    )
    on_missing: str = setting(
        "continue",
        "when log and evidence don't fit together at start: 'continue' goes on unsealed and says so, "
        "'new_log' sets the old one aside and begins a new origin",
        choices=("continue", "new_log"),
        file_only=True,
    )
    witnesses: tuple[str, ...] = setting(
        (), "witnesses that cosign, each as '<vkey> <url>' (C2SP tlog-witness)", file_only=True
    )
    witness_interval: Seconds = setting(Seconds("10s"), "how often witnesses are asked at most", ge=1)
    witness_timeout: Seconds = setting(Seconds("5s"), "longest wait for a witness", ge=0.1, le=60)
    heads: tuple[str, ...] = setting(
        (), "where checkpoints are also told: 'stdout', 'syslog' or the path of a file elsewhere", file_only=True
    )
    heads_interval: Seconds = setting(Seconds("60s"), "how often checkpoints are told there at most", ge=1)
    index: str = setting(
        "seal", "when a sealed segment is indexed: as it is sealed, or at the first query", choices=("seal", "query")
    )
    immutable: bool = setting(
        False,
        "whether sealed segments get the immutable attribute (chattr +i; needs CAP_LINUX_IMMUTABLE)",
        file_only=True,
    )
    query_limit: int = setting(1000, "most records of one page", ge=1, le=10_000)
    query_connections: int = setting(128, "index files kept open by a busy query service", ge=1, le=512)
