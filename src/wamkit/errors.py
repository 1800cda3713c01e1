"""The base of all errors. It imports nothing, so that a wrong command is answered before torch is loaded."""


class WamkitError(Exception):
    """Base of every error that wamkit raises on purpose: it says what was wrong, where, and what to do.

    exit_code: of a command that ends with it.
    It may quote a file or a user's own words: their line breaks become spaces, and the middle of a line that is longer
    than anybody reads is left out.
    """

    exit_code = 1

    def __str__(self) -> str:
        return shortened(super().__str__())


def shortened(message: str) -> str:
    """A message on one line, whatever it quotes, without its middle if it has more than 1,000 characters."""
    line = " ".join(message.splitlines())
    return f"{line[:600]} [...] {line[-300:]}" if len(line) > 1000 else line
