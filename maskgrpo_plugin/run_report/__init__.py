"""The report of training runs: which files a run left, what is in them, and the page that shows it."""
