"""Checkpoints of a run, and starting a run from an earlier one."""
