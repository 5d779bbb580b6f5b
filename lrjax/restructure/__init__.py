"""Models with another shape: fewer units, smaller heads, a narrower stream, a latent cache."""

from lrjax.restructure.groups import GroupHeads as GroupHeads
from lrjax.restructure.key_heads import QueryKeyHeads as QueryKeyHeads
from lrjax.restructure.latent import LatentKV as LatentKV
from lrjax.restructure.restructure import restructure as restructure
from lrjax.restructure.structure import Module as Module
from lrjax.restructure.structure import Structure as Structure
from lrjax.restructure.units import Units as Units
from lrjax.restructure.value_heads import ValueHeads as ValueHeads
from lrjax.restructure.width import Width as Width
