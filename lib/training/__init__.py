"""Training: recipe, trainer, run and its folder."""

from lib.training.recipe import CountRange, Recipe
from lib.training.run import run_training

__all__ = ["CountRange", "Recipe", "run_training"]
