"""Several checkpoints in one server beside servers that have only one of them."""
