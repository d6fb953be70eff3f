"""The `memspan` command: thin calls into the library."""

from memspan.cli.app import app

__all__ = ["app"]
