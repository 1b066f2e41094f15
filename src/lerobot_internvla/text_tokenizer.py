"""Task strings -> prompt ids.

Two tokenizers behind one protocol: UTF-8 bytes for the tiny variant (nothing to download), and whatever the base
vision-language model brought along (Hugging Face). The text is encoded raw, as the released checkpoint was trained: no
chat template, no begin or end token. ``PromptBuilder`` cuts or pads it to the fixed prompt length.
"""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CONFIG_FILE = "tokenizer_config.json"
"""The file by which Hugging Face tokenizers, and ours, say what they are."""


@runtime_checkable
class TextTokenizer(Protocol):
    """What the policy needs from a text tokenizer."""

    @property
    def pad_id(self) -> int:
        """Id that fills the prompt after the text; masked, so its embedding never matters."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id; must not exceed ``Architecture.vocabulary``."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the raw text, nothing added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, for messages; ids that are no text may be dropped or replaced."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what ``load_text_tokenizer(folder)`` needs, so that a checkpoint loads without the Hub."""
        ...


class ByteTextTokenizer:
    """UTF-8 bytes are the ids 0..255. Built in and offline; the ids 256..259 are ``SpecialTokens`` of "tiny"."""

    pad_id = 259
    vocabulary_size = 260

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps({"tokenizer_class": type(self).__name__}, indent=2) + "\n")


class HuggingFaceTextTokenizer:
    """A transformers tokenizer, loaded when it is first used.

    Loading late means that building a policy whose checkpoint brings its own tokenizer touches neither transformers nor
    the network.

    Args:
        name_or_folder: Hub id ("Qwen/Qwen3-VL-2B-Instruct") or a local folder.
        revision: branch, tag or commit on the Hub; None for the default branch.
    """

    def __init__(self, name_or_folder: str | Path, revision: str | None = None) -> None:
        self.name_or_folder = str(name_or_folder)
        self.revision = revision

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        is_folder = Path(self.name_or_folder).is_dir()
        try:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(
                self.name_or_folder, revision=self.revision, local_files_only=is_folder
            )
        except Exception as error:  # transformers and tokenizers raise many types, plain Exception among them
            advice = (
                "Expected tokenizer.json and tokenizer_config.json there, as save_pretrained writes them."
                if is_folder
                else "Check the name and the network, log in with `hf auth login` if the repository is gated, or pass "
                "a local folder that holds the tokenizer."
            )
            kind = "folder" if is_folder else "Hub repository"
            raise InternVLAError(
                f"Cannot load the text tokenizer from the {kind} {self.name_or_folder!r} "
                f"({type(error).__name__}: {' '.join(str(error).split())}). {advice}"
            ) from error
        if tokenizer.pad_token_id is None:
            raise InternVLAError(
                f"The text tokenizer {self.name_or_folder!r} has no padding token; set pad_token in its {CONFIG_FILE}."
            )
        return tokenizer

    @property
    def pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]  # checked when loaded

    @property
    def vocabulary_size(self) -> int:
        return max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def save_pretrained(self, folder: str | Path) -> None:
        self._tokenizer.save_pretrained(folder)


def load_text_tokenizer(name_or_folder: str | Path, revision: str | None = None) -> TextTokenizer:
    """The tokenizer called "byte", the one saved in a folder, or the one of a Hub repository.

    Args:
        name_or_folder: "byte", a local folder, or a Hub id.
        revision: of a Hub repository; None for its default branch.

    Raises:
        InternVLAError: a path that does not exist, or a folder without a tokenizer. A Hub repository is looked up when
            the tokenizer is first used, and complains then.
    """
    name = str(name_or_folder)
    if name == "byte":
        return ByteTextTokenizer()
    folder = Path(name).expanduser()
    if folder.is_dir():
        config_file = folder / CONFIG_FILE
        if not config_file.is_file():
            found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise InternVLAError(
                f"No text tokenizer in {name!r}: {CONFIG_FILE} is missing (found: {found}). "
                'Pass the folder that a tokenizer was saved to, a Hub id, or "byte".'
            )
        try:
            tokenizer_class = json.loads(config_file.read_text(encoding="utf-8")).get("tokenizer_class")
        except (ValueError, AttributeError) as error:
            raise InternVLAError(
                f"{str(config_file)!r} is not a JSON object ({error}). Save the tokenizer again."
            ) from error
        if tokenizer_class == ByteTextTokenizer.__name__:
            return ByteTextTokenizer()
        return HuggingFaceTextTokenizer(folder)
    # A Hub id is "name" or "owner/name". Anything else was meant as a path; a typo in it must not become a download.
    if isinstance(name_or_folder, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise InternVLAError(f'There is no folder {name!r}. Pass an existing folder, a Hub id, or "byte".')
    return HuggingFaceTextTokenizer(name, revision)


class PromptBuilder:
    """Fixed-length prompts from task strings; says once per text what did not fit.

    Args:
        tokenizer: encodes the raw text.
        length: tokens per prompt, ``Architecture.prompt_tokens`` (48 in the released checkpoint).
    """

    def __init__(self, tokenizer: TextTokenizer, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self._already_told: set[str] = set()

    def __call__(self, tasks: Sequence[str]) -> tuple[Int[Tensor, "batch prompt"], Bool[Tensor, "batch prompt"]]:
        """Encode ``tasks``, cut each to ``length`` tokens and pad it on the right.

        Returns:
            (prompt_ids int64, prompt_is_valid), on the CPU: the values of ``Observation`` by the same names.

        Raises:
            InternVLAError: a task that is not a string.
        """
        if isinstance(tasks, str) or not all(isinstance(task, str) for task in tasks):
            raise InternVLAError(f"Expected a list of task strings, one per sample; got {tasks!r}.")
        ids = torch.full((len(tasks), self.length), self.tokenizer.pad_id, dtype=torch.int64)
        is_valid = torch.zeros(len(tasks), self.length, dtype=torch.bool)
        for row, task in enumerate(tasks):
            encoded = self.tokenizer.encode(task)
            if len(encoded) > self.length:
                self._tell_what_is_lost(task, encoded)
            kept = encoded[: self.length]
            ids[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            is_valid[row, : len(kept)] = True
        return ids, is_valid

    def _tell_what_is_lost(self, task: str, encoded: list[int]) -> None:
        if task in self._already_told:
            return
        self._already_told.add(task)
        logger.warning(
            "The task %r has %d tokens, but the model reads only the first %d. Lost: %r. Shorten the task.",
            task,
            len(encoded),
            self.length,
            self.tokenizer.decode(encoded[self.length :]),
        )
