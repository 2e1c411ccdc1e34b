"""The picture is drawn from the templates, and the one in docs/ is the present one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from infra_fixtures import Synthesized
from kalshi_infra import flows, picture
from kalshi_infra.assembly import Template
from kalshi_infra.errors import TemplateError
from kalshi_infra.site import Site
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"


def words(shapes: list[picture.Shape]) -> str:
    """Everything written in a scene."""
    root = ET.fromstring(picture.svg(shapes))
    return "\n".join(element.text or "" for element in root.iter() if element.tag.endswith("text"))


def test_every_flow_and_every_host_is_in_the_picture(
    templates: Mapping[str, Template], chosen: Site
) -> None:
    """A picture that leaves a way out is worse than none."""
    text = words(picture.scene(templates, chosen.admin_cidr)).splitlines()
    for flow in flows.flows(templates, chosen.admin_cidr):
        row = text.index(f"{flow.source} → {flow.destination}")
        assert str(flow.port) in text[row + 1].split(", ")
    for name in ("gatherer-1", "gatherer-2", "gatherer-3", "deduplicator", "production"):
        assert name in text


def test_the_picture_in_the_documents_is_the_present_one(
    templates: Mapping[str, Template], chosen: Site
) -> None:
    """`make aws-picture` after a change."""
    kept = (DOCS / "aws-network.svg").read_text(encoding="utf-8")
    assert kept == picture.svg(picture.scene(templates, chosen.admin_cidr))


def test_the_png_has_the_size_of_the_drawing_and_is_no_blank(
    templates: Mapping[str, Template], chosen: Site, tmp_path: Path
) -> None:
    """The same scene, for places that show no SVG."""
    path = tmp_path / "network.png"
    picture.png(picture.scene(templates, chosen.admin_cidr), path)
    with Image.open(path) as image, Image.open(DOCS / "aws-network.png") as kept:
        assert (
            image.size
            == kept.size
            == (picture.WIDTH * picture.SCALE, picture.HEIGHT * picture.SCALE)
        )
        assert len(image.convert("RGB").getcolors(1 << 16) or ()) > 8
        assert image.convert("RGB").tobytes() == kept.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "options", [{"profile": "small"}, {"production": "timescale_ec2"}, {"rds_zone": "c"}]
)
def test_options_are_drawn_too(
    options: dict[str, str], synthesized: Synthesized, chosen: Site
) -> None:
    """The scene must not depend on the default layout."""
    assert "production" in words(picture.scene(synthesized(**options), chosen.admin_cidr))


def test_a_flow_to_something_unplaced_is_an_error(
    templates: Mapping[str, Template], chosen: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better no picture than one that leaves a line out."""
    stray = flows.Flow("gatherer-9", "production", 5432)
    monkeypatch.setattr(picture, "flows", lambda *_: {stray})
    with pytest.raises(TemplateError, match="gatherer-9"):
        picture.scene(copy.deepcopy(dict(templates)), chosen.admin_cidr)
