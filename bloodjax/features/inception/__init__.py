"""The features of FID: InceptionV3 with the weights of Heusel et al. (2017)."""

from bloodjax.features.inception.extractor import make_extractor as make_extractor
