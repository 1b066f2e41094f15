"""Where the datasets of a mixture are, and what their ``meta/`` folders say; quick for hundreds of them.

A ``Place`` says where one dataset should be; ``read_meta`` reads its ``meta/info.json`` and the few columns of
``meta/episodes`` that a mixture needs. LeRobot's ``LeRobotDatasetMetadata`` finds and downloads what is on the Hub; it
does not read what is on this machine, because it also loads statistics and tasks and copies every table into a cache
(64 small datasets: seconds instead of tenths).
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import glob
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as parquet
from huggingface_hub import HfApi
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.utils import (
    EPISODES_DIR,
    INFO_PATH,
    BackwardCompatibilityError,
    DatasetInfo,
    has_legacy_hub_download_metadata,
)
from lerobot.utils import constants
from numpy.typing import NDArray
from packaging.version import InvalidVersion, Version
from tqdm import tqdm

from lerobot_internvla.data.mixture_file import SourceSpec, is_glob
from lerobot_internvla.errors import InternVLAError

READERS = 16
"""Threads; the time goes into waiting for disks and the Hub."""


@dataclass(frozen=True)
class Place:
    """Where one dataset should be."""

    name: str
    """Of the source."""
    repo_id: str | None
    """None: the file names a folder only, and nothing is looked up on the Hub."""
    root: Path | None
    """None: in LeRobot's home or in the Hub cache."""
    revision: str | None


@dataclass(frozen=True, eq=False)
class DatasetMeta:
    """What ``meta/`` says of one dataset."""

    place: Place
    repo_id: str
    root: Path
    revision: str | None
    """The commit, if the dataset lies in the Hub cache."""
    from_hub: bool
    info_bytes: bytes
    """``meta/info.json`` as it is."""
    fps: float
    robot_type: str | None
    features: Mapping[str, Mapping[str, Any]]
    """LeRobot's table of features."""
    data_path: str
    video_path: str | None
    """Templates of file names."""
    episode_starts: NDArray[np.int64]
    """[episodes] absolute index of each episode's first frame."""
    episode_lengths: NDArray[np.int64]
    """[episodes] frames of each."""
    files: Mapping[str, NDArray[np.int64]]
    """"data" or a video's feature key -> [episodes, 2] (chunk, file) that each episode lies in."""


def find_places(source: SourceSpec, base: Path) -> list[Place]:
    """The datasets that an entry of the mixture file names: one, or those that its glob finds.

    Args:
        source: the entry.
        base: folder that relative roots are relative to.

    Raises:
        InternVLAError: a glob finds nothing, or the Hub cannot be asked.
    """
    if source.root is not None:
        root = Path(source.root).expanduser()
        root = root if root.is_absolute() else base / root
        if not is_glob(source.root):
            return [Place(source.name, source.repo_id, root.resolve(), source.revision)]
        return _find_folders(source, root)
    assert source.repo_id is not None
    if not is_glob(source.repo_id):
        return [Place(source.name, source.repo_id, None, source.revision)]
    return [
        Place(f"{source.name}/{repo_id.split('/')[1]}", repo_id, None, source.revision)
        for repo_id in _find_repositories(source.repo_id)
    ]


def _find_folders(source: SourceSpec, pattern: Path) -> list[Place]:
    # Asking for the file inside keeps "**" from listing every folder of every dataset.
    infos = sorted(Path(found) for found in glob.glob(str(pattern / INFO_PATH), recursive=True))
    roots = [info.parents[1] for info in infos]
    if not roots:
        raise InternVLAError(
            f"root {source.root!r} matches no dataset: no folder with {INFO_PATH} in it matches {pattern}. "
            "Relative folders start at the folder of the mixture file; '**' reaches any depth"
        )
    names = [root.name for root in roots]
    if len(set(names)) < len(names):
        fixed = Path(
            *(part for part in pattern.parts[: next(i for i, part in enumerate(pattern.parts) if is_glob(part))])
        )
        names = [root.relative_to(fixed).as_posix() for root in roots]
    return [Place(f"{source.name}/{name}", None, root.resolve(), None) for name, root in zip(names, roots, strict=True)]


