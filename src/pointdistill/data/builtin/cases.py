"""Furniture that shuts: cabinet, dresser, wardrobe, night stand, TV stand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pointdistill.data.builtin.fronts import CASE_PARTS, GRIPS, carcass, close, feet, stack
from pointdistill.data.builtin.primitives import (
    box,
    cylinder,
)
from pointdistill.data.builtin.registry import Assembly, Draw, category


@category("cabinet", *CASE_PARTS)
def cabinet(shape: Assembly, draw: Draw) -> None:
    """A closed case with doors, and perhaps a row of drawers above or below them."""
    width, depth, height = draw.between(0.4, 1.5), draw.between(0.3, 0.7), draw.between(0.45, 1.9)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    shape.add("body", box((width, depth, height), (0, 0, lift)))
    if draw.chance(0.4):
        over = draw.between(1.02, 1.1)
        shape.add("body", box((width * over, depth * over, 0.03), (0, 0, lift + height)))
    grip, columns = draw.pick(GRIPS), draw.count(1, 3) if width > 0.7 else draw.count(1, 2)
    edges = np.linspace(-width / 2 + 0.02, width / 2 - 0.02, columns + 1)
    base, top = lift + 0.03, lift + height - 0.03
    split = top - draw.pick((0.0, 0.0, draw.between(0.12, 0.3))) * height
    for left, right in pairwise(edges):
        close(shape, draw, (left, right, base, split), -depth / 2, part="door", grip=grip)
        if split < top:
            close(shape, draw, (left, right, split, top), -depth / 2, part="drawer", grip=grip)


@category("dresser", "body", "drawer", "handle", "leg", "mirror")
def dresser(shape: Assembly, draw: Draw) -> None:
    """A chest of drawers, some with a mirror on top."""
    width, depth, height = draw.between(0.5, 1.6), draw.between(0.35, 0.6), draw.between(0.55, 1.3)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    shape.add("body", box((width, depth, height), (0, 0, lift)))
    grip = draw.pick(GRIPS[:2])
    levels = stack(draw, lift + 0.03, lift + height - 0.03, draw.count(2, 6))
    for low, high in pairwise(levels):
        edges = np.linspace(
            -width / 2 + 0.02, width / 2 - 0.02, draw.count(1, 2 if width < 1 else 3) + 1
        )
        for left, right in pairwise(edges):
            close(shape, draw, (left, right, low, high), -depth / 2, part="drawer", grip=grip)
    if draw.chance(0.3):
        tall, wide = draw.between(0.4, 0.9), width * draw.between(0.45, 0.9)
        kind = draw.pick((2.0, 8.0))
        glass = cylinder(0.5, 0.03, power=kind, stretch=(wide, tall), around=24).turned("x", 90)
        shape.add("mirror", glass.moved(0, depth * 0.4, lift + height + tall / 2))


@category("wardrobe", *CASE_PARTS)
def wardrobe(shape: Assembly, draw: Draw) -> None:
    """A tall case for clothes: long doors, perhaps drawers below, a cornice on some."""
    width, depth, height = draw.between(0.7, 2.0), draw.between(0.4, 0.75), draw.between(1.4, 2.4)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    shape.add("body", box((width, depth, height), (0, 0, lift)))
    if draw.chance(0.5):
        shape.add(
            "body",
            box((width * 1.08, depth * 1.1, draw.between(0.04, 0.14)), (0, 0, lift + height)),
        )
    low = lift + draw.pick((0.02, draw.between(0.15, 0.35))) * height
    columns, grip = draw.count(2, 4), draw.pick(GRIPS[1:])
    edges = np.linspace(-width / 2 + 0.02, width / 2 - 0.02, columns + 1)
    for left, right in pairwise(edges):
        cell = (left, right, low, lift + height - 0.04)
        close(shape, draw, cell, -depth / 2, part="door", grip=grip)
    if low > lift + 0.1:
        cell = (edges[0], edges[-1], lift + 0.02, low)
        close(shape, draw, cell, -depth / 2, part="drawer", grip="bar")


@category("night_stand", *CASE_PARTS)
def night_stand(shape: Assembly, draw: Draw) -> None:
    """A small chest for the bedside: an open niche and one or two drawers or a door."""
    width, depth, height = draw.between(0.35, 0.65), draw.between(0.3, 0.5), draw.between(0.3, 0.7)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    board = draw.between(0.015, 0.035)
    shape.add("body", *carcass(width, depth, height, lift, board, back=draw.chance(0.8)))
    levels = stack(draw, lift + board, lift + height - board, draw.count(2, 3))
    niche = draw.count(0, len(levels) - 1)
    part, grip = draw.pick(("drawer", "drawer", "door")), draw.pick(GRIPS)
    for i, (low, high) in enumerate(pairwise(levels)):
        shape.add("body", box((width - board, depth * 0.96, board * 0.8), (0, 0, low)))
        if i != niche:
            cell = (-width / 2 + board, width / 2 - board, low, high)
            close(shape, draw, cell, -depth / 2, part=part, grip=grip)


@category("tv_stand", *CASE_PARTS)
def tv_stand(shape: Assembly, draw: Draw) -> None:
    """A low wide case: open niches for devices between doors or drawers."""
    width, depth, height = draw.between(0.8, 2.1), draw.between(0.32, 0.6), draw.between(0.25, 0.65)
    pieces, lift = feet(draw, width, depth)
    shape.add("leg", *pieces)
    board = draw.between(0.018, 0.045)
    shape.add("body", *carcass(width, depth, height, lift, board, back=draw.chance(0.6)))
    columns = draw.count(2, 4)
    edges = stack(draw, -width / 2 + board, width / 2 - board, columns)
    grip = draw.pick(GRIPS)
    for left, right in pairwise(edges):
        shape.add("body", box((board, depth * 0.96, height), (right, 0, lift)))
        low, high = lift + board, lift + height - board
        kind = draw.pick(("open", "open", "shelf", "drawer", "door"))
        if kind == "shelf":
            middle = (low + high) / 2
            shape.add(
                "body",
                box((right - left, depth * 0.9, board * 0.8), ((left + right) / 2, 0, middle)),
            )
        elif kind != "open":
            close(shape, draw, (left, right, low, high), -depth / 2, part=kind, grip=grip)
