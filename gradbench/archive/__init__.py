"""What is done with records that are made: verified, exported, followed over time."""
