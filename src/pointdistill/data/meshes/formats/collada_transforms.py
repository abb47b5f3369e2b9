"""The transforms of a COLLADA node, as one matrix that acts on column vectors."""

from __future__ import annotations

import numpy as np

from pointdistill.data.meshes.formats.xml import Element, float_list
from pointdistill.data.meshes.records import Floats
from pointdistill.errors import DataError

_LENGTHS = {"matrix": 16, "translate": 3, "rotate": 4, "scale": 3, "lookat": 9, "skew": 7}


def local_matrix(node: Element) -> Floats:
    """All transforms of a node in the order in which they stand, the last acting first; (4, 4)."""
    matrix = np.eye(4)
    for child in node.children:
        if child.name in _LENGTHS:
            matrix = matrix @ matrix_of(child)
    return matrix


def matrix_of(element: Element) -> Floats:
    """One transform element, or a ``bind_shape_matrix``; (4, 4).

    Raises:
        DataError: if it has another number of values than its kind needs.
    """
    numbers = float_list(element.text)
    expected = _LENGTHS.get(element.name, 16)
    if len(numbers) != expected:
        msg = (
            f"<{element.name}> has {len(numbers)} numbers, expected {expected}; the file is damaged"
        )
        raise DataError(msg)
    matrix = np.eye(4)
    match element.name:
        case "translate":
            matrix[:3, 3] = numbers
        case "scale":
            matrix[:3, :3] = np.diag(numbers)
        case "rotate":
            matrix[:3, :3] = _rotation(numbers[:3], np.radians(numbers[3]))
        case "lookat":
            matrix = _look_at(*numbers.reshape(3, 3))
        case "skew":
            matrix[:3, :3] = _skew(np.radians(numbers[0]), numbers[1:4], numbers[4:])
        case _:
            matrix = numbers.reshape(4, 4)
    return matrix


def _unit(vector: Floats) -> Floats:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def _rotation(axis: Floats, angle: float) -> Floats:
    """Rodrigues' formula."""
    x, y, z = _unit(axis)
    across = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: Floats = np.eye(3) + np.sin(angle) * across + (1 - np.cos(angle)) * across @ across
    return turned


def _look_at(eye: Floats, interest: Floats, up: Floats) -> Floats:
    """Stand at ``eye`` with -z towards ``interest`` and y as near to ``up`` as that allows."""
    backward = _unit(eye - interest)
    right = _unit(np.cross(up, backward))
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(backward, right), backward, eye], axis=1)
    return matrix


def _skew(angle: float, rotated: Floats, along: Floats) -> Floats:
    """Shear along ``along`` such that ``rotated`` turns by ``angle`` towards it (RenderMan's rule)."""
    along = _unit(along)
    part = float(_unit(rotated) @ along)
    across = _unit(_unit(rotated) - part * along)
    start = np.arctan2(part, np.sqrt(max(0.0, 1 - part * part)))
    shear = np.tan(start + angle) - np.tan(start)
    sheared: Floats = np.eye(3) + shear * np.outer(along, across)
    return sheared
