"""The bytes on disk, as FORMAT.md says: samples in tars, their indexes, and the manifest that pins them."""
