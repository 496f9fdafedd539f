"""Bad input, one build for each family of badness: every bad record is a reject with its own reason, every good one
between them gives the same sample as in a build without the bad ones, and a file that cannot be used ends the build
with its name. Nothing hangs.
"""

from __future__ import annotations
