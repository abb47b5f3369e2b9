"""ShapeNetPart's categories and parts, in the order of the published numbers."""

from __future__ import annotations

SYNSETS = {
    "02691156": "airplane",
    "02773838": "bag",
    "02954340": "cap",
    "02958343": "car",
    "03001627": "chair",
    "03261776": "earphone",
    "03467517": "guitar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03790512": "motorbike",
    "03797390": "mug",
    "03948459": "pistol",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04379243": "table",
}
"""Folder of each category and its name, in synset order, which is the order of the categories' numbers."""

CATEGORIES = tuple(SYNSETS.values())

_PARTS_EACH = (4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3)

CATEGORY_PARTS: tuple[tuple[int, ...], ...] = tuple(
    tuple(range(sum(_PARTS_EACH[:number]), sum(_PARTS_EACH[: number + 1])))
    for number in range(len(_PARTS_EACH))
)
"""The 50 part labels by category: each category's follow those of the one before."""

PARTS = sum(_PARTS_EACH)
"""Part labels in all: 50."""
