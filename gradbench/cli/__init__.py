"""The command line: one function per verb; each parses, calls and prints."""
