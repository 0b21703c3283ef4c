"""The report: runs the scripts as a user would and puts what they wrote into one page."""
