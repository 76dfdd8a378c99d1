"""Private clinical language-model inference by Cross-Architecture Proxy Tuning."""

__version__ = "0.1.0"
