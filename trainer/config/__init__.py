"""train.yaml: its dataclasses, their checks and the commented default file."""
