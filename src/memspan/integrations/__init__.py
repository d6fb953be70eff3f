"""A memory in other frameworks, in process. Each module needs the extra of its name (docs/frameworks.md)."""
