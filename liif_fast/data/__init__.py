"""Images and training samples: datasets of whole uint8 images, and wrappers that cut samples out of them."""

from liif_fast.data import datasets as datasets
from liif_fast.data import lidar as lidar
from liif_fast.data import wrappers as wrappers
from liif_fast.data.dead_leaves import dead_leaves as dead_leaves
from liif_fast.data.loader import make_loader as make_loader
from liif_fast.data.registry import make as make
from liif_fast.data.registry import register as register
