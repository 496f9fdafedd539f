"""One adapter per dataset family."""
