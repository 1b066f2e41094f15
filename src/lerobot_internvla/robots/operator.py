"""The operator of a simulated robot: presses the keys that end an episode, as the person at the keyboard would.

LeRobot's recording commands end an episode on the right arrow, discard and repeat it on the left arrow, or when its
time is up. They offer no other way to say that the task is done. So, while a simulated robot is connected, the handler
of key presses that LeRobot installs is remembered here and called in place of the keyboard, which keeps working.
"""

from collections.abc import Callable
from typing import Any

from lerobot.utils import keyboard_input

Handler = Callable[[str], None]


class Operator:
    """Presses keys in LeRobot's commands. Does nothing in commands that do not listen."""

    def __init__(self) -> None:
        self._handlers: list[Handler] = []
        self._stock: Callable[..., Any] | None = None

    def sit_down(self) -> None:
        """From now on, hear of every handler that LeRobot installs."""
        if self._stock is not None:
            return
        stock = self._stock = keyboard_input.create_key_listener

        def create_key_listener(dispatch: Handler, *args: Any, **kwargs: Any) -> Any:
            self._handlers.append(dispatch)
            return stock(dispatch, *args, **kwargs)

        keyboard_input.create_key_listener = create_key_listener

    def stand_up(self) -> None:
        """Leave LeRobot as it was."""
        if self._stock is not None:
            keyboard_input.create_key_listener = self._stock
        self._stock = None
        self._handlers.clear()

    def press(self, key: str) -> None:
        """``right``: the episode, or the pause after it, is over. ``left``: discard the episode and record it again."""
        for handler in self._handlers:
            handler(key)
