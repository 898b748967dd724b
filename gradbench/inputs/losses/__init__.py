"""What a loss is given and how it is called, whatever its form."""
