"""Trials through the program, timed, into the record."""
