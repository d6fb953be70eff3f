"""`python -m memspan`: the command, for `torchrun -m memspan`."""

from memspan.cli import app

if __name__ == "__main__":
    app()
