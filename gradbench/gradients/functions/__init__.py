"""The check of a function of arrays to arrays, against a reference or against itself."""
