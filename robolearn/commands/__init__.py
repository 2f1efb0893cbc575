"""One file per command of the command line; imported only when that command runs."""
