"""Looking at data: before a build, in a build, and how full its sequences will be."""
