"""The one exception for what a user can mend, and what others say in a line."""


class InputError(Exception):
    """Something that came from outside cannot be used.

    The message is one line that says what is wrong and what to do. The scripts print it without a
    traceback and exit with code 2.
    """


def reason_of(error: Exception) -> str:
    """What an error of another library says, in one short line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
