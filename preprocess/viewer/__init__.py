"""The inspector of builds: a local web app, and the same pages as one file."""
