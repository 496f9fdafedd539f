"""Training from real pretrained parts on real captioned photos: the numbers and figures of docs/evidence.md."""
