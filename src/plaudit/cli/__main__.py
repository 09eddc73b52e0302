"""`python -m plaudit.cli`: the same as `plaudit`."""

from plaudit.cli.main import main

if __name__ == "__main__":
    main()
