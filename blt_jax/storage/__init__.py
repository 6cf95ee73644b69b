"""One way to a path, local or remote, and files that are whole or not there."""
