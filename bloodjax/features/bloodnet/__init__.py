"""BloodNet: a small network for blood cells, shipped with its weights, to compare images offline.

`python -m bloodjax.features.bloodnet` trains it again; bloodnet.md is its model card.
"""

from bloodjax.features.bloodnet.extractor import make_extractor as make_extractor
