"""Where files are: a local folder, a URL, and local copies of what a URL holds."""
