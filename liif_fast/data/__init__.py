"""Datasets of whole uint8 images, and wrappers that cut training samples out of them."""

from liif_fast.data import datasets, drawings, lidar, wrappers
from liif_fast.data.dead_leaves import dead_leaves
from liif_fast.data.loader import make_loader
from liif_fast.data.registry import make, make_split, register
