from .scores import Score as Score, Track as Track, score_tracks as score_tracks
from .overall import (
    CriticalDifference as CriticalDifference,
    Profile as Profile,
    critical_difference as critical_difference,
    performance_profiles as performance_profiles,
)
