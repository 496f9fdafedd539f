"""Packages that the data half and `--help` do without."""

HEAVY = {"torch", "transformers", "deepspeed", "ray", "open_clip", "peft"}
