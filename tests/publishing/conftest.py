"""Publishing starts from converted checkpoints too."""

from conversion.conftest import converted as converted
from conversion.conftest import released as released
from conversion.conftest import words as words
