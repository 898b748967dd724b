"""(problem, optimizer) -> one trial's arithmetic and the compiled program for a block of trials."""
