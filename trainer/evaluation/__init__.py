"""Evaluating a model: held-out samples and dialogues, scores, the report."""
