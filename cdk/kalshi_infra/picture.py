"""Picture: the network and its flows, drawn from the templates (docs/aws-network.svg and .png).

Invariants:
- Boxes come from the templates' resources, arrows from the computed flows; nothing is drawn from
  memory.
- Every flow is in the list beside the drawing; a flow between parts that the drawing cannot place
  is an error.
- The same templates give the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from kalshi_infra.assembly import Resource, Template, read, resources, target
from kalshi_infra.errors import TemplateError
from kalshi_infra.flows import ADMIN, ELSEWHERE, INTERNET, Flow, flows

WIDTH, HEIGHT, SCALE = 1720, 910, 2
COLUMN_X, COLUMN_STEP, COLUMN_WIDTH = 60, 410, 385
PUBLIC_Y, PUBLIC_HEIGHT = 270, 320
PRIVATE_Y, PRIVATE_HEIGHT = 720, 140
HOST_HEIGHT, HOST_WIDTH = 74, 300
LIST_X = 1320

INK, MUTED, PAPER = "#1f2933", "#66727f", "#ffffff"
PUBLIC_FILL, PRIVATE_FILL, BOX_FILL, VPC_FILL = "#eaf5ea", "#eef1f8", "#ffffff", "#fbfbf6"
KINDS = (
    ("443 out", "#2e7d32", {443}),
    ("22 SSH", "#c05600", {22}),
    ("5432, 5433 databases", "#1a5fb4", {5432, 5433}),
    ("8080, 9090 health and metrics", "#7a7a7a", {8080, 9090}),
)


Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with lines of text; `dashed` for what stands for something outside our groups."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    lines: tuple[str, ...] = ()
    dashed: bool = False
    title: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """A line through points with a head at the last; `label` stands at `label_at`."""

    points: Points
    colour: str
    label: str = ""
    label_at: tuple[float, float] = (0, 0)
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    x: float
    y: float
    text: str
    size: int
    colour: str = INK
    mono: bool = False


Shape = Box | Arrow | Words


def scene(templates: Mapping[str, Template], admin_cidr: str) -> list[Shape]:
    """Everything to draw, back to front."""
    found = resources(templates)
    (vpc,) = _of(found, "AWS::EC2::VPC")
    (bucket,) = [r for r in _of(found, "AWS::S3::Bucket") if r.stack == "KalshiStorage"]
    shapes: list[Shape] = [
        Words(40, 44, "Kalshi Tape on AWS: network and possible connections", 24),
        Words(
            40,
            68,
            "drawn from the CloudFormation templates; what is not drawn is impossible",
            14,
            MUTED,
        ),
        Box(40, 190, 1250, 690, VPC_FILL, (f"VPC {vpc.properties['CidrBlock']}",), title=True),
    ]
    places: dict[str, Box] = {}
    places[ADMIN] = Box(60, 92, 300, 56, BOX_FILL, ("admin network", admin_cidr), dashed=True)
    places[INTERNET] = Box(
        500, 92, 330, 56, BOX_FILL, ("internet", "Kalshi API, CloudWatch"), dashed=True
    )
    storage = Box(960, 92, 310, 56, BOX_FILL, ("S3", str(bucket.properties["BucketName"])))
    shapes += _subnets(found, places)
    gateway = Box(560, 172, 210, 36, "#fff3d6", ("internet gateway",))
    shapes += [*places.values(), storage, gateway]
    possible = flows(templates, admin_cidr)
    endpoint = Box(1020, 172, 190, 36, "#fff3d6", ("S3 gateway endpoint",))
    if _of(found, "AWS::EC2::VPCEndpoint"):
        shapes.append(endpoint)
    shapes += _arrows(possible, places, gateway, endpoint, storage)
    return [*shapes, *_list(possible)]


def _of(found: Sequence[Resource], kind: str) -> list[Resource]:
    return [resource for resource in found if resource.type == kind]


def _subnets(found: Sequence[Resource], places: dict[str, Box]) -> list[Shape]:
    """Subnets by zone, and into `places` what is in them."""
    shapes: list[Shape] = []
    subnets = sorted(_of(found, "AWS::EC2::Subnet"), key=lambda r: r.tag())
    zones = sorted({subnet.properties["AvailabilityZone"] for subnet in subnets})
    by_name = {resource.name: resource for resource in found}
    inside: dict[str, list[Resource]] = {}
    for instance in _of(found, "AWS::EC2::Instance"):
        inside.setdefault(target(instance.properties["SubnetId"]), []).append(instance)
    for database in _of(found, "AWS::RDS::DBInstance"):
        group = by_name[target(database.properties["DBSubnetGroupName"])]
        zone = database.properties["AvailabilityZone"]
        for name in map(target, group.properties["SubnetIds"]):
            if by_name[name].properties["AvailabilityZone"] == zone:
                inside.setdefault(name, []).append(database)
    for subnet in subnets:
        values = subnet.properties
        public = values["MapPublicIpOnLaunch"]
        x = COLUMN_X + COLUMN_STEP * zones.index(values["AvailabilityZone"])
        y, height = (PUBLIC_Y, PUBLIC_HEIGHT) if public else (PRIVATE_Y, PRIVATE_HEIGHT)
        head = f"{subnet.tag()}   {values['CidrBlock']}   {values['AvailabilityZone']}"
        fill = PUBLIC_FILL if public else PRIVATE_FILL
        shapes.append(Box(x, y, COLUMN_WIDTH, height, fill, (head,), title=True))
        for index, resource in enumerate(inside.get(subnet.name, ())):
            name = "production" if resource.type == "AWS::RDS::DBInstance" else resource.tag()
            top = y + 46 + index * (HOST_HEIGHT + 102)
            places[name] = Box(
                x + 42, top, HOST_WIDTH, HOST_HEIGHT, BOX_FILL, _host_lines(name, resource)
            )
    free = COLUMN_X + COLUMN_STEP
    places[ELSEWHERE] = Box(
        free + 42, PUBLIC_Y + PUBLIC_HEIGHT + 35, HOST_WIDTH, 56, BOX_FILL,
        ("elsewhere in the VPC", "any host outside our groups"), dashed=True,
    )  # fmt: skip
    return shapes


def _host_lines(name: str, resource: Resource) -> tuple[str, ...]:
    values = resource.properties
    if resource.type == "AWS::RDS::DBInstance":
        size = f"{values['AllocatedStorage']} GB {values['StorageType']}"
        kind = f"{values['Engine']} {values['EngineVersion']} {values['DBInstanceClass']}"
        return (name, kind, f"port {values['Port']}, {size}")
    return (name, values["InstanceType"], values["PrivateIpAddress"])


def _colour(ports: Sequence[int]) -> str:
    for _, colour, known in KINDS:
        if set(ports) <= known:
            return colour
    return INK


def _arrows(
    possible: set[Flow], places: Mapping[str, Box], gateway: Box, endpoint: Box, storage: Box
) -> list[Shape]:
    """One arrow for each pair of places; ways through the gateway share its middle."""
    pairs: dict[tuple[str, str], list[int]] = {}
    for flow in sorted(possible):
        pairs.setdefault((flow.source, flow.destination), []).append(flow.port)
    for name in {name for pair in pairs for name in pair}:
        if name not in places:
            raise TemplateError(f"the picture has no place for {name!r}")
    shapes: list[Shape] = []
    middle = gateway.x + gateway.width / 2
    trunks: dict[str, list[int]] = {}
    for (source, destination), ports in pairs.items():
        colour, label = _colour(ports), ", ".join(map(str, ports))
        start, end = places[source], places[destination]
        if source == ADMIN:
            trunks[ADMIN] = ports
            shapes.append(_spread(middle - 40, gateway, end, 238, colour, inward=True))
        elif destination == INTERNET:
            trunks[INTERNET] = ports
            shapes.append(_spread(middle + 40, gateway, start, 278, colour, inward=False))
        elif destination == ELSEWHERE:
            continue  # the same right as to the internet: in the list, not drawn twice
        elif source == ELSEWHERE:
            shapes.append(_from_elsewhere(start, end, colour, label))
        else:
            shapes.append(_between(start, end, colour, label))
    top, above = gateway.y, places[INTERNET].y + places[INTERNET].height
    if INTERNET in trunks:
        at = (middle + 48, (top + above) / 2 + 5)
        shapes.append(Arrow(((middle + 40, top), (middle + 40, above)), KINDS[0][1], "443", at))
    if ADMIN in trunks:
        admin = places[ADMIN]
        points = (
            (admin.x + admin.width, admin.y + 44),
            (middle - 40, admin.y + 76),
            (middle - 40, top),
        )
        shapes.append(Arrow(points, KINDS[1][1], "22", (admin.x + admin.width + 40, admin.y + 72)))
    deduplicator = places["deduplicator"]
    x = endpoint.x + endpoint.width - 20
    side = deduplicator.x + deduplicator.width
    path = (
        (side, deduplicator.y + 30),
        (side + 22, deduplicator.y + 30),
        (side + 22, 240),
        (x, 222),
        (x, 208),
    )
    shapes.append(Arrow(path, KINDS[0][1], "443", (side + 28, deduplicator.y - 20)))
    shapes.append(Arrow(((x, endpoint.y), (x, storage.y + storage.height)), KINDS[0][1]))
    return shapes


def _spread(
    x: float, gateway: Box, host: Box, offset: float, colour: str, *, inward: bool
) -> Arrow:
    """Between the gateway and a host's top, or its left side for the lower host of a subnet."""
    points: Points
    low = gateway.y + gateway.height
    if host.y < PUBLIC_Y + HOST_HEIGHT:
        points = ((x, low), (host.x + offset, low + 40), (host.x + offset, host.y))
    else:
        side = host.x - (28 if inward else 14)
        low_y = host.y + (16 if inward else 32)
        points = ((x, low), (side, low + 40), (side, low_y), (host.x, low_y))
    return Arrow(points if inward else points[::-1], colour)


