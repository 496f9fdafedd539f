"""Which images and texts are copies of each other: fingerprints, and the search for near-duplicates."""
