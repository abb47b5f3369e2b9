"""What is known of each source and benchmark, copied once more from its authors' pages."""

from __future__ import annotations

import pytest

from pointdistill.data.benchmarks import lvis, scanobjectnn, shapenetpart
from pointdistill.data.benchmarks import modelnet40 as modelnet40_forms
from pointdistill.data.sources import SOURCES, source_info
from pointdistill.data.sources.mesh_archives import SYNSETS

# name: shapes, test shapes more, up axis, what it takes to get it, commercial use, how the licence begins
FACTS = {
    "shapenetcore": (52_470, 0, "y", "login, approved by its authors", False, "non-commercial"),
    "3d-future": (16_560, 0, "y", "login", False, "research"),
    "scanobjectnn": (2_309 + 2_309 + 11_416, 581 + 581 + 2_882, "y", "its authors' form", False, "research"),
    "modelnet40": (9_843, 2_468, "z", "no login", False, "academic"),
    "s3dis": (8_948, 0, "z", "its authors' form", False, "research"),
    "sunrgbd": (8_451, 0, "z once Rtilt is applied", "no login", False, "research"),
    "abo": (7_953, 0, "y", "no login", False, "CC BY-NC 4.0"),
    "omniobject3d": (5_911, 0, "y", "login", True, "CC BY 4.0"),
    "toys4k": (4_000, 0, "y", "its authors' form", None, "each object under its own licence"),
    "google-scanned-objects": (1_030, 0, "z", "no login", True, "CC BY 4.0"),
    "objaverse-cap3d": (785_150, 0, "z", "no login", None, "ODC-By; each object"),
    "objaverse-xl-cap3d": (1_006_782 - 785_150, 0, "z", "no login", None, "ODC-By; each object"),
    "objaverse": (797_084, 0, "y", "no login", None, "ODC-By; each object"),
}  # fmt: skip

ARCHIVES = {
    "shapenetcore": ("ShapeNetCore.v2.zip",),
    "3d-future": tuple(f"3D-FUTURE-model-part{k}.zip" for k in (1, 2, 3, 4)),
    "scanobjectnn": ("h5_files.zip",),
    "modelnet40": ("ModelNet40.zip",),
    "s3dis": ("Stanford3dDataset_v1.2.zip",),
    "sunrgbd": ("SUNRGBD.zip", "SUNRGBDtoolbox.zip", "SUNRGBDMeta3DBB_v2.mat"),
    "abo": ("abo-3dmodels.tar",),
    "omniobject3d": ("OmniObject3D.zip",),
    "toys4k": ("toys4k_obj_files.zip",),
    "google-scanned-objects": ("google-scanned-objects/*.zip",),
    "objaverse-cap3d": ("compressed_pcs_0?.zip",),
    "objaverse-xl-cap3d": ("compressed_pcs_1?.zip",),
    "objaverse": ("hf-objaverse-v1/object-paths.json.gz",),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_row_of_the_table_says_what_the_authors_say(name: str) -> None:
    info = source_info(name)
    shapes, tests, up, access, commercial, licence = FACTS[name]
    assert (info.official, info.official_test) == (shapes, tests)
    assert (info.up, info.access, info.commercial) == (up, access, commercial)
    assert info.licence.startswith(licence)
    assert info.files == ARCHIVES[name]


def test_there_are_facts_for_every_source_with_an_archive_of_its_own() -> None:
    assert list(FACTS) == [info.name for info in SOURCES if info.files]
    assert list(ARCHIVES) == list(FACTS)


SHAPENET = """
02691156 airplane, 02747177 trash bin, 02773838 bag, 02801938 basket, 02808440 bathtub, 02818832 bed,
02828884 bench, 02843684 birdhouse, 02871439 bookshelf, 02876657 bottle, 02880940 bowl, 02924116 bus,
02933112 cabinet, 02942699 camera, 02946921 can, 02954340 cap, 02958343 car, 02992529 cellphone,
03001627 chair, 03046257 clock, 03085013 keyboard, 03207941 dishwasher, 03211117 display,
03261776 earphone, 03325088 faucet, 03337140 file cabinet, 03467517 guitar, 03513137 helmet,
03593526 jar, 03624134 knife, 03636649 lamp, 03642806 laptop, 03691459 loudspeaker, 03710193 mailbox,
03759954 microphone, 03761084 microwaves, 03790512 motorbike, 03797390 mug, 03928116 piano,
03938244 pillow, 03948459 pistol, 03991062 flowerpot, 04004475 printer, 04074963 remote, 04090263 rifle,
04099429 rocket, 04225987 skateboard, 04256520 sofa, 04330267 stove, 04379243 table, 04401088 telephone,
04460130 tower, 04468005 train, 04530566 watercraft, 04554684 washer
"""


def test_the_55_synsets_of_shapenetcore() -> None:
    stated = [entry.split(maxsplit=1) for entry in SHAPENET.replace("\n", " ").split(",")]
    assert [(synset, name.strip()) for synset, name in stated] == list(SYNSETS.items())
    assert list(SYNSETS) == sorted(SYNSETS)


def test_shapenetparts_16_synsets_are_shapenets_in_order() -> None:
    synsets = """02691156 02773838 02954340 02958343 03001627 03261776 03467517 03624134
    03636649 03642806 03790512 03797390 03948459 04099429 04225987 04379243"""
    named = [(synset, SYNSETS[synset]) for synset in synsets.split()]
    assert list(shapenetpart.SYNSETS.items()) == named == sorted(named)
    parts = [len(own) for own in shapenetpart.CATEGORY_PARTS]
    assert parts == [4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3]


def test_scanobjectnns_15_classes_are_in_the_order_of_its_labels() -> None:
    order = "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet"
    assert " ".join(scanobjectnn.CLASSES) == order
    assert {split: files.official for split, files in scanobjectnn.SPLITS.items()} == {
        "OBJ-BG": (2_309, 581),
        "OBJ-ONLY": (2_309, 581),
        "PB-T50-RS": (11_416, 2_882),
    }


def test_modelnets_40_classes_are_in_alphabetical_order() -> None:
    names = """airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser
    flower_pot glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio
    range_hood sink sofa stairs stool table tent toilet tv_stand vase wardrobe xbox"""
    assert list(modelnet40_forms.CLASSES) == names.split() == sorted(names.split())
    assert list(modelnet40_forms.OFFICIAL.values()) == [
        (9_843, 2_468),
        (9_843, 2_468),
        (9_840, 2_468),
    ]


def test_lvis_draws_ten_shapes_by_ten_seeds_from_1060_categories() -> None:
    assert lvis.SHOTS == 10
    assert list(lvis.SEEDS) == list(range(10))
    assert lvis.OFFICIAL_CLASSES == 1_060
