from .track import Track as Track, find_track as find_track
from .spaces import Space as Space, find_space as find_space, load_space as load_space
from .description import Protocol as Protocol
from .entry import run_entry as run_entry
from .files import load_entry as load_entry
