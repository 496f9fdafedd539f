"""Views of data: before a build, in a build, and how full its training sequences will be."""
