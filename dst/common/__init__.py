"""What both programs share: configuration files, command lines, progress, text for terminals, version checks."""
