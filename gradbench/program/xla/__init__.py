"""What the compiler is given in place of what was written: every reading and rewriting of jaxprs."""
