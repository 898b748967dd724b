"""How far rounding alone may take each number of a gradient."""
