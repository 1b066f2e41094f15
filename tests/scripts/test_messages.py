"""What commands say where something is wrong, and where nothing is."""

import logging

import pytest

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.scripts.messages import says_what_is_wrong


def test_an_error_is_its_message_and_exit_code_two(capsys: pytest.CaptureFixture[str]):
    @says_what_is_wrong("internvla-thing", LookupError)
    def main(error: Exception) -> int:
        raise error

    assert main(InternVLAError("no such thing")) == main(LookupError("gone")) == 2
    assert capsys.readouterr().err == "internvla-thing: no such thing\ninternvla-thing: gone\n"
    with pytest.raises(TypeError):
        main(TypeError("a fault of ours keeps its traceback"))


def test_a_hundred_lines_about_ffmpeg_become_one(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("lerobot.utils.import_utils")
    before = list(logger.filters)
    says_what_is_wrong("internvla-thing")(lambda: 0)()
    try:
        logger.warning("Traceback\n" * 100 + "'torchcodec' is installed but cannot be loaded (see the error above).")
        logger.warning("two\nlines of something else")
    finally:
        logger.filters[:] = before
    first, second = caplog.messages
    assert "PyAV" in first and "\n" not in first
    assert second == "two\nlines of something else"


def test_lerobot_still_says_it_so():
    """The words that are looked for are those of the installed version."""
    import inspect

    from lerobot.utils import import_utils

    source = inspect.getsource(import_utils.get_safe_default_video_backend)
    assert "'torchcodec' is installed but cannot be loaded" in source
    assert import_utils.__name__ == "lerobot.utils.import_utils"
