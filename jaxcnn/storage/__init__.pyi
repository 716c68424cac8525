from .checkpoint import Checkpoint as Checkpoint, Every as Every, Policy as Policy
from .compilation import enable_cache as enable_cache
from .manifest import DamagedError as DamagedError
