"""One module per file format, each with ``read(path, limits) -> RawMesh``.

A reader checks what a header promises against the size of the file before it allocates, reports problems as a
`DataError` without the file's name (the caller adds it), and does not judge faces: that is left to `checks`. The
formats that corpora use (OBJ, OFF, PLY, STL, glTF, clouds) are read here, for speed and strictness; COLLADA, 3MF
and 3DXML by pycollada and trimesh, STEP by cascadio in a process of its own, with a check of what goes in and of
what comes out.
"""
