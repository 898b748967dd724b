"""The check of a function with arrays in and out, against a reference or against itself."""
