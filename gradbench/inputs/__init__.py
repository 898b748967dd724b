"""What may be asked for, and the one line that refuses the rest."""
