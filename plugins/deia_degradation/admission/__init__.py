"""Who may come in now: the learned limit, the waiting room before any refusal, the gate that joins them."""
