"""Cloud API adaptor for Kata Containers peer pods."""

__version__ = "0.1.0"
