"""Which samples come when, and which share a sequence: pure functions of the manifest and a seed."""
