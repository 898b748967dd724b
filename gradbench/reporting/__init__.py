"""The views of a record: the page, the figures, the board."""
