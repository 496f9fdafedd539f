"""A trained model as a folder for other programs, with a model card."""
