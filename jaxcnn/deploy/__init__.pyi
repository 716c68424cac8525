from .export import write_export as write_export
from .picture import Picture as Picture, prepare as prepare
from .demo import Demo as Demo
from .server import Server as Server
