"""The service's durable state: three names. What is acknowledged is on disk, and survives any crash."""

from __future__ import annotations

from bot_service.models import Bot, Job, Mailbox
from deia_recovery import Assignments, Registry, TaskQueue

bots = Registry("bots", Bot)
mailboxes = Registry("mailboxes", Mailbox)
tasks = TaskQueue("tasks", Job)
assignments = Assignments("assignments")
