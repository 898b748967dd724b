"""A record on disk: what its columns are, how it is written and read back."""
