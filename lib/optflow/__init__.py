"""Optical flow: archives, estimation, lookup, drawing."""

from lib.optflow.archive import FlowArchive

__all__ = ["FlowArchive"]
