"""Optical flow: archives, estimation, look-up, pictures."""

from lib.optflow.archive import FlowArchive

__all__ = ["FlowArchive"]