def _between(start: Box, end: Box, colour: str, label: str) -> Arrow:
    """From the deduplicator to the foot of a gatherer or to the database."""
    points: Points
    at: tuple[float, float]
    if end.y > start.y:
        below = PRIVATE_Y - 16
        x, foot = end.x + 278, start.y + start.height
        points = ((start.x + 40, foot), (start.x + 40, below), (x, below), (x, end.y))
        at = (start.x - 50, below - 8)
    elif abs(end.x - start.x) < 1:
        x = start.x + start.width - 60
        points = ((x, start.y), (x, end.y + end.height))
        at = (x - 84, (start.y + end.y + end.height) / 2 + 5)
    else:
        far = end.x < start.x - COLUMN_STEP - 1
        y = start.y + (60 if far else 46)
        x = end.x + (90 if far else 150)
        points = ((start.x, y), (x, y), (x, end.y + end.height))
        if start.y <= end.y:  # side by side: round below both
            foot = start.y + start.height
            points = ((start.x + 20, foot), (start.x + 20, foot + 70), (x, foot + 70), points[-1])
        at = (x + 8, end.y + end.height + 26)
    return Arrow(points, colour, label, at)


def _from_elsewhere(start: Box, end: Box, colour: str, label: str) -> Arrow:
    """To the foot of a host; the deduplicator from its left."""
    points: Points
    if end.y > PUBLIC_Y + HOST_HEIGHT:
        points = (
            (start.x + start.width, start.y + 28),
            (end.x + 110, start.y + 28),
            (end.x + 110, end.y + end.height),
        )
        return Arrow(points, colour, label, (end.x + 118, end.y + end.height + 20), dashed=True)
    if end.x < start.x - 1:
        points = (
            (start.x, start.y + 28),
            (end.x + 40, start.y + 28),
            (end.x + 40, end.y + end.height),
        )
        return Arrow(points, colour, label, (end.x - 4, start.y + 20), dashed=True)
    if end.x > start.x + 1:
        x = end.x + end.width + 14
        points = (
            (start.x + start.width, start.y + 44),
            (x, start.y + 44),
            (x, end.y + 50),
            (end.x + end.width, end.y + 50),
        )
        return Arrow(points, colour, label, (x - 44, end.y + 100), dashed=True)
    x = start.x + 60
    return Arrow(
        ((x, start.y), (x, end.y + end.height)), colour, label, (x - 44, start.y - 60), dashed=True
    )


