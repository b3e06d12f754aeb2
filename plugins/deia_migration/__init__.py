"""Upgrades that no user notices: two versions side by side, traffic moved gradually, judged, reverted if worse."""

from deia_migration.plan import Guards, JudgePlan, Limits, Plan, Probe, Step
from deia_migration.rollout import Phase, Rollout
from deia_migration.service import MigrationManager, MigrationStatus

__all__ = [
    "Guards",
    "JudgePlan",
    "Limits",
    "MigrationManager",
    "MigrationStatus",
    "Phase",
    "Plan",
    "Probe",
    "Rollout",
    "Step",
]
