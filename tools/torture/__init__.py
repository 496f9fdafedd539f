"""Damage done on purpose: kills, full disks, flipped bits, mutated inputs and forged manifests.

    python -m tools.torture --kills 200 --disks 50 --flips 500 --cache-flips 300 --cache-mix-ups 300 --seed 1

Rule: a try survives if it ends in the bytes of an undisturbed build, or in an error of one line that a user can act on.
Everything else is lost: other bytes, a traceback, an unforeseen exception, an `internal_error`.
"""
