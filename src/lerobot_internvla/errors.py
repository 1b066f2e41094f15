"""The one exception that users see: what was wrong, what was expected, what to do next."""


class InternVLAError(ValueError):
    """Bad input, configuration, dataset or checkpoint.

    A subclass of ``ValueError`` so that callers that already guard LeRobot commands keep working. The message is
    written for the person at the keyboard: it names the offending value, the accepted ones and the next command.
    """
