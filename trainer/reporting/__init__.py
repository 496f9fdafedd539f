"""Reports about training runs, from the files in their folders. It imports no torch."""
