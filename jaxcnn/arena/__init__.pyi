from .scores import Score as Score, TrackScores as TrackScores, score_tracks as score_tracks
from .overall import (
    CriticalDifference as CriticalDifference,
    Profile as Profile,
    critical_difference as critical_difference,
    performance_profiles as performance_profiles,
)
from .leaderboard import markdown_table as markdown_table, write_leaderboard as write_leaderboard
from .plots import write_figure as write_figure
