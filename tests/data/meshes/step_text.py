"""STEP text (AP214) written by hand: flat-faced solids, spheres, and an assembly that places them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Placement = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""Origin, direction of the part's z, direction of its x."""

_METRE = "( LENGTH_UNIT() NAMED_UNIT(*) SI_UNIT($,.METRE.) )"
_MILLIMETRE = "( LENGTH_UNIT() NAMED_UNIT(*) SI_UNIT(.MILLI.,.METRE.) )"


class _Entities:
    """The numbered lines of a file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: str) -> str:
        """The name of a new entity."""
        self.lines.append(text)
        return f"#{len(self.lines)}"

    def point(self, at: Sequence[float]) -> str:
        return self.add(f"CARTESIAN_POINT('',({','.join(f'{float(v):.9f}' for v in at)}))")

    def direction(self, to: Sequence[float]) -> str:
        return self.add(f"DIRECTION('',({','.join(f'{float(v):.9f}' for v in to)}))")

    def frame(self, origin: Sequence[float], z: Sequence[float], x: Sequence[float]) -> str:
        at, up, right = self.point(origin), self.direction(z), self.direction(x)
        return self.add(f"AXIS2_PLACEMENT_3D('',{at},{up},{right})")

    def length_unit(self, unit: str) -> str:
        if unit != "inch":
            return self.add({"mm": _MILLIMETRE, "m": _METRE}[unit])
        millimetre = self.add(_MILLIMETRE)
        size = self.add(f"LENGTH_MEASURE_WITH_UNIT(LENGTH_MEASURE(25.4),{millimetre})")
        kind = self.add("DIMENSIONAL_EXPONENTS(1.,0.,0.,0.,0.,0.,0.)")
        return self.add(
            f"( CONVERSION_BASED_UNIT('INCH',{size}) LENGTH_UNIT() NAMED_UNIT({kind}) )"
        )

    def context(self, unit: str) -> str:
        length = self.length_unit(unit)
        angle = self.add("( NAMED_UNIT(*) PLANE_ANGLE_UNIT() SI_UNIT($,.RADIAN.) )")
        solid = self.add("( NAMED_UNIT(*) SI_UNIT($,.STERADIAN.) SOLID_ANGLE_UNIT() )")
        exact = self.add(f"UNCERTAINTY_MEASURE_WITH_UNIT(LENGTH_MEASURE(1.E-06),{length},'','')")
        return self.add(
            "( GEOMETRIC_REPRESENTATION_CONTEXT(3) "
            f"GLOBAL_UNCERTAINTY_ASSIGNED_CONTEXT(({exact})) "
            f"GLOBAL_UNIT_ASSIGNED_CONTEXT(({length},{angle},{solid})) "
            "REPRESENTATION_CONTEXT('','') )"
        )

    def flat_faces(self, vertices: np.ndarray, faces: Sequence[Sequence[int]]) -> list[str]:
        """A plane with a loop of straight edges for each face, counter-clockwise seen from outside."""
        corners = [self.add(f"VERTEX_POINT('',{self.point(vertex)})") for vertex in vertices]
        edges: dict[tuple[int, int], str] = {}

        def edge(a: int, b: int) -> str:
            if (b, a) in edges:
                return self.add(f"ORIENTED_EDGE('',*,*,{edges[b, a]},.F.)")
            along = vertices[b] - vertices[a]
            length = float(np.linalg.norm(along))
            vector = self.add(f"VECTOR('',{self.direction(along / length)},{length:.9f})")
            line = self.add(f"LINE('',{self.point(vertices[a])},{vector})")
            edges[a, b] = self.add(f"EDGE_CURVE('',{corners[a]},{corners[b]},{line},.T.)")
            return self.add(f"ORIENTED_EDGE('',*,*,{edges[a, b]},.T.)")

        found = []
        for face in faces:
            sides = [edge(a, b) for a, b in zip(face, [*face[1:], face[0]], strict=True)]
            loop = self.add(f"EDGE_LOOP('',({','.join(sides)}))")
            bound = self.add(f"FACE_OUTER_BOUND('',{loop},.T.)")
            first = vertices[face[1]] - vertices[face[0]]
            outwards = np.cross(first, vertices[face[2]] - vertices[face[1]])
            plane = self.add(f"PLANE('',{self.frame(vertices[face[0]], outwards, first)})")
            found.append(self.add(f"ADVANCED_FACE('',({bound}),{plane},.T.)"))
        return found

    def sphere_face(self, radius: float) -> list[str]:
        """One face without an edge, around the origin."""
        pole = self.add(f"VERTEX_POINT('',{self.point((0, 0, -radius))})")
        loop = self.add(f"VERTEX_LOOP('',{pole})")
        bound = self.add(f"FACE_BOUND('',{loop},.T.)")
        frame = self.frame((0, 0, 0), (0, 0, 1), (1, 0, 0))
        surface = self.add(f"SPHERICAL_SURFACE('',{frame},{radius:.6f})")
        return [self.add(f"ADVANCED_FACE('',({bound}),{surface},.T.)")]

    def product(self, name: str, context: str) -> tuple[str, str]:
        """Definition and shape of a product."""
        product = self.add(f"PRODUCT('{name}','{name}','',({context.split()[0]}))")
        version = self.add(f"PRODUCT_DEFINITION_FORMATION('','',{product})")
        definition = self.add(f"PRODUCT_DEFINITION('design','',{version},{context.split()[1]})")
        return definition, self.add(f"PRODUCT_DEFINITION_SHAPE('','',{definition})")

    def place(
        self, part: tuple[str, str], assembly: tuple[str, str], at: str, origin: str, number: int
    ) -> None:
        """One occurrence of a part (definition, representation) in an assembly (the same)."""
        moved = self.add(f"ITEM_DEFINED_TRANSFORMATION('','',{origin},{at})")
        relation = self.add(
            f"( REPRESENTATION_RELATIONSHIP('','',{part[1]},{assembly[1]}) "
            f"REPRESENTATION_RELATIONSHIP_WITH_TRANSFORMATION({moved}) "
            "SHAPE_REPRESENTATION_RELATIONSHIP() )"
        )
        use = self.add(
            f"NEXT_ASSEMBLY_USAGE_OCCURRENCE('{number}','{number}','',{assembly[0]},{part[0]},$)"
        )
        shape = self.add(f"PRODUCT_DEFINITION_SHAPE('','',{use})")
        self.add(f"CONTEXT_DEPENDENT_SHAPE_REPRESENTATION({relation},{shape})")


def step_text(
    vertices: np.ndarray | None = None,
    faces: Sequence[Sequence[int]] = (),
    *,
    radius: float = 1.0,
    unit: str = "mm",
    places: Sequence[Placement] = (),
) -> str:
    """A file with one solid, by itself or wherever an assembly places it.

    Args:
        vertices: (V, 3) corners of flat faces; None makes a sphere.
        faces: corners of each face.
        radius: of the sphere.
        unit: "mm", "m" or "inch".
        places: where the assembly puts copies; empty: the solid alone.
    """
    file = _Entities()
    found = file.sphere_face(radius) if vertices is None else file.flat_faces(vertices, faces)
    shell = file.add(f"CLOSED_SHELL('',({','.join(found)}))")
    solid = file.add(f"MANIFOLD_SOLID_BREP('',{shell})")
    units = file.context(unit)
    use = file.add("APPLICATION_CONTEXT('automotive design')")
    kind = file.add(f"PRODUCT_CONTEXT('',{use},'mechanical')")
    stage = file.add(f"PRODUCT_DEFINITION_CONTEXT('part definition',{use},'design')")
    origin = file.frame((0, 0, 0), (0, 0, 1), (1, 0, 0))
    definition, shape = file.product("part", f"{kind} {stage}")
    body = file.add(f"ADVANCED_BREP_SHAPE_REPRESENTATION('',({origin},{solid}),{units})")
    file.add(f"SHAPE_DEFINITION_REPRESENTATION({shape},{body})")
    if places:
        whole, outline = file.product("assembly", f"{kind} {stage}")
        frames = [file.frame(*place) for place in places]
        middle = file.frame((0, 0, 0), (0, 0, 1), (1, 0, 0))
        drawn = file.add(f"SHAPE_REPRESENTATION('',({','.join([middle, *frames])}),{units})")
        file.add(f"SHAPE_DEFINITION_REPRESENTATION({outline},{drawn})")
        for number, frame in enumerate(frames):
            file.place((definition, body), (whole, drawn), frame, origin, number)
    numbered = "\n".join(f"#{number} = {line};" for number, line in enumerate(file.lines, 1))
    return (
        "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION((''),'2;1');\n"
        "FILE_NAME('','',(''),(''),'','','');\nFILE_SCHEMA(('AUTOMOTIVE_DESIGN'));\nENDSEC;\n"
        f"DATA;\n{numbered}\nENDSEC;\nEND-ISO-10303-21;\n"
    )
