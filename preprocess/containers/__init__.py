"""Kinds of files by their first bytes, and the members of a tar: what records and image stores share."""
