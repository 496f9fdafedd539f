"""train.yaml: its config classes, their checks and the commented default file."""
