"""Tucker decomposition: the spec, and its solver under mode-wise metrics."""

from lrjax.decompose.tucker.hooi import tucker as tucker
from lrjax.decompose.tucker.spec import Tucker as Tucker
