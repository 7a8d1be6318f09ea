"""`python -m renormlite` is the command `renormlite`."""

from .cli.main import main

if __name__ == "__main__":
    main()
