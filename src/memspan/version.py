"""Which memspan this is. Processes that encode together compare it."""

VERSION = "0.2.0"
