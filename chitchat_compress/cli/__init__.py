"""The command line: a module a verb, what they share, and the boundary that maps errors to exit codes."""
