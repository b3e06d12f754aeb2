"""Three bots: small ASGI apps that each do one thing. `python -m bot_service.bots.summary` serves one by itself."""
