"""Functions of other libraries, judged against a JAX reference."""
