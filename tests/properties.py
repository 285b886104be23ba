"""Hypothesis; where it is missing, stand-ins that skip the tests which need it."""

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import array_shapes, arrays
except ImportError:

    class _StandIn:
        """Accepts any use of a strategy."""

        def __call__(self, *args, **options):
            return self

        def __getattr__(self, name):
            return self

    st = array_shapes = arrays = _StandIn()

    def given(*args, **options):
        return pytest.mark.skip(reason="needs hypothesis")

    def settings(**options):
        return lambda test: test


__all__ = ["array_shapes", "arrays", "given", "settings", "st"]
