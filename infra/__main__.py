"""``python -m infra`` is the command ``driftline``: how the supervisor starts workers without looking for a script."""

from infra.cli import main

if __name__ == "__main__":
    main()
