"""What import-linter cannot say: which outside packages a part may use, and that the picture in the docs is complete.

The layers themselves are contracts in pyproject.toml, checked by `make lint`.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "lerobot_internvla"

MAY_IMPORT = {
    # Pure PyTorch: usable in a notebook on random tensors, without robots, datasets or batch dictionaries.
    "model": {
        "torch",
        "jaxtyping",
        "transformers",
        "lerobot.policies.common",
        "lerobot.policies.diffusion.modeling_diffusion",  # SpatialSoftmax, in the tiny tower
    },
    "image_tokenizer": {"torch", "jaxtyping", "numpy", "safetensors", "huggingface_hub", "diffusers"},
}


def imported_modules(file: Path) -> set[str]:
    """Full names of everything that ``file`` imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_uses_only_the_outside_packages_that_it_may(part: str) -> None:
    allowed = MAY_IMPORT[part] | {"lerobot_internvla"}
    foreign = {
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in (PACKAGE / part).rglob("*.py")
        for name in imported_modules(file)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)
    }
    assert foreign == set()


def test_the_picture_in_the_docs_names_every_module() -> None:
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {
        path.name if path.is_file() else f"{path.name}/"
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or any(file.stat().st_size for file in path.glob("*.py"))  # empty: not begun
    }
    assert {name for name in modules if name not in picture} == set()
