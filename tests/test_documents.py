"""What the documents claim is held against what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from gateway.admin import metrics
from gateway.conf.load import load

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PICTURE_BYTES_MAX = 300 * 1024  # each is in every clone, in each of its versions


def test_the_readmes_configuration_is_the_file_that_is_shipped() -> None:
    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    shipped = ROOT / "conf" / "egressd.toml"
    assert tomllib.loads(block[1]) == tomllib.loads(shipped.read_text())
    assert load(shipped).upstream["stripe"].limit[0].burst == 10
    lines = [line for line in block[1].splitlines() if line]
    assert len(lines) <= 20


def test_the_readme_names_metrics_that_exist() -> None:
    source = "".join(path.read_text() for path in Path(metrics.__file__).parent.glob("*.py"))
    for name in re.findall(r"egressd_[a-z_]+", README):
        assert f'"{name.removesuffix("_total")}' in source, name


def test_paths_that_documents_name_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        for path in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / path).exists(), f"{document}: {path}"


def test_pictures_that_the_readme_shows_exist_and_are_small() -> None:
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    pictures += re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) >= 4
    for picture in pictures:
        assert (ROOT / picture).stat().st_size <= PICTURE_BYTES_MAX, picture
    shown = re.findall(r"<img [^>]*>", README)
    assert all('alt="' in image for image in shown)


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE):
            assert target in targets, f"{document}: make {target}"
