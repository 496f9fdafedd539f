"""The blend file: which datasets, how much of each, and everything known before data is read."""
