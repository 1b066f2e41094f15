"""Everything that a robot computer without internet needs, in one folder, and the proof that it works there.

    policy/            the checkpoint with its tokenizers and processors; an adapter is merged into its base
    wheels/            this package, as it runs here; the others once they are downloaded
    requirements.txt   every package that the policy needs, with the version that is installed here
    wheels.txt         the same with the kind of wheel that is installed here (Python version, platform)
    manifest.json      SHA-256 and size of every file, and where the bundle was made
    README.md          the commands, from download to rollout

``make_bundle`` writes it, ``check_bundle`` reads it on the target: files, versions, and one chunk of actions from a
process that has no network and an empty Hub cache.
"""

import base64
import dataclasses
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from lerobot.policies.factory import make_pre_post_processors
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lerobot_internvla.checkpoints.adapters import base_of, is_adapter, merge_adapter
from lerobot_internvla.checkpoints.fetching import fetch
from lerobot_internvla.checkpoints.policy_config import read_policy_config
from lerobot_internvla.checkpoints.staging import check_destination, check_disk, staged_folder
from lerobot_internvla.checkpoints.tensor_stream import file_checksum
from lerobot_internvla.checkpoints.whole_folder import why_not_whole
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError

DISTRIBUTION = "lerobot_policy_internvla_a1"
PACKAGES = ("lerobot_internvla", DISTRIBUTION)
BUNDLE_VERSION = 1
POLICY, WHEELS, MANIFEST, REQUIREMENTS = "policy", "wheels", "manifest.json", "requirements.txt"
NOT_NEEDED = {"train_config.json"}
"""No robot reads it, and it knows paths and names of the training machine."""
NEVER = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py")
"""Files that could run code when they are loaded."""


# ------------------------------------------------------------------------------------------------------------- versions


@dataclass(frozen=True)
class Pin:
    """A package as it is installed here."""

    name: str
    version: str
    """With the local part, as in 2.11.0+cpu."""
    tags: tuple[str, ...]
    """Of the wheel that it was installed from; empty if it says nothing."""

    @property
    def public(self) -> str:
        """The version without the local part: what another platform's build of the same release has in common."""
        return Version(self.version).public


def installed_pins(distribution: str = DISTRIBUTION, extras: Sequence[str] = ()) -> list[Pin]:
    """``distribution`` and all that it needs on this platform, by name.

    Args:
        distribution: where to start.
        extras: of ``distribution``.

    Raises:
        InternVLAError: packages that are needed and not installed; all of them.
    """
    found: dict[str, Pin] = {}
    missing: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue: list[tuple[str, frozenset[str], str]] = [(distribution, frozenset(extras), "the bundle")]
    while queue:
        name, wanted, needed_by = queue.pop()
        if (key := (canonicalize_name(name), wanted)) in seen:
            continue
        seen.add(key)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing[name] = needed_by
            continue
        tags = re.findall(r"^Tag: (\S+)$", package.read_text("WHEEL") or "", re.MULTILINE)
        found[key[0]] = Pin(package.metadata["Name"], package.version, tuple(tags))
        for line in package.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                queue.append((requirement.name, frozenset(requirement.extras), name))
    if missing:
        listed = ", ".join(f"{name} (needed by {by})" for name, by in sorted(missing.items()))
        raise InternVLAError(
            f"Not installed here, so their versions cannot be pinned: {listed}. Install this package with pip "
            f"(a checkout on PYTHONPATH is not enough): pip install {DISTRIBUTION}."
        )
    return [found[name] for name in sorted(found)]


def version_differences(pins: Sequence[Pin]) -> tuple[list[str], list[str]]:
    """What is installed here against ``pins``: (other versions and missing packages, other builds of the same version).

    A build differs by its local part only (2.11.0+cpu and 2.11.0+cu128), as it must between computers with and
    without a GPU.
    """
    differences: list[str] = []
    builds: list[str] = []
    for pin in pins:
        try:
            here = metadata.version(pin.name)
        except metadata.PackageNotFoundError:
            differences.append(f"{pin.name} {pin.public} is not installed")
            continue
        if Version(here).public != pin.public:
            differences.append(f"{pin.name} is {here}, the bundle was made with {pin.version}")
        elif here != pin.version:
            builds.append(f"{pin.name} is the build {here}, the bundle was made with {pin.version}")
    return differences, builds


