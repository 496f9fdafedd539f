"""A trained model as a folder that others open, with its model card."""
