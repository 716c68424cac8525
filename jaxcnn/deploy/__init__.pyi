from .export import write_export as write_export
from .own_images import PreparedImage as PreparedImage, prepare_image as prepare_image
from .demo import Demo as Demo
from .server import Server as Server
