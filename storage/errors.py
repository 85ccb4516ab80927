"""The one exception for what a user can mend."""


class InputError(Exception):
    """Something that came from outside cannot be used.

    The message is one line that says what is wrong and what to do. The scripts print it without a
    traceback and exit with code 2.
    """
