"""Which optimizer wins, by how much, how sure that is, and at which budget of tuning."""
