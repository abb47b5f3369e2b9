"""Complete, named runs. Each says where its numbers come from and what it costs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

from pointdistill.engine.config import PretrainConfig
from pointdistill.engine.recipes.ablations import ABLATIONS
from pointdistill.engine.recipes.paper import (
    base_mixture,
    small_mixture,
    small_shapenet,
    small_shapenet_cls,
    small_shapenet_mpm,
)
from pointdistill.engine.recipes.sizes import SIZES, large, recipe, tiny
from pointdistill.errors import ConfigError
from pointdistill.model.config import Mode

__all__ = ["RECIPES", "SIZES", "Recipe", "find_recipe", "recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A run by name."""

    name: str
    config: PretrainConfig
    about: str
    """What it is, where from, and what it costs: the docstring of the function that makes it."""

    @property
    def summary(self) -> str:
        """The first line of ``about``."""
        return self.about.splitlines()[0]


def _tiny_cls() -> PretrainConfig:
    """Our own: the CLS objective alone at the tiny size, 600 steps of 32.

    Cost: minutes; see ``pointdistill plan``.
    """
    return recipe("tiny", Mode.CLS)


def _tiny_mpm() -> PretrainConfig:
    """Our own: masked patches alone at the tiny size, 600 steps of 32 shapes under 2 masks.

    Cost: minutes; see ``pointdistill plan``.
    """
    return recipe("tiny", Mode.MPM)


def _named(make: Callable[..., PretrainConfig], name: str, *size: str) -> Recipe:
    """The recipe that a function makes, under a name of its own; its docstring says what it is."""
    about = (inspect.getdoc(make) or "").replace("``", "`")
    return Recipe(name, replace(make(*size), name=name), about)


def _all() -> list[Recipe]:
    runs = (small_shapenet, small_shapenet_cls, small_shapenet_mpm, small_mixture, base_mixture)
    recipes = [_named(run, run.__name__.replace("_", "-")) for run in runs]
    recipes += [_named(large, "large"), _named(tiny, "tiny")]
    recipes += [_named(_tiny_cls, "tiny-cls"), _named(_tiny_mpm, "tiny-mpm")]
    for size in ("small", "tiny"):
        for ablation in ABLATIONS:
            name = f"{size}-{ablation.__name__.replace('_', '-')}"
            recipes.append(_named(ablation, name, size))
    return recipes


RECIPES: dict[str, Recipe] = {one.name: one for one in _all()}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ConfigError: if there is none; names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    msg = f"there is no recipe {name!r}; {hint}`pointdistill recipes` lists them all"
    raise ConfigError(msg)