def _list(possible: set[Flow]) -> list[Shape]:
    """The flows as text, and what the colours mean."""
    pairs: dict[tuple[str, str], list[int]] = {}
    for flow in sorted(possible):
        pairs.setdefault((flow.source, flow.destination), []).append(flow.port)
    shapes: list[Shape] = [Words(LIST_X, 110, "Every possible TCP connection", 17)]
    y = 138.0
    for (source, destination), ports in pairs.items():
        shapes.append(Words(LIST_X, y, f"{source} → {destination}", 13, _colour(ports)))
        shapes.append(Words(WIDTH - 90, y, ", ".join(map(str, ports)), 13, _colour(ports)))
        y += 22
    y += 22
    for name, colour, _ in KINDS:
        shapes.append(Arrow(((LIST_X, y - 5), (LIST_X + 44, y - 5)), colour, dashed=name[0] == "8"))
        shapes.append(Words(LIST_X + 56, y, name, 13))
        y += 22
    notes = (
        "DNS, time and instance metadata inside the VPC",
        "are not filtered by security groups.",
        "443 out of a host reaches other hosts of the VPC",
        "too, if these let it in; ours do not.",
    )
    for index, note in enumerate(notes):
        shapes.append(Words(LIST_X, y + 24 + 19 * index, note, 13, MUTED))
    return shapes


