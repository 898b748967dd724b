"""The version, as pyproject.toml has it: a checkout need not be installed to know it."""

__version__ = "0.1.0"
