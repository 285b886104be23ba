"""Train a model: recipe, trainer, run and run folder."""

from lib.training.recipe import CountRange, Recipe, RunSettings
from lib.training.run import run_training

__all__ = ["CountRange", "Recipe", "RunSettings", "run_training"]
