"""Requests that are stored before they are run: webhooks (the inbox) and what could not be served (accepted tasks)."""
