"""The tabs of the app, in the order of the work."""

from refmotion_nb.views.app.tabs.compare import CompareTab
from refmotion_nb.views.app.tabs.correct import CorrectTab
from refmotion_nb.views.app.tabs.data import DataTab
from refmotion_nb.views.app.tabs.dose import DoseTab
from refmotion_nb.views.app.tabs.priors import PriorsTab
from refmotion_nb.views.app.tabs.results import ResultsTab
from refmotion_nb.views.app.tabs.search import SearchTab
from refmotion_nb.views.app.tabs.settings import SettingsTab

TABS = (DataTab, PriorsTab, SearchTab, DoseTab, CorrectTab, ResultsTab, CompareTab, SettingsTab)
