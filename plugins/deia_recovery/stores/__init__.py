"""What an app keeps by naming it: registries, task queues and assignments, and transactions over them."""
