"""Top floor: puts the pieces together and runs them (see infra/README.md)."""
