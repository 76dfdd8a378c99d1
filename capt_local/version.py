"""The version of the program, for all that has to tell it."""

__version__ = "0.1.0"
