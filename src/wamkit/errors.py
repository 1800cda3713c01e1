"""The base of all errors. It imports nothing, so that a wrong command is answered before torch is loaded."""


class WamkitError(Exception):
    """Base of every error that wamkit raises on purpose: it says what was wrong, where, and what to do.

    exit_code: of a command that ends with it.
    The middle of a line that is longer than anybody reads is left out: it may quote a file or a user's own words.
    """

    exit_code = 1

    def __str__(self) -> str:
        return shortened(super().__str__())


def shortened(message: str) -> str:
    """A message without its middle, where it is one line of more than 1,000 characters."""
    long = len(message) > 1000 and "\n" not in message
    return f"{message[:600]} [...] {message[-300:]}" if long else message
