"""The base of all errors. It imports nothing, so that a wrong command is answered before torch is loaded."""


class WamkitError(Exception):
    """Base of every error that wamkit raises on purpose: it says what was wrong, where, and what to do.

    exit_code: of a command that ends with it.
    """

    exit_code = 1
