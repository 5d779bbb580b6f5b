"""Models with another shape: fewer units, smaller heads, a narrower stream, a latent cache."""

from lrjax.restructure.restructure import restructure as restructure
from lrjax.restructure.structure import Module as Module
from lrjax.restructure.structure import Structure as Structure
