from .export import write_export as write_export
from .own_images import PreparedImage as PreparedImage, prepare_image as prepare_image
from .page import render_page as render_page, write_page as write_page
