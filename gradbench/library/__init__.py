"""The library's front: the verbs as functions, and records that show themselves in a notebook."""
