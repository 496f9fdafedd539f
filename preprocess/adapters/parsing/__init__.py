"""What adapters share: reading records, checking fields, turns, identities and splits."""
