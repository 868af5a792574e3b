"""The command line: the only room that prints, and the only one that turns errors into exit codes."""
