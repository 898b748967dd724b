"""What a sweep keeps of the trials in its slots, and how some begin as copies of others."""
