"""The one exception that users see: what was wrong, what was expected, what to do next."""


class InternVLAError(Exception):
    """Bad input, configuration, dataset or checkpoint.

    The message is written for the person at the keyboard: it names the offending value, the accepted ones and the next
    command. Not a ``ValueError`` on purpose: draccus, which reads LeRobot's command lines, replaces the text of a
    ``ValueError`` by "Couldn't instantiate class InternVLAA1Config" and shows that of any other exception.
    """