def _find_repositories(pattern: str) -> list[str]:
    """Datasets of LeRobot's home if any match, those of the Hub otherwise."""
    owner = pattern.split("/")[0]
    home = constants.HF_LEROBOT_HOME / owner
    local = sorted(f"{owner}/{info.parents[1].name}" for info in home.glob(f"*/{INFO_PATH}"))
    matching = [repo_id for repo_id in local if fnmatchcase(repo_id, pattern)]
    if matching:
        return matching
    try:
        on_hub = sorted(dataset.id for dataset in HfApi().list_datasets(author=owner))
    except Exception as error:  # the Hub, the file system and pyarrow each have their own
        raise InternVLAError(
            f"repo_id {pattern!r} matches no dataset in {home}, and the Hub cannot be asked "
            f"({type(error).__name__}: {_first_line(error)}). Check the owner and the network, or name the datasets "
            "one by one"
        ) from error
    matching = [repo_id for repo_id in on_hub if fnmatchcase(repo_id, pattern)]
    if not matching:
        raise InternVLAError(
            f"repo_id {pattern!r} matches no dataset in {home}, and none of the {len(on_hub)} that {owner!r} shows you "
            "on the Hub"
        )
    return matching


def read_all(places: Sequence[Place], *, progress: bool = True) -> list[DatasetMeta | InternVLAError]:
    """``read_meta`` for each place, in parallel; what one of them raises stands in its place."""

    def read(place: Place) -> DatasetMeta | InternVLAError:
        try:
            return read_meta(place)
        except InternVLAError as error:
            return error
        except OSError as error:
            return InternVLAError(f"cannot read the dataset ({type(error).__name__}: {error})")

    with ThreadPoolExecutor(READERS) as pool:
        bar = tqdm(
            total=len(places), desc="looking at datasets", unit="dataset", disable=not progress or len(places) < 8
        )
        with bar:
            results: list[DatasetMeta | InternVLAError] = []
            for result in pool.map(read, places):
                results.append(result)
                bar.update()
    return results


def read_meta(place: Place) -> DatasetMeta:
    """Find the dataset, on the Hub if it is named and not here, and read its metadata.

    Raises:
        InternVLAError: it is not there, not in format v3.0, or its metadata is damaged.
    """
    root, revision, from_hub = _locate(place)
    info_path = root / INFO_PATH
    info_bytes = info_path.read_bytes()
    try:
        raw = json.loads(info_bytes)
        version = Version(str(raw["codebase_version"]))
    except (ValueError, TypeError, KeyError, InvalidVersion) as error:
        raise InternVLAError(f"{info_path} is damaged: {type(error).__name__} {error}") from error
    _check_version(version, place, root)
    try:
        info: Any = DatasetInfo.from_dict(raw)  # pyright: ignore[reportUnknownMemberType]  # untyped
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InternVLAError(f"{info_path} is damaged: {error}") from error
    features = cast(dict[str, dict[str, Any]], info.features)
    columns = _read_episodes(root)
    starts, lengths = columns["dataset_from_index"], columns["length"]
    if len(starts) == 0:
        raise InternVLAError(f"{root} holds no episodes")
    if not (
        np.array_equal(columns["episode_index"], np.arange(len(starts)))
        and len(starts) == info.total_episodes
        and lengths.sum() == info.total_frames
        and lengths.min() > 0
        and starts[0] == 0
        and np.array_equal(starts[1:], np.cumsum(lengths)[:-1])
    ):
        raise InternVLAError(
            f"{root / EPISODES_DIR} does not agree with {INFO_PATH}: {len(starts)} episodes of {lengths.sum()} frames "
            f"against {info.total_episodes} of {info.total_frames}, or episodes that are not one after the other. "
            "A recording or an upload was cut short: record or download it again"
        )
    return DatasetMeta(
        place=place,
        repo_id=place.repo_id or f"local/{root.name}",
        root=root,
        revision=revision,
        from_hub=from_hub,
        info_bytes=info_bytes,
        fps=float(info.fps),
        robot_type=info.robot_type,
        features=features,
        data_path=info.data_path,
        video_path=info.video_path,
        episode_starts=starts,
        episode_lengths=lengths,
        files={
            key: np.stack([columns[f"{prefix}/chunk_index"], columns[f"{prefix}/file_index"]], axis=1)
            for key, prefix in {
                "data": "data",
                **{key: f"videos/{key}" for key, feature in features.items() if feature.get("dtype") == "video"},
            }.items()
            if f"{prefix}/chunk_index" in columns
        },
    )


def missing_files(meta: DatasetMeta, episodes: NDArray[np.int64], cameras: Sequence[str]) -> list[Path]:
    """Data files and videos of ``cameras`` that ``episodes`` lie in and that are not on this machine."""
    missing: list[Path] = []
    for key, files in meta.files.items():
        if key != "data" and key not in cameras:
            continue
        for chunk, file in np.unique(files[episodes], axis=0).tolist():
            if key == "data":
                path = meta.data_path.format(chunk_index=chunk, file_index=file)
            else:
                path = str(meta.video_path).format(video_key=key, chunk_index=chunk, file_index=file)
            if not (meta.root / path).is_file():
                missing.append(meta.root / path)
    return missing


