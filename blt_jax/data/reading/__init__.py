"""Documents out of files and folders."""
