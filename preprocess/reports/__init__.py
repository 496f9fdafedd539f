"""The report of a build: `dsvl-prep stats --html`, and the same numbers as JSON and CSV."""
