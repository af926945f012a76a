"""Results as HoloViews (bokeh): pure functions from Datasets to elements that label themselves; ``.opts`` restyles them.

What compares runs takes one result or a mapping from the runs' names to their results, or parts of them. What lacks what is drawn
raises ``InputError``.
"""

from refmotion_nb.views.plots.correlation import correlation
from refmotion_nb.views.plots.dose import b_factors, fcc, fcc_curves, weight_map, weights
from refmotion_nb.views.plots.images import frame, micrograph, particles
from refmotion_nb.views.plots.maps import fsc, noise, slices
from refmotion_nb.views.plots.motion import local_trajectories, motion, path, trajectories
from refmotion_nb.views.plots.page import follow_page
from refmotion_nb.views.plots.search import activity, rays, score_surface, scores

__all__ = [
    "activity",
    "b_factors",
    "correlation",
    "fcc",
    "fcc_curves",
    "follow_page",
    "frame",
    "fsc",
    "local_trajectories",
    "micrograph",
    "motion",
    "noise",
    "particles",
    "path",
    "rays",
    "score_surface",
    "scores",
    "slices",
    "trajectories",
    "weight_map",
    "weights",
]
