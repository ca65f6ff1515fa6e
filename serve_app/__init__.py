"""Qwen3-TTS on Ray Serve: an autoscaling, OpenAI-compatible text-to-speech server."""

__version__ = "0.1.0"