def write_own_wheel(folder: Path) -> Path:
    """This package as a wheel, from the files that run here: an editable install is not on any index.

    Raises:
        InternVLAError: not installed with pip.
    """
    try:
        package = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise InternVLAError(f"{DISTRIBUTION} is not installed: pip install it (with -e from a checkout).") from error
    info = f"{DISTRIBUTION}-{package.version}.dist-info"
    contents: dict[str, bytes] = {}
    for name in PACKAGES:
        spec = util.find_spec(name)
        for root in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(root).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    contents[f"{name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    # A checkout that was installed with -e may answer with its egg-info, where METADATA is called PKG-INFO.
    contents[f"{info}/METADATA"] = (package.read_text("METADATA") or package.read_text("PKG-INFO") or "").encode()
    contents[f"{info}/entry_points.txt"] = (package.read_text("entry_points.txt") or "").encode()
    for file in package.files or ():
        if f"{info}/licenses/" in file.as_posix():
            contents[f"{info}/licenses/{file.name}"] = Path(str(package.locate_file(file))).read_bytes()
    wheel = f"Wheel-Version: 1.0\nGenerator: {PACKAGES[0]}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/WHEEL"] = wheel.encode()
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        for name, data in contents.items()
    }
    record = [f"{name},sha256={digests[name]},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{DISTRIBUTION}-{package.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # no dates: the same bytes every time
    return path


# --------------------------------------------------------------------------------------------------------------- making


def make_bundle(
    checkpoint: str | Path,
    destination: Path,
    *,
    revision: str | None = None,
    download_wheels: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a bundle.

    Args:
        checkpoint: folder or Hub id of a policy, or of an adapter over a policy.
        destination: a folder that does not exist yet; it appears when it is whole.
        revision: branch, tag or commit of a Hub id.
        download_wheels: also fetch the wheels of all packages with pip. They fit computers like this one only.
        tell: called with a line on what is done.

    Raises:
        InternVLAError: a checkpoint that is not whole (everything that is missing is listed), a destination that
            exists, a full disk, packages without versions, wheels that cannot be downloaded.
    """
    source = fetch(
        checkpoint, ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"], what="checkpoint", revision=revision
    ).folder
    check_destination(destination, overwrite=False, sources=(source,))
    if reason := why_not_whole(source):
        raise InternVLAError(reason)
    adapter = is_adapter(source)
    pins = installed_pins()
    if not adapter:
        _check_whole(source)
        check_disk(destination, sum(path.stat().st_size for path in _policy_files(source)))
    with staged_folder(destination) as folder:
        policy = folder / POLICY
        if adapter:
            tell(f"merging the adapter into its base {base_of(source)}")
            merge_adapter(source, device="cpu").save_pretrained(policy)
            for path in source.glob("policy_*processor*"):
                shutil.copy2(path, policy / path.name)
            _check_whole(policy)
        else:
            for path in _policy_files(source):
                target = policy / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        config = _make_portable(policy)
        write_own_wheel(folder / WHEELS)
        _write_requirements(folder, pins)
        if download_wheels:
            tell("downloading wheels")
            _run_pip(folder)
        tell("computing checksums")
        (folder / "README.md").write_text(_readme(config, pins), encoding="utf-8")
        manifest = {
            "bundle_version": BUNDLE_VERSION,
            "made_with": {
                "python": platform.python_version(),
                "platform": f"{platform.system()} {platform.machine()}",
                "packages": [dataclasses.asdict(pin) for pin in pins],
            },
            "files": {
                path.relative_to(folder).as_posix(): {"sha256": file_checksum(path), "bytes": path.stat().st_size}
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return destination


def _policy_files(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden and inside.as_posix() not in NOT_NEEDED and path.suffix not in NEVER:
            yield path


def _check_whole(folder: Path) -> None:
    """Refuse a policy that would look for something elsewhere."""
    config = read_policy_config(folder) if (folder / "config.json").is_file() else None
    problems = [f"{name} is missing" for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    needed = {"text_tokenizer": "the text tokenizer"}
    if config is not None and config.use_foresight:
        needed["image_tokenizer"] = "the image tokenizer"
    problems += [f"{name}/ ({what}) is missing" for name, what in needed.items() if not (folder / name).is_dir()]
    if problems:
        raise InternVLAError(
            f"{str(folder)!r} is not a whole policy: {'; '.join(problems)}. Load it where its parts are and write it "
            "again with policy.save_pretrained(<folder>), or convert it again with internvla-convert."
        )


def _make_portable(policy: Path) -> InternVLAA1Config:
    """No names of other places in config.json, and processors (LeRobot's stock ones) if the checkpoint has none."""
    config = read_policy_config(policy)
    config.text_tokenizer = config.image_tokenizer = None
    config.pretrained_path = config.pretrained_revision = None
    # Of the robot, not of this computer (which the loader has just put there): without such a GPU LeRobot takes what
    # there is.
    config.device = "cuda"
    config._save_pretrained(policy)
    if not (policy / "policy_preprocessor.json").is_file():
        for pipeline in make_pre_post_processors(dataclasses.replace(config, device="cpu")):
            pipeline.save_pretrained(policy)
    return config


def _write_requirements(folder: Path, pins: Sequence[Pin]) -> None:
    lines = ["# Every package that the policy needs, as installed where the bundle was made."]
    for pin in pins:
        note = f"  # there: {pin.version}" if pin.version != pin.public else ""
        lines.append(f"{pin.name}=={pin.public}{note}")
    (folder / REQUIREMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    width = max(len(f"{pin.name}=={pin.version}") for pin in pins)
    table = [f"{f'{pin.name}=={pin.version}':<{width}}  {' '.join(pin.tags) or 'unknown'}" for pin in pins]
    (folder / "wheels.txt").write_text("\n".join(table) + "\n", encoding="utf-8")


DOWNLOAD = "python -m pip download --only-binary=:all: --find-links wheels --dest wheels --requirement requirements.txt"


def _run_pip(folder: Path) -> None:
    command = [sys.executable, *shlex.split(DOWNLOAD)[1:]]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if finished.returncode:
        reason = next((line for line in finished.stderr.splitlines() if line.startswith("ERROR")), finished.stderr)
        raise InternVLAError(
            f"pip could not download the wheels: {reason.strip()} Make the bundle without --download-wheels and run "
            f"the command from its README where there is a network: {DOWNLOAD}"
        )


def _readme(config: InternVLAA1Config, pins: Sequence[Pin]) -> str:
    cameras = ", ".join(f"`{key}`" for key in config.image_features)
    state, action = config.robot_state_feature, config.action_feature
    assert state is not None and action is not None, "a saved policy has both"
    builds = ", ".join(f"{pin.name} {pin.version}" for pin in pins if pin.version != pin.public)
    advice = f"Not from the usual index there: {builds}; choose the build for the robot's GPU.\n" if builds else ""
    return f"""# InternVLA-A1 {config.variant} for a robot computer without internet

- reads cameras {cameras} and {state.shape[0]} state dims, gives chunks of {config.chunk_size} actions of
  {action.shape[0]} dims
- made with Python {platform.python_version()} on {platform.system()} {platform.machine()}

## 1. Wheels, on a computer with internet

Not needed if `wheels/` holds more than this package's own wheel. In this folder:

    {DOWNLOAD}

For a robot with another processor or Python add its kind, such as `--platform manylinux_2_28_aarch64 --python-version
3.12`. `wheels.txt` lists what was installed where the bundle was made.
{advice}
## 2. Install, on the robot

Copy this folder, then in it:

    python3 -m venv environment
    environment/bin/python -m pip install --no-index --find-links wheels --requirement requirements.txt

## 3. Check, on the robot

    environment/bin/internvla-bundle --check .

compares every file with `manifest.json` and every package with `requirements.txt`, then loads the policy without
network and predicts one chunk of actions. It ends with READY or NOT READY and says why; the exit code is 0 or 1.

## 4. Run

    HF_HUB_OFFLINE=1 environment/bin/lerobot-rollout --policy.path=policy --robot.type=... --task="..." --fps=...
"""


# ------------------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class BundleCheck:
    """What was found on the target."""

    files: int
    file_problems: tuple[str, ...]
    packages: int
    version_problems: tuple[str, ...]
    notes: tuple[str, ...]
    """Differences that do not matter: other builds of the same version, another Python."""
    run: dict[str, Any] | None
    """Seconds, device and shape of the chunk, if the policy ran."""
    run_problem: str | None
    versions_may_differ: bool = False

    @property
    def ready(self) -> bool:
        return (
            not self.file_problems and not self.run_problem and (self.versions_may_differ or not self.version_problems)
        )


def check_bundle(folder: Path, *, allow_other_versions: bool = False, device: str | None = None) -> BundleCheck:
    """Compare files and versions, then let a process without network and with an empty home act once.

    Args:
        folder: the bundle.
        allow_other_versions: packages may differ; the differences are listed all the same.
        device: where the policy runs; None takes a GPU if there is one.

    Raises:
        InternVLAError: no bundle, or one of a newer version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, made_with, files = manifest["bundle_version"], manifest["made_with"], manifest["files"]
        pins = [Pin(pin["name"], pin["version"], tuple(pin["tags"])) for pin in made_with["packages"]]
    except FileNotFoundError as error:
        raise InternVLAError(
            f"{str(folder)!r} is no bundle: {MANIFEST} is missing. Pass the folder that internvla-bundle wrote."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InternVLAError(f"{str(folder / MANIFEST)!r} is damaged ({error!r}). Copy the bundle again.") from error
    if version > BUNDLE_VERSION:
        raise InternVLAError(
            f"The bundle has version {version}, this program reads up to {BUNDLE_VERSION}. Install the wheel in "
            f"{str(folder / WHEELS)!r} and check again."
        )
    file_problems = _file_problems(folder, files)
    differences, notes = version_differences(pins)
    if platform.python_version() != made_with["python"]:
        notes.append(f"Python is {platform.python_version()}, the bundle was made with {made_with['python']}")
    run, run_problem = (None, "not tried: its files are not as they should be") if file_problems else (None, None)
    if not file_problems:
        run, run_problem = _try_policy(folder / POLICY, device)
    return BundleCheck(
        files=len(files),
        file_problems=tuple(file_problems),
        packages=len(pins),
        version_problems=tuple(differences),
        notes=tuple(notes),
        run=run,
        run_problem=run_problem,
        versions_may_differ=allow_other_versions,
    )


def _file_problems(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    problems: list[str] = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{name} has {path.stat().st_size:,} bytes, expected {expected['bytes']:,}")
        elif file_checksum(path) != expected["sha256"]:
            problems.append(f"{name} has other contents (SHA-256 differs)")
    policy = folder / POLICY
    present = {path.relative_to(folder).as_posix() for path in policy.rglob("*") if path.is_file()}
    return problems + [f"{name} does not belong to the bundle" for name in sorted(present - set(files))]


_ACT_ONCE = """
import json, logging, socket, sys, time

logging.disable(logging.INFO)

def refuse(self, address):
    if self.family != getattr(socket, "AF_UNIX", None):
        raise OSError(f"this check has no network, but something asked for {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()
folder, device = sys.argv[1], sys.argv[2]
overrides = [f"--device={device}"] if device else []
config = PreTrainedConfig.from_pretrained(folder, cli_overrides=overrides)
started = time.perf_counter()
policy = get_policy_class(config.type).from_pretrained(folder, config=config)
pre, post = make_pre_post_processors(
    config, pretrained_path=folder, preprocessor_overrides={"device_processor": {"device": config.device}}
)
loaded = time.perf_counter()
batch = {key: torch.full((1, *feature.shape), 0.5) for key, feature in config.image_features.items()}
batch["observation.state"] = policy.action_space.state_mean[None, : policy.action_space.state_dim].cpu()
batch["task"] = "check"
chunk = post(policy.predict_action_chunk(pre(batch)))
report = {
    "load_s": round(loaded - started, 2),
    "chunk_s": round(time.perf_counter() - loaded, 2),
    "device": config.device,
    "shape": list(chunk.shape),
    "finite": bool(torch.isfinite(chunk).all()),
}
print("\\n" + json.dumps(report))
"""


def _try_policy(policy: Path, device: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """(report, None) or (None, why not): one chunk in a process of its own, loaded as lerobot-rollout does."""
    with tempfile.TemporaryDirectory() as home:
        places = {"HOME": home, "HF_HOME": str(Path(home, "huggingface")), "XDG_CACHE_HOME": home}
        other = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_CACHE", "HF_TOKEN")}
        finished = subprocess.run(
            [sys.executable, "-c", _ACT_ONCE, str(policy.resolve()), device or ""],
            cwd=home,
            env={**other, **places, "HF_HUB_OFFLINE": "1", "HF_LEROBOT_HOME": str(Path(home, "lerobot"))},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        return None, lines[-1] if lines else f"the process ended with code {finished.returncode} (out of memory?)"
    report = json.loads(finished.stdout.splitlines()[-1])
    return (report, None) if report["finite"] else (None, "the policy predicts NaN or infinite actions")
