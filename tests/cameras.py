"""The camera of a movie as tests want it."""

from refmotion_nb.data.movies.detector import Detector, load_camera, make_detector, reach_of
from refmotion_nb.data.schema import Movie


def load_detector(movie: Movie) -> Detector:
    """Read gain, defects and hot pixels of a movie and find the replacements of its bad pixels."""
    return make_detector(*load_camera(movie), reach_of(movie))
