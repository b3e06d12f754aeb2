"""When another bot is asked: retries on a budget, hedging, outgoing attempts."""
