"""One module a file format, each with ``read(path, limits) -> Draft``.

A reader checks what a header promises against the size of the file before it allocates, reports what is
wrong as a `DataError` without the file's name (the caller adds it), and judges no face: that is the checks'
task. What corpora are made of (OBJ, OFF, PLY, STL, glTF, clouds) is read here, for speed and strictness;
COLLADA, 3MF and 3DXML by pycollada and trimesh, STEP by cascadio in a process of its own, between a check of
what they are given and one of what they give back.
"""
