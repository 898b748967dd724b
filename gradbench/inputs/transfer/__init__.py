"""A plan and what it names, as text and in other processes."""
