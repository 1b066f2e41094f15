"""What every command says where something is wrong: a message without a traceback, and exit code 2."""

import functools
import logging
import re
import sys
from collections.abc import Callable

from lerobot_internvla.errors import InternVLAError


def says_what_is_wrong[**P](program: str, *others: type[Exception]) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a ``main``: an InternVLAError, or one of ``others``, goes to stderr and the command ends with 2.

    That is argparse's own code for a wrong command line. 1 is left to commands whose answer can be no.

    Args:
        program: as it is typed.
        others: exceptions whose text is fit for people, too.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            # A hundred lines with ten tracebacks otherwise, where FFmpeg's libraries are missing and nothing is wrong.
            logging.getLogger("lerobot.utils.import_utils").addFilter(_torchcodec_in_one_line)
            try:
                return main(*args, **kwargs)
            except (InternVLAError, *others) as error:
                print(f"{program}: {_for_people(str(error))}", file=sys.stderr)
                return 2

        return run

    return decorate


def _for_people(message: str) -> str:
    """draccus tells a wrong map by an AttributeError of its own code; everything else as it is."""
    found = re.match(r"`([\w.]+)`: Failed when parsing value='(.*)' into field .* of type dict\[", message)
    if found is None:
        return message
    flag, value = found.groups()
    return f'--{flag}={value}: expected a map, quoted for the shell: --{flag}=\'{{"<one>": "<other>"}}\'.'


def _torchcodec_in_one_line(record: logging.LogRecord) -> bool:
    if "'torchcodec' is installed but cannot be loaded" in record.getMessage():
        record.msg = "torchcodec finds no FFmpeg that it can use; videos are read with PyAV, which is slower."
        record.args = ()
    return True
