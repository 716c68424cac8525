from .track import Track as Track, find_track as find_track
from .spaces import Space as Space, find_space as find_space, load_space as load_space
from .description import Protocol as Protocol
from .entry import run_entry as run_entry
from .files import load_entry as load_entry
from .scores import (
    Score as Score,
    TrackScores as TrackScores,
    load_scores as load_scores,
    score_tracks as score_tracks,
)
from .overall import (
    CriticalDifference as CriticalDifference,
    Profile as Profile,
    critical_difference as critical_difference,
    performance_profiles as performance_profiles,
)
from .leaderboard import (
    markdown_table as markdown_table,
    render_leaderboard as render_leaderboard,
    write_leaderboard as write_leaderboard,
)
from .plots import write_figure as write_figure