# ---- SVG ----
def svg(shapes: Sequence[Shape]) -> str:
    """The scene as SVG text."""
    space, font = "http://www.w3.org/2000/svg", "Helvetica, Arial, sans-serif"
    out = [
        f'<svg xmlns="{space}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{font}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
    ]
    for shape in shapes:
        if isinstance(shape, Box):
            dash = ' stroke-dasharray="6 4"' if shape.dashed else ""
            out.append(
                f'<rect x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" '
                f'height="{shape.height:g}" rx="6" fill="{shape.fill}" stroke="{MUTED}"{dash}/>'
            )
            out += [_svg_words(words) for words in _box_words(shape)]
        elif isinstance(shape, Arrow):
            points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
            dash = ' stroke-dasharray="5 4"' if shape.dashed else ""
            out.append(
                f'<polyline points="{points}" fill="none" stroke="{shape.colour}" '
                f'stroke-width="1.8"{dash}/>'
            )
            head = " ".join(f"{x:.2f},{y:.2f}" for x, y in _head(shape))
            out.append(f'<polygon points="{head}" fill="{shape.colour}"/>')
            if shape.label:
                out.append(_svg_words(Words(*shape.label_at, shape.label, 12, shape.colour)))
        else:
            out.append(_svg_words(shape))
    return "\n".join([*out, "</svg>", ""])


def _svg_words(words: Words) -> str:
    return (
        f'<text x="{words.x:g}" y="{words.y:g}" font-size="{words.size}" fill="{words.colour}">'
        f"{escape(words.text)}</text>"
    )


def _box_words(box: Box) -> list[Words]:
    first = box.y + (22 if box.title or box.height < 40 else 24)
    return [
        Words(
            box.x + (44 if box.title else 12),
            first + 20 * index,
            line,
            15 if index == 0 else 13,
            INK if index == 0 else MUTED,
        )
        for index, line in enumerate(box.lines)
    ]


def _head(arrow: Arrow) -> list[tuple[float, float]]:
    (x0, y0), (x1, y1) = arrow.points[-2:]
    length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    back_x, back_y = x1 - 10 * ux, y1 - 10 * uy
    return [(x1, y1), (back_x - 4 * uy, back_y + 4 * ux), (back_x + 4 * uy, back_y - 4 * ux)]


# ---- PNG ----
def png(shapes: Sequence[Shape], path: Path) -> None:
    """The scene as a PNG file, with the font that Pillow carries."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - only for the picture

    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    draw = ImageDraw.Draw(image)

    def write(words: Words) -> None:
        font = ImageFont.load_default(words.size * SCALE)
        at = (words.x * SCALE, words.y * SCALE)
        draw.text(at, words.text.replace("→", ">"), fill=words.colour, font=font, anchor="ls")

    for shape in shapes:
        if isinstance(shape, Box):
            corners = (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)
            scaled = tuple(value * SCALE for value in corners)
            if shape.dashed:
                draw.rectangle(scaled, fill=shape.fill)
                _dashes(draw, _outline(corners), MUTED, SCALE, (6, 4))
            else:
                draw.rounded_rectangle(scaled, 6 * SCALE, shape.fill, MUTED, SCALE)
            for words in _box_words(shape):
                write(words)
        elif isinstance(shape, Arrow):
            _dashes(draw, shape.points, shape.colour, 2 * SCALE, (5, 4) if shape.dashed else None)
            draw.polygon([(x * SCALE, y * SCALE) for x, y in _head(shape)], fill=shape.colour)
            if shape.label:
                write(Words(*shape.label_at, shape.label, 12, shape.colour))
        else:
            write(shape)
    image.quantize(64).save(path, optimize=True)


def _outline(corners: tuple[float, float, float, float]) -> tuple[tuple[float, float], ...]:
    left, top, right, bottom = corners
    return ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))


def _dashes(
    draw: Any,
    points: Sequence[tuple[float, float]],
    colour: str,
    width: int,
    dash: tuple[float, float] | None,
) -> None:
    """A line through points; `dash` is drawn and left out length, None for a full line."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
        drawn, left_out = dash or (length, 0)
        at = 0.0
        while at < length:
            end = min(at + drawn, length)
            ends = [
                ((x0 + (x1 - x0) * d / length) * SCALE, (y0 + (y1 - y0) * d / length) * SCALE)
                for d in (at, end)
            ]
            draw.line(ends, fill=colour, width=width)
            at += drawn + left_out


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws an assembly into two files. Returns the exit code."""
    parser = argparse.ArgumentParser(description="picture of the network from a cloud assembly")
    parser.add_argument("assembly", type=Path)
    parser.add_argument("--admin-cidr", required=True)
    parser.add_argument("--out", type=Path, required=True, help="path without extension")
    chosen = parser.parse_args(arguments)
    shapes = scene(read(chosen.assembly), chosen.admin_cidr)
    chosen.out.with_suffix(".svg").write_text(svg(shapes), encoding="utf-8")
    png(shapes, chosen.out.with_suffix(".png"))
    print(f"{chosen.out.with_suffix('.svg')} and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
