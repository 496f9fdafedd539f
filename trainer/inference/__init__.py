"""Generating answers: prompts, the KV cache, conversations, the terminal chat."""
