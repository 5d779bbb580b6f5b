"""Solvers for attention: what its kernels mean together, rather than one by one.

Arrays in, arrays out, any leading stack axes, jittable; kernels are given head by head.
"""

from lrjax.decompose.attention.groups import Merged as Merged
from lrjax.decompose.attention.groups import merge_keys as merge_keys
from lrjax.decompose.attention.groups import merge_rotated_keys as merge_rotated_keys
from lrjax.decompose.attention.groups import merge_values as merge_values
from lrjax.decompose.attention.heads import affine as affine
from lrjax.decompose.attention.heads import affine_gram as affine_gram
from lrjax.decompose.attention.heads import inner as inner
from lrjax.decompose.attention.heads import join_heads as join_heads
from lrjax.decompose.attention.heads import split_heads as split_heads
from lrjax.decompose.attention.latent import Latent as Latent
from lrjax.decompose.attention.latent import joint_basis as joint_basis
from lrjax.decompose.attention.latent import joint_spectrum as joint_spectrum
from lrjax.decompose.attention.product import Product as Product
from lrjax.decompose.attention.product import product as product
from lrjax.decompose.attention.product import score_product as score_product
from lrjax.decompose.attention.product import value_product as value_product
from lrjax.decompose.attention.rotary import Components as Components
from lrjax.decompose.attention.rotary import Split as Split
from lrjax.decompose.attention.rotary import components as components
from lrjax.decompose.attention.rotary import pair_energy as pair_energy
from lrjax.decompose.attention.rotary import split as split