def _locate(place: Place) -> tuple[Path, str | None, bool]:
    """(folder with meta/info.json, commit, whether LeRobot keeps it in its Hub cache)."""
    if place.root is not None and (place.root / INFO_PATH).is_file():
        return place.root, None, False
    if place.repo_id is None:
        assert place.root is not None
        raise InternVLAError(_no_dataset(place.root))
    home = constants.HF_LEROBOT_HOME / place.repo_id
    if place.root is None and (home / INFO_PATH).is_file() and not has_legacy_hub_download_metadata(home):
        if place.revision is not None:
            raise InternVLAError(
                f"revision {place.revision!r} of {place.repo_id}, but LeRobot takes the copy in {home} whatever its "
                "revision. Leave out 'revision', or move that folder away"
            )
        return home.resolve(), None, False
    try:
        stock = LeRobotDatasetMetadata(place.repo_id, place.root, place.revision)
    except (BackwardCompatibilityError, NotImplementedError) as error:
        raise InternVLAError(_old_version(_first_line(error), place, None)) from error
    except Exception as error:  # the Hub, the file system and pyarrow each have their own
        elsewhere = "" if place.root is None else f"{place.root} holds no dataset, and "
        at = "" if place.revision is None else f" at revision {place.revision!r}"
        raise InternVLAError(
            f"{elsewhere}{place.repo_id!r}{at} cannot be had from the Hub ({type(error).__name__}: "
            f"{_first_line(error)}). Check the spelling and the network, log in with 'hf auth login' if it is private, "
            "or name its folder with 'root'"
        ) from error
    if place.root is not None:
        return place.root, None, False
    root = Path(stock.root)
    # The commit, so that every rank and worker opens the same data even if somebody pushes meanwhile.
    return root, root.name if root.parent.name == "snapshots" else stock.revision, True


def _no_dataset(root: Path) -> str:
    if not root.is_dir():
        return f"there is no folder {root}. Relative folders start at the folder of the mixture file"
    inside = sorted(info.parents[1].name for info in root.glob(f"*/{INFO_PATH}"))
    if inside:
        return f"{root} is no dataset but holds {len(inside)} ({', '.join(inside[:3])} ...); write {str(root / '*')!r}"
    return f"{root} is no LeRobot dataset: it has no {INFO_PATH}"


def _check_version(version: Version, place: Place, root: Path) -> None:
    if version.major < 3:
        raise InternVLAError(_old_version(f"it is in format v{version}", place, root))
    if version.major > 3:
        raise InternVLAError(
            f"{root} is in LeRobot's format v{version}, which is newer than this LeRobot (v3.0). Update LeRobot"
        )


def _old_version(what: str, place: Place, root: Path | None) -> str:
    """LeRobot's own converter, as ``lerobot/scripts/convert_dataset_v21_to_v30.py`` documents it."""
    label = place.repo_id or f"local/{place.root.name if place.root else place.name}"
    command = f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={label}"
    if root is not None:
        command += f" --root={root} --push-to-hub=false"
    return (
        f"not a dataset of format v3.0 ({what}), and formats are not mixed. Convert it with LeRobot's converter:\n"
        f"{command}\n"
        "It converts v2.1; what is older has to be brought to v2.1 with the LeRobot of its time first"
    )


def _read_episodes(root: Path) -> dict[str, NDArray[np.int64]]:
    """The columns of ``meta/episodes`` that say where episodes are; statistics and tasks stay on disk."""
    files = sorted((root / EPISODES_DIR).glob("*/*.parquet"))
    if not files:
        raise InternVLAError(f"{root / EPISODES_DIR} is missing: the dataset was not finished, or not copied whole")
    parts: list[dict[str, NDArray[np.int64]]] = []
    for path in files:
        try:
            file: Any = parquet.ParquetFile(path)
            names = [
                name
                for name in cast(list[str], file.schema_arrow.names)
                if name in ("episode_index", "length", "dataset_from_index")
                or (name.startswith(("data/", "videos/")) and name.endswith(("/chunk_index", "/file_index")))
            ]
            table = file.read(columns=names)
            parts.append({name: np.asarray(table[name].to_numpy(), dtype=np.int64) for name in names})
        except Exception as error:  # the Hub, the file system and pyarrow each have their own
            raise InternVLAError(f"{path} cannot be read ({type(error).__name__}: {_first_line(error)})") from error
    if any({"episode_index", "length", "dataset_from_index"} - part.keys() for part in parts):
        raise InternVLAError(f"{root / EPISODES_DIR} lacks columns of format v3.0 (episode_index, length, ...)")
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in common}


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
