"""Recovery: durable registries, task queues and assignments, and backups that are proven restorable."""

from __future__ import annotations

from deia_recovery.errors import (
    BackupError,
    LeaseLost,
    StaleRevision,
    StartRefused,
    StateDamaged,
    StateError,
    StateUnavailable,
    TransactionEnded,
    Undecodable,
    UnknownTask,
    WrongKey,
)
from deia_recovery.service import DisasterRecovery
from deia_recovery.sse import TaskEvents, event_bytes
from deia_recovery.stores.assignments import AlreadyAssigned, Assignment, Assignments
from deia_recovery.stores.claimed import ClaimedTask
from deia_recovery.stores.registry import Registry, RegistryEntry
from deia_recovery.stores.tasks import QueueStats, Submitted, TaskEvent, TaskInfo, TaskQueue
from deia_recovery.stores.transaction import transaction

__all__ = [
    "AlreadyAssigned",
    "Assignment",
    "Assignments",
    "BackupError",
    "ClaimedTask",
    "DisasterRecovery",
    "LeaseLost",
    "QueueStats",
    "Registry",
    "RegistryEntry",
    "StaleRevision",
    "StartRefused",
    "StateDamaged",
    "StateError",
    "StateUnavailable",
    "Submitted",
    "TaskEvent",
    "TaskEvents",
    "TaskInfo",
    "TaskQueue",
    "TransactionEnded",
    "Undecodable",
    "UnknownTask",
    "WrongKey",
    "event_bytes",
    "transaction",
]
