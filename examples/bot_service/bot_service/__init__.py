"""A bot controller as people write them: a FastAPI service that registers bots, queues their tasks and scales them."""
