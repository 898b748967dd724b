"""Cases that no list has: what Hypothesis draws, and the smallest of them that fails."""
