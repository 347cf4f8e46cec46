"""What a person types: parse, call, show. The stages themselves live in `stages`."""

__version__ = "0.1.0"
