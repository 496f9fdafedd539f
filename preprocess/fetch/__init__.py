"""Download the images that records name by URL; a build itself never goes online."""
