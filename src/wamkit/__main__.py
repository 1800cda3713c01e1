"""`python -m wamkit`: the command line, also where the console script is not on the path."""

from wamkit.cli.main import entry

if __name__ == "__main__":
    entry()
