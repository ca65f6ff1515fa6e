"""vLLM's scheduler with a short way, and what it counts by itself."""
