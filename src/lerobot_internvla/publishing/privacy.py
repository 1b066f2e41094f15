"""Nothing of one's own computer goes to the Hub: local paths are taken out of JSON files, everything else is refused.

LeRobot writes absolute folders into train_config.json and config.json. In the copy that is uploaded they become null,
or words where null would mean something else; the files on disk stay as they are. What cannot be repaired without
knowing better (a path in prose, an access token anywhere) is a finding, and findings stop an upload.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCAL_FOLDER = "local folder (path removed)"
"""Stands where null would claim something: a null ``base_model`` means random weights."""
_NOT_NULL = ("base_model", "expert_warm_start")
_OWN_ACCOUNT = (("wandb", "entity"), ("wandb", "run_id"), ("wandb", "notes"))
"""Of train_config.json: about its author's account, not about the policy."""

# Vocabularies hold pieces of the web, "/home" among them: they are searched for this computer's own folders only.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "vocab.txt")
_TEXT = (".json", ".md", ".txt", ".jinja", ".yaml", ".yml")

_ABSOLUTE = re.compile(r"^(?:/[^/\s]|~[/\\]|[A-Za-z]:[\\/]|\\\\|file://)")
_ROOTS = (
    "home|Users|root|tmp|mnt|media|data|scratch|work|workspace|workspaces|var|opt|srv|private|gpfs|lustre|nfs|net|fsx|"
    "content|kaggle|storage|projects|Volumes"
)
_PATH_IN_TEXT = re.compile(
    rf"(?<![\w.:/<~-])(?:/(?:{_ROOTS})(?=/|\b)(?:/[^\s\"'`<>|,;)\]}}]*)?|~/[\w.-]+[^\s\"'`<>|,;)\]}}]*"
    r"|[A-Za-z]:\\{1,2}Users\\[^\s\"'`<>|,;)\]}]*|file://[^\s\"'`<>]+)"
)
_SECRETS: dict[str, re.Pattern[str]] = {
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    "GitLab token": re.compile(r"\bglpat-[\w-]{16,}"),
    "AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "password in an address": re.compile(r"://[^/\s:@\"']+:[^/\s@\"']+@"),
    "secret by its name": re.compile(
        r"(?i)\b(?:api_?key|password|passwd|secret(?:_key)?|(?:access|auth|hf|wandb)_(?:token|api_key))"
        r"[\"']?\s*[:=]\s*[\"']?[^\s\"',}]{8,}"
    ),
}


@dataclass(frozen=True)
class Finding:
    """Something private in a file that would be uploaded."""

    file: str
    where: str
    """Line number, or the place in a JSON file."""
    what: str
    text: str
    """The private text; a secret is cut short."""

    def __str__(self) -> str:
        return f"{self.file}, {self.where}: {self.what} {self.text!r}"


@dataclass(frozen=True)
class Redaction:
    """A value that the uploaded copy does not have."""

    file: str
    field: str
    value: str
    replacement: str | None

    def __str__(self) -> str:
        return f"{self.file}: {self.field} = {self.value!r} -> {json.dumps(self.replacement)}"


def is_local_path(value: str) -> bool:
    """An absolute path of some computer: POSIX, home-relative, Windows or ``file://``."""
    return len(value) > 1 and _ABSOLUTE.match(value) is not None


def redact_arguments(arguments: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """A command line without local paths and secrets: ``--dataset.root=/data/x`` becomes ``--dataset.root=<path>``."""

    def clean(argument: str) -> str:
        flag, equals, value = argument.partition("=")
        if is_local_path(value if equals else argument):
            return f"{flag}=<path>" if equals else "<path>"
        argument = _PATH_IN_TEXT.sub("<path>", argument)
        for pattern in _SECRETS.values():
            argument = pattern.sub("<secret>", argument)
        return argument

    return tuple(map(clean, arguments))


def redact_json(file: str, tree: Any) -> tuple[Any, list[Redaction]]:
    """A copy of a JSON file's content without local paths.

    Args:
        file: its name, for the messages; train_config.json also loses its author's Weights & Biases account.
        tree: the parsed content; not changed.
    """
    redactions: list[Redaction] = []

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return {key: walk(value, (*path, str(key))) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, (*path, str(index))) for index, value in enumerate(node)]
        own_account = Path(file).name == "train_config.json" and path in _OWN_ACCOUNT
        if isinstance(node, str) and node and (is_local_path(node) or own_account):
            in_list = path[-1].isdigit()
            replacement = LOCAL_FOLDER if path[-1] in _NOT_NULL or in_list else None
            redactions.append(Redaction(file, ".".join(path), node, replacement))
            return replacement
        return node

    return walk(tree, ()), redactions


def find_private(file: str, text: str) -> list[Finding]:
    """Local paths and secrets in a text.

    Args:
        file: its name; vocabularies of text tokenizers are searched for this computer's own folders only.
    """
    findings: list[Finding] = []
    own = [re.compile(re.escape(str(folder)) + r"(?=[/\\\"'\s]|$)") for folder in _own_folders()]
    paths = own if Path(file).name in _VOCABULARIES else [_PATH_IN_TEXT, *own]
    for number, line in enumerate(text.splitlines(), start=1):
        seen: set[str] = set()
        for pattern in paths:
            for match in pattern.finditer(line):
                if not any(match[0] in known for known in seen):
                    seen.add(match[0])
                    findings.append(Finding(file, f"line {number}", "local path", match[0]))
        for what, pattern in _SECRETS.items():
            findings += [Finding(file, f"line {number}", what, f"{m[0][:6]}...") for m in pattern.finditer(line)]
    return findings


def find_private_in_file(file: str, path: Path) -> list[Finding]:
    """The same for a file on disk: text whole, of safetensors the header; pictures and videos have no text."""
    if path.suffix == ".safetensors":
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                return [Finding(file, "header", "truncated or not safetensors:", f"{path.stat().st_size} bytes")]
            header = stream.read(length).decode(errors="replace")
        metadata = re.search(r'"__metadata__"\s*:\s*\{.*?\}', header, flags=re.DOTALL)
        return find_private(file, metadata[0] if metadata else "")
    if path.suffix in _TEXT:
        return find_private(file, path.read_text(encoding="utf-8", errors="replace"))
    return []


def _own_folders() -> list[Path]:
    """The home and the working directory, where they say something ("/" does not)."""
    folders = {Path.home(), Path.cwd()}
    return [folder for folder in folders if len(folder.parts) > 1]
