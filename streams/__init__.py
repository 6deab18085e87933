"""Ground floor: the contracts that every other package shares (see streams/README.md)."""
