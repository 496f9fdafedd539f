"""Chat templates of released models: where their answers are, and copies of them that mark what is trained."""
