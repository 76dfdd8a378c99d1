"""The command line: one file per verb, exit codes, options. Nothing below knows about it."""
