"""How problems, optimizers and what a sweep varies are written, and which combinations of it are tried."""
