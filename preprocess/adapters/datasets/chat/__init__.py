"""The adapter `chat`: one's own conversations, in the forms that are common in published data."""
