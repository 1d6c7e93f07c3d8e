"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the input and the remedy.

    Command lines print it as ``error: <message>`` and exit with status 1; every other exception is a defect of
    this project and keeps its traceback.
    """
